"""`pivots launch` and `pivots status` on this machine: profiles, scripts, trainings, secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launch.cli import main
from launch.config import STAGES, parse_config
from launch.pipeline import Plan
from launch.profiles import FOLDER, load_profile
from launch.status import run_status
from launch.steps import READS, find_steps
from mining.common.errors import SettingsError
from mining.common.manifest import read_manifest
from mining.common.secret_words import SECRET
from mining.tasks import note_tasks
from tests.conftest import REPOSITORY

SMOKE = str(REPOSITORY / "configs" / "smoke" / "quickstart.yaml")
PROFILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TRAIN = [
    "--corpus.path", "documents", "--inputs.mix", "mix", "--mix.arms", "[pivot]",
    "--train.duration", "24steps", "--train.sequence_length", "16",
    "--train.global_batch_sequences", "4", "--train.log_every", "4",
    "--train.model.hidden_size", "32", "--train.model.n_layers", "2", "--train.model.n_heads", "2",
    "--train.model.max_length", "64", "--wandb.mode", "disabled",
]  # fmt: skip


def write_profile(path: Path, **values: Any) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in: what launch writes has relative paths in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is written


@pytest.mark.parametrize("name", PROFILES)
def test_a_dry_run_writes_and_shows_scripts_and_starts_nothing(
    here: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{here}/nothing:/usr/bin:/bin")
    assert main(["launch", SMOKE, "--on", name, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    scripts = sorted(Path("runs/quickstart/launch").glob("*.sh"))
    stages = [stage for stage in STAGES if stage != "sentences"]
    plain = [path for path in scripts if ".node." not in path.name]
    assert [path.stem[3:] for path in plain if path.name[0].isdigit()] == stages
    for path in scripts:
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
        assert path.read_text() in printed
    assert {path.name for path in Path("runs/quickstart").iterdir()} == {"launch", "config.yaml"}
    assert ("UNTESTED" in printed) == (name in ("spark-yarn", "spark-kubernetes"))
    # The jobs have the settings of now and the profile's engine.
    saved = parse_config(["--config", "runs/quickstart/launch/config.yaml"], "run")
    assert saved.engine.kind == load_profile(name).engine.kind
    assert saved.count == parse_config(["--config", SMOKE], "run").count


@pytest.mark.parametrize("name", ["spark-yarn", "spark-kubernetes"])
def test_what_nobody_tried_is_not_started(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "count", "--config", SMOKE, "--on", name]) == 0
    assert "written, not started" in capsys.readouterr().out
    text = Path("runs/quickstart/launch/04-count.sh").read_text()
    assert "UNTESTED" in text
    assert not Path("runs/quickstart/count").exists()
    (archive,) = Path("runs/quickstart/launch").glob("project-*.zip")
    assert archive.name in text


def test_steps_wait_for_all_that_they_read() -> None:
    steps = find_steps(Plan(parse_config(["--config", SMOKE], "run")), None)
    done: set[str] = set()
    after = {step.stage: step.after for step in steps}

    def reached(stage: str) -> set[str]:
        return {stage}.union(*(reached(one) for one in after[stage]))

    for step in steps:
        assert set(step.after) <= done  # submitted before, so that their numbers are known
        done.add(step.stage)
        assert set(READS[step.stage]) - {"sentences"} <= reached(step.stage)
    assert after["count"] == after["words"] == ("tokenize",)
    members = {step.stage: step.members for step in steps}
    assert members["train"] == members["trace"]
    assert members["train"] == ("random/0", "pivot/0", "low-pivot/0", "original/0")
    assert members["mix"] == members["compare"] == ()


def test_stages_that_wait_for_their_tasks_in_the_queue_run_one_at_a_time() -> None:
    config = parse_config(["--config", SMOKE, "--engine.kind", "slurm"], "run")
    after = {step.stage: step.after for step in find_steps(Plan(config), None)}
    assert (after["words"], after["pivots"], after["train"]) == (("count",), ("words",), ("mix",))


def test_steps_reach_through_stages_that_are_given() -> None:
    given = ["--config", SMOKE, "--inputs.pivots", "p", "--inputs.score", "s"]
    steps = {step.stage: step for step in find_steps(Plan(parse_config(given, "run")), None)}
    assert "pivots" not in steps
    assert steps["mix"].after == ("count",)  # which the report wants, and pivots would have read
    series = ["--config", SMOKE, "--models.olmo", "x/y@step1,step2", "--seeds", "[0, 1]"]
    steps = {step.stage: step for step in find_steps(Plan(parse_config(series, "run")), None)}
    assert steps["trace"].members[-2:] == ("original/1", "olmo/0")
    assert steps["evaluate"].members == ()  # it draws the series in the end


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "pbs"}, "kind"),
        ({"kind": "local", "stage": {}}, "unknown key 'stage'; there are accelerate"),
        ({"kind": "slurm", "stages": {"trian": {}}}, "stages: .*expected names of stages"),
        ({"kind": "slurm", "stages": {"train": {"node": 2}}}, "node"),
        ({"kind": "slurm", "stages": {"count": {"nodes": 2}}}, "for train and evaluate only"),
        ({"kind": "slurm", "job": {"options": {"array": "0-3"}}}, "options: .*none of array"),
        ({"kind": "slurm", "engine": {"kind": "spark"}}, "engine: .*kind local or slurm"),
        ({"kind": "local", "stages": {"train": {"nodes": 2}}}, "where kind is slurm only"),
        ({"kind": "spark", "engine": {"kind": "spark"}}, "spark.master"),
        ({"kind": "local", "environment": {"WANDB_API_KEY": "x"}}, "looks like a secret"),
        ({"kind": "local", "environment": {"a b": "x"}}, "names of variables"),
        ({"kind": "local", "environment": {"HTTPS_PROXY": "http://a:b@h"}}, "PROXY: found a passw"),
        ({"kind": "local", "setup": "curl https://a:b@h/"}, "setup: found a password"),
        ({"kind": "local", "inherit": None}, "inherit: found null, expected a value"),
        ({"kind": "local", "inherit": [None]}, "inherit"),
        ({"kind": "local", "environment": None}, "environment: found null"),
        ({"kind": "local", "grace_seconds": None}, "grace_seconds: found null"),
        ({"kind": "local", "retries": None}, "retries: found null"),
        ({"kind": "local", "engine": None}, "engine: found null"),
        ({"kind": "local", "engine": []}, "engine: found a list, expected keys and values"),
        ({"kind": "local", "job": "x"}, "job: found a str, expected keys and values"),
        ({"kind": "local", "job": {"cpus": None}}, "job.cpus: found null"),
        ({"kind": "local", "job": {"options": [1]}}, "job.options"),
        ({"kind": "local", "job": {"options": [1]}, "stages": {"train": {}}}, "job.options: found"),
        ({"kind": "local", "stages": ["train"]}, "stages: found a list"),
        ({"kind": "local", "stages": {"train": None}}, "stages.train: "),
        ({"kind": "local", "stages": {"train": {"cpus": None}}}, "stages.train.cpus: found null"),
        ({"kind": "local", "stages": {"train": {"options": [1]}}}, "train.options: found a list"),
        ({"kind": "local", "stages": {"train": {"options": None}}}, "train.options: found null"),
        ({"kind": "local", "stages": {1: {"cpus": 1}}}, "stages"),
    ],
    ids=str,
)
def test_profiles_that_cannot_be(here: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"^p\.yaml: .*{message}"):
        load_profile(write_profile(here / "p.yaml", **values) and "p.yaml")


def test_a_stages_job_is_that_of_all_with_its_own_on_top(here: Path) -> None:
    profile = load_profile(
        write_profile(
            here / "p.yaml", kind="slurm",
            job={"time": "1:00", "memory": "2G", "options": {"account": "a", "qos": "low"}},
            stages={"train": {"time": "2:00", "options": {"qos": "high"}}},
        )
    )  # fmt: skip
    train = profile.of("train")
    assert (train.time, train.memory) == ("2:00", "2G")
    assert train.options == {"account": "a", "qos": "high"}
    assert profile.of("count").time == "1:00"


def test_commands_that_cannot_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["launch", "nowhere.yaml", "--on", "local"], "expected a config file or a stage: world"),
        (["launch", SMOKE], "found no profile; give --on"),
        (["launch", SMOKE, "--on", "pbs"], "nor a shipped profile (local, slurm, spark"),
        (["launch", "count", "--on", "local"], "found no documents"),
        (["launch", SMOKE, "--on", "local", "--engine.workers=2"], "is the profile's matter"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert main(["status", "."]) == 3
    assert main(["launch", "--help"]) == 0
    assert "configs/launch/" in capsys.readouterr().out


# ---- secrets


def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two secrets of the environment: one that the profiles hand on, one of something else."""
    inherited, foreign = "planted-" + "1f" * 16, "planted-" + "2e" * 16
    monkeypatch.setenv("WANDB_API_KEY", inherited)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", foreign)
    return inherited, foreign


