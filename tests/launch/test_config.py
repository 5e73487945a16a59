from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.build_settings import JudgeSettings
from eval.sentence_settings import SentencesSettings
from launch.cli import main
from launch.config import STAGES, RunConfig, parse_config, save_config
from launch.pipeline import Plan, find_task, refuse_inner_output, select_jobs
from mining.common.errors import InputError, SettingsError
from mining.common.logs import log, log_to_file

ROOT = Path(__file__).resolve().parent.parent.parent
# Those of launchers are read elsewhere (tests/training/test_distributed.py, test_launch.py).
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name not in ("accelerate", "launch")
)


def write(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(value))
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_config_of_the_repository_loads_and_is_read_back(path: Path, tmp_path: Path) -> None:
    config = parse_config(["--config", str(path)], "run")
    save_config(config, tmp_path / "saved.yaml")
    assert parse_config(["--config", str(tmp_path / "saved.yaml")], "run") == config


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, {"count": {"top_items": 50}, "mix": {"languages": {"fr": 0.5}}})
    parsed = parse_config(["--config", config, "--count.top_items", "60"], "count")
    assert parsed.count.top_items == 60
    assert parsed.mix.languages == {"fr": 0.5}
    assert parsed.pivots == RunConfig().pivots


@pytest.mark.parametrize(
    ("value", "arguments", "message"),
    [
        ({"count": {"bar": 1}}, [], r"c\.yaml: .*count.*bar"),
        ({"countt": {}}, [], r"c\.yaml: .*countt"),
        ({"count": {"top_items": "x"}}, [], r"c\.yaml: .*count\.top_items.*int"),
        ({"count": {"top_items": 1}}, [], r"c\.yaml: count\.top_items: found 1, expected between"),
        ({"train": {"model": {"n_layers": 0}}}, [], r"c\.yaml: train\.model\.n_layers: found 0"),
        ({"seed": None}, [], r"c\.yaml: seed: found null, expected a value"),
        (
            {"train": {"model": {"n_layers": None}}},
            [],
            r"c\.yaml: train\.model\.n_layers: found nul",
        ),
        ({"mix": {"arms": None}}, [], r"c\.yaml: mix\.arms: found null"),
        ({"seeds": []}, [], r"c\.yaml: seeds: found \(\), expected at least one"),
        ({}, ["--count.top_items", "1"], r"command line: count\.top_items: found 1"),
        ({}, ["--count.nothing", "1"], r"count\.nothing"),
        ({}, ["--count.top_item", "60"], r"count\.top_item"),
        ({"only": ["pivot/7"]}, [], r"c\.yaml: only: found \('pivot/7',\), expected ARM"),
        ({"inputs": {"nostage": "x"}}, [], r"inputs: .*expected names of stages"),
        ({"train": {"duration": "5 apples"}}, [], r"duration: found '5 apples'"),
        ({"models": {"../../x": "m"}}, [], r"models: found .*expected names that folders may have"),
        ({"train": {"model": []}}, [], r"c\.yaml: train\.model: found a list, expected keys"),
        ({"mix": {"budget_tokens": -5}}, [], r"mix\.budget_tokens: found -5, expected at least 1"),
        (
            {"mix": {"arms": ["random-twice"]}, "train": {"duration": "500steps"}},
            [],
            r"c\.yaml: train\.duration: found 500steps, expected epochs",
        ),
        ({"count": {"class_path": "os.system"}}, [], r"c\.yaml: Subclasses are disabled"),
    ],
)
def test_mistakes_are_named_with_key_and_place(
    tmp_path: Path, value: Any, arguments: list[str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_config(["--config", write(tmp_path, value), *arguments], "run")


def test_mistakes_end_the_command_with_a_code_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", "--config", write(tmp_path, {"count": {"top_items": 0}})]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "count.top_items: found 0" in error
    assert main(["frobnicate"]) == 1
    assert "no command 'frobnicate'" in capsys.readouterr().err
    assert main(["lineage", str(tmp_path / "nothing")]) == 3
    assert main(["compare", "runs/one"]) == 2
    assert "expected two or more" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", *STAGES])
def test_help_shows_the_stages_own_settings(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"], command)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--out" in text
    if command in STAGES:
        for section in STAGES[command][1]:
            assert f"--{section}." in text
        assert ("--train." in text) == (command == "train")


def test_every_setting_is_explained() -> None:
    """--help has a line of its own for each field."""

    def walk(cls: type) -> None:
        for field in dataclasses.fields(cls):
            assert f"\n        {field.name}: " in (cls.__doc__ or ""), (
                f"{cls.__name__}.{field.name}"
            )
            if dataclasses.is_dataclass(field.default_factory):
                walk(field.default_factory)  # type: ignore[arg-type]

    walk(RunConfig)


def test_help_answers_within_a_second() -> None:
    took = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "launch.cli", "count", "--help"], check=True, capture_output=True
        )
        took.append(time.monotonic() - start)
    assert min(took) < 1.5, took  # a second on a quiet machine


def test_print_config_is_a_config(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "run", "--seed", "7", "--print_config"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (tmp_path / "p.yaml").write_text(done.stdout)
    assert parse_config(["--config", str(tmp_path / "p.yaml")], "run").seed == 7


def test_a_run_without_documents_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "r")]) == 2
    assert "configs/quickstart.yaml" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_plan_fans_out_over_arms_seeds_and_models() -> None:
    config = RunConfig(
        out="r", seeds=(0, 5), models={"m": "hub/id@v1"}, inputs={"count": "elsewhere"}
    )
    plan = Plan(config)
    names = [job.name for job in plan.jobs()]
    assert names[0] == "world"
    assert names[-1] == "report"
    assert names.count("train/pivot/5") == 1
    assert "evaluate/m/0" in names
    assert "train/m/0" not in names
    assert plan.folder("count") == Path("elsewhere")
    assert "count" not in names  # a folder that `inputs` names is read, never written
    with pytest.raises(SettingsError, match="finished folder for it: elsewhere"):
        select_jobs(plan, "count")
    assert [m.revision for m in plan.models() if m.label == "m"] == ["v1"]
    only = Plan(dataclasses.replace(config, only=("random/5", "m")))
    assert [job.name for job in select_jobs(only, "train")] == ["train/random/5"]
    assert [job.name for job in select_jobs(only, "trace")] == ["trace/random/5", "trace/m/0"]
    with pytest.raises(SettingsError, match="nothing to do"):
        select_jobs(Plan(dataclasses.replace(config, only=("m",))), "train")