def files_with(root: Path, texts: tuple[str, ...]) -> list[Path]:
    """The files below a folder in which one of the texts stands."""
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and any(text.encode() in path.read_bytes() for text in texts)
    ]


@pytest.mark.parametrize("name", PROFILES)
def test_no_secret_is_written_or_printed(
    here: Path, name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = planted(monkeypatch)
    assert main(["launch", SMOKE, "--on", name, "--dry_run"]) == 0
    printed = "".join(capfd.readouterr())
    assert not any(secret in printed for secret in secrets)
    assert files_with(here, secrets) == []
    if name == "slurm":
        assert "AWS_SECRET" not in printed
        assert "WANDB_API_KEY" in printed


def test_a_secret_in_a_profile_or_config_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inherited, foreign = planted(monkeypatch)
    profile = write_profile(
        here / "p.yaml", kind="slurm", setup=f"export WANDB_API_KEY={inherited}"
    )
    for arguments, name in (
        (["--on", profile], "WANDB_API_KEY"),
        (["--on", "local", "--corpus.path", f"s3://x/{foreign}"], "AWS_SECRET_ACCESS_KEY"),
    ):
        assert main(["launch", SMOKE, *arguments]) == 2
        message = capsys.readouterr().err
        assert f"would hold the value of ${name}" in message
        assert inherited not in message
        assert foreign not in message
    assert not Path("runs").exists() or files_with(Path("runs"), (inherited, foreign)) == []


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in (
            "WANDB_API_KEY", "WANDB_APIKEY", "OPENAI_API_KEYS", "HF_TOKEN", "GITHUB_PAT",
            "AWS_SECRET_ACCESS_KEY", "AZURE_CREDENTIALS", "db_password", "DB_PASS",
            "SSH_KEY_PASSPHRASE", "SSHPASSPHRASE", "clientSecret", "accessToken", "SENTRY_DSN",
        )),
        *((name, False) for name in (
            "PATH", "PYTHONPATH", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "KEYBOARD", "COMPASS",
            "NCCL_SOCKET_IFNAME", "WANDB_MODE", "HF_HOME", "PASSES", "MONKEY",
        )),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, is_secret: bool) -> None:
    assert (SECRET.search(name) is not None) == is_secret