def test_sentences_are_translated_only_where_some_are_given() -> None:
    plan = Plan(RunConfig(out="r"))
    assert "sentences" not in {job.stage for job in plan.jobs()}
    with pytest.raises(SettingsError, match=r"sentences: .*sentences\.path"):
        select_jobs(plan, "sentences")
    given = Plan(RunConfig(out="r", sentences=SentencesSettings("flores")))
    jobs = select_jobs(given, "sentences")
    assert [(job.name, job.folder) for job in jobs[:1]] == [
        ("sentences/original/0", Path("r/sentences/original/0"))
    ]
    assert len(jobs) == len(given.models())


def test_tasks_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_task("words").name == "words.yaml"
    (tmp_path / "t.yaml").write_text("x")
    assert find_task(str(tmp_path / "t.yaml")) == tmp_path / "t.yaml"
    with pytest.raises(InputError, match=r"shipped task \(words\)"):
        find_task("nothing")


def test_a_yaml_bomb_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 30)]
    path.write_text("\n".join([*lines, "seeds: *a29"]))
    start = time.monotonic()
    assert main(["count", "--config", str(path)]) == 2
    assert time.monotonic() - start < 10
    assert "aliases spell more than" in capsys.readouterr().err


def test_trouble_of_the_machine_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "file"
    place.write_text("")
    assert main(["world", "--out", str(place / "out"), "--quiet"]) == 7
    error = capsys.readouterr().err
    assert "Not a directory" in error
    assert "the same command goes on from here" in error


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset by peer"), TimeoutError("no answer")]
)
def test_a_network_that_fails_is_trouble_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Whatever its number, or without one."""

    def dispatch(command: str, arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("launch.cli._dispatch", dispatch)
    assert main(["count"]) == 7
    assert f"error: {error}. Nothing half-written counts" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["count", "--help"], ["inspect", "--help"]])
def test_who_reads_only_the_head_of_a_text_sees_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "launch.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode in (0, 128 + signal.SIGPIPE)


def test_no_secret_is_written_into_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "planted-" + "3c" * 16
    monkeypatch.setenv("STORE_PASSWORD", secret)
    out = ["--out", str(tmp_path / "run"), "--corpus.path", f"s3://store/{secret}"]
    assert main(["run", *out]) == 2
    error = capsys.readouterr().err
    assert "config.yaml: would hold the value of $STORE_PASSWORD" in error
    assert secret not in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_text()]


def test_no_password_stands_in_a_url() -> None:
    with pytest.raises(SettingsError, match=r"corpus\.path: found a password .*https://") as error:
        parse_config(["--corpus.path", "https://me:the-value@host/x"], "count")
    assert "the-value" not in str(error.value)
    for path in ("abfs://container@me.dfs.core.windows.net/x", "hdfs://me@host:9000/x@y", "a:b@c"):
        assert parse_config(["--corpus.path", path], "count").corpus.path == path


SECRET_URLS = (
    ("corpus.path", "simplecache::http://me:pl4nted@h/x"),
    ("build_task.judge.url", "http://me:pl4nted@h/v1"),
    ("tokenizer.path", "https://pl4nted@h/"),
    ("corpus.token_files.order", "https://h/x?X-Amz-Signature=pl4nted"),
    ("models", {"a": "https://h/x?token=pl4nted"}),
    ("build_task.sources", [{"path": "s3://AK:se/pl4nted@b"}]),
)


@pytest.mark.parametrize(("key", "url"), SECRET_URLS)
@pytest.mark.parametrize("by_file", [True, False])
def test_no_setting_holds_the_secret_of_a_url(
    tmp_path: Path, key: str, url: Any, by_file: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if by_file:
        value = url
        for name in reversed(key.split(".")):
            value = {name: value}
        arguments = ["--config", write(tmp_path, value)]
    else:
        arguments = [f"--{key}", url if isinstance(url, str) else json.dumps(url)]
    assert main(["tokenize", *arguments, "--out", str(tmp_path / "o"), "--print_config"]) == 2
    shown = "".join(capsys.readouterr())
    assert re.search(rf"{re.escape(key)}\S*: found a .*give it where", shown)
    assert "pl4nted" not in shown
    assert not (tmp_path / "o").exists()


def test_settings_made_in_code_hold_no_secret_of_a_url() -> None:
    with pytest.raises(SettingsError, match="url: found a password"):
        JudgeSettings(url="http://me:pl4nted@h/v1", model="m")
    with pytest.raises(SettingsError, match=r"models\.a: found a password"):
        RunConfig(models={"a": "http://me:pl4nted@h/v1"})


def test_errors_and_logs_show_no_secret_of_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        log_to_file(tmp_path / "run.log")
        log.warning("again: https://h/x?X-Amz-Signature=pl4nted")
        raise InputError("https://me:pl4nted@h/x: status 403")

    monkeypatch.setattr("launch.cli._dispatch", fail)
    assert main(["count"]) == 3
    log.handlers.pop().close()
    shown = "".join(capsys.readouterr()) + (tmp_path / "run.log").read_text()
    assert "https://...@h/x: status 403" in shown
    assert "pl4nted" not in shown


def test_sections_come_from_no_file_and_nothing_nests_without_end(tmp_path: Path) -> None:
    """The parser would read such a file itself, whatever is in it."""
    path = tmp_path / "corpus.yaml"
    for content in (b"path: x", b"path: \xff", b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=r"command line: corpus: found a str.*--config"):
            parse_config(["--corpus", str(path)], "count")
        with pytest.raises(SettingsError, match=r"corpus\.token_files: found a str"):
            parse_config([f"--corpus.token_files={path}"], "count")
    given = parse_config(["--corpus", "{path: x}"], "count")
    assert given.corpus.path == "x"
    nested = "[" * 5000 + "]" * 5000
    for key in ("corpus", "corpus.languages", "models"):
        with pytest.raises(SettingsError) as error:
            parse_config([f"--{key}", nested], "count")
        assert len(str(error.value)) < 2000


def test_long_values_are_not_shown_whole(tmp_path: Path) -> None:
    long = "x" * (1 << 20)
    for value in (
        {"count": {"top_items": long}}, {"task": long, "train": {"duration": long}},
        {"models": {"m": long, "../x": long}}, {long: 1}, {"count": {long: 1}}, {"only": [long]},
    ):  # fmt: skip
        with pytest.raises(SettingsError) as error:
            parse_config(["--config", write(tmp_path, value)], "run")
        assert len(str(error.value)) < 5000


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("spark.hadoop.fs.s3a.secret.key", True), ("spark.hadoop.fs.s3a.access.key", True),
        ("spark.ssl.keyPassword", True), ("fs.azure.account.key.me.dfs.core.windows.net", True),
        ("spark.hadoop.fs.s3a.aws.credentials.provider", False), ("spark.executor.memory", False),
    ],
)  # fmt: skip
def test_spark_is_given_no_secret_by_the_settings(name: str, is_secret: bool) -> None:
    text = json.dumps({name: "the-value"})
    arguments = ["--engine.spark.conf", text]
    if is_secret:
        with pytest.raises(SettingsError, match="spark-defaults") as error:
            parse_config(arguments, "count")
        assert f"command line: engine.spark.conf: found {name}, expected no sec" in str(error.value)
        assert "the-value" not in str(error.value)
    else:
        assert parse_config(arguments, "count").engine.spark.conf == {name: "the-value"}


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["tokenize"],
        ["launch", "tokenize", "--on", "local"],
        ["experiment", "text", "--config", str(ROOT / "configs" / "experiment" / "real.yaml")],
    ],
    ids=lambda command: command[0],
)
def test_an_output_in_the_corpus_folder_is_refused(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tables and quarantine would be the next stage's documents."""
    (tmp_path / "a.jsonl").write_text("{}")
    given = ["--corpus.path", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main([*command, *given]) == 2
    assert "run lies in the corpus' folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_output_that_the_pattern_of_the_corpus_does_not_reach_is_none_of_it(
    tmp_path: Path,
) -> None:
    config = parse_config(
        ["--corpus.path", str(tmp_path), "--out", str(tmp_path), "--corpus.glob", "*.jsonl"], "run"
    )
    refuse_inner_output(config)