# ---- this machine


def write_squeue(folder: Path, script: str) -> None:
    """A squeue of one's own: the real one need not be there, and would not misbehave."""
    path = folder / "squeue"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "message"),
    [("exec sleep 60", "squeue: no answer"), ("echo no controller >&2; exit 1", "no controller")],
)
def test_a_squeue_without_an_answer(
    here: Path, script: str, message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_squeue(here, script)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    for module in ("launching", "status"):
        monkeypatch.setattr(f"launch.{module}.SHORT_PATIENCE", 0.3)
    launch = ["launch", "world", "--config", SMOKE, "--on", "slurm"]
    assert main([*launch, "--dry_run"]) == 0
    jobs = Path("runs/quickstart/launch/jobs")
    jobs.write_text("world 11\n")
    for arguments in (launch, [*launch[:-1], "local"]):
        assert main(arguments) == 4
        printed = capsys.readouterr().err
        assert message in printed
        assert f"If they are surely gone, remove {jobs}" in printed
    assert main(["status", "runs/quickstart"]) == 0
    assert "Slurm cannot be asked" in capsys.readouterr().err


def test_stages_run_here_one_after_another(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--world.pool_documents", "200", "--world.pivots", "8"]
    assert main(["launch", "world", "--config", SMOKE, "--on", "local", *small]) == 0
    assert "[1/1] world" in capfd.readouterr().out
    read_manifest(Path("runs/quickstart/world"), "world")
    assert "world: done" in Path("runs/quickstart/launch/logs/01-world.log").read_text()
    assert main(["status", "runs/quickstart"]) == 0
    printed = capfd.readouterr().out
    assert printed.splitlines()[1].split()[:3] == ["world", "done", "1/1"]
    assert "logs: runs/quickstart/launch/logs" in printed

    # What is left of an earlier launch on Slurm is of no interest any more.
    jobs = Path("runs/quickstart/launch/jobs")
    jobs.write_text("world 11\ncount 12\n")
    write_squeue(here, "exit 0")
    log = Path("runs/quickstart/launch/logs/01-world.log")
    size = log.stat().st_size
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    assert main(["launch", "world", "--config", SMOKE, "--on", "local", "--quiet", *small]) == 0
    assert not jobs.exists()
    assert log.stat().st_size == size

    # Its error and exit code come through, and stay to be read.
    assert main(["launch", "count", "--config", SMOKE, "--on", "local"]) == 3
    assert "error: runs/quickstart/tokenizer: does not exist" in capfd.readouterr().out
    assert main(["status", "runs/quickstart"]) == 6
    assert "count: error: runs/quickstart/tokenizer: does not" in capfd.readouterr().out
    states = {one.stage: one.state for one in run_status(Path("runs/quickstart"))}
    assert (states["world"], states["count"], states["words"]) == ("done", "failed", "pending")


def test_status_of_stages_at_work(here: Path) -> None:
    """Tasks, steps and time left come from what a stage leaves on its way."""
    assert main(["launch", SMOKE, "--on", "local", "--dry_run"]) == 0
    run = Path("runs/quickstart")
    holder = f"`pivots x` (process {os.getpid()} on {os.uname().nodename})"
    tasks = run / "tokenize" / ".work" / "tasks"
    (tasks / "completions").mkdir(parents=True)
    note_tasks(tasks, 5)
    for rank in range(2):
        (tasks / "completions" / f"{rank:05d}").touch()
    (run / "tokenize" / ".lock").write_text(holder)
    train = run / "train" / "pivot" / "0"
    (train / ".work").mkdir(parents=True)
    (train / ".lock").write_text(holder)
    line = {"kind": "timing", "step": 40, "seconds": 2.0, "eta_seconds": 120.0}
    # What a machine that lost its power may leave behind it, and a line that is not whole.
    damage = "\0" * 9 + '\n[]\n{"step": 41, "eta_seconds": null}\n{"kind": "tim'
    (train / "timings.jsonl").write_text(json.dumps(line) + "\n" + damage)
    (run / "launch" / "jobs").write_text("coun\n")
    (run / "count" / ".work").mkdir(parents=True)
    (run / "count" / ".lock").write_text("`pivots count` (process 1 on another-machine)")
    found = {one.stage: one for one in run_status(run)}
    assert (found["tokenize"].state, found["tokenize"].done, found["tokenize"].total) == (
        "running", 2, 5,
    )  # fmt: skip
    assert found["tokenize"].left is not None
    assert (found["train"].state, found["train"].done, found["train"].total) == ("running", 0, 4)
    assert found["train"].left == 120
    assert found["train"].notes == ["train/pivot/0: step 40 of 100, 2 min left"]
    assert found["count"].state == "stopped"
    assert main(["status", str(run)]) == 0


def test_two_launches_do_not_share_a_folder(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second would write other scripts under the first: also where its command was killed."""
    profile = write_profile(here / "p.yaml", kind="local", setup="touch at-work; sleep 60")
    command = ["launch", "world", "--config", SMOKE, "--on", profile]
    first = subprocess.Popen([sys.executable, "-m", "launch.cli", *command], env=os.environ | {
        "PYTHONPATH": str(REPOSITORY),
    })  # fmt: skip
    while not Path("at-work").exists():
        assert first.poll() is None
        time.sleep(0.02)
    stages = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    for more in ([], ["--dry_run"]):
        assert main([*command, *more]) == 4
        assert f"`pivots launch` (process {first.pid} on" in capfd.readouterr().err
    for process in stages:
        process.kill()
    psutil.wait_procs(stages, timeout=60)
    assert main([*command, "--dry_run"]) == 0
