"""A run of every stage in W&B, read back from the offline files."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main
from launch.config import STAGES, RunConfig
from launch.dashboard import dashboard, evaluated, make_workspace
from launch.pipeline import Job, Model, Plan
from launch.watch import Watch, model_of, wandb_id
from launch.watch_stages import tables
from mining.common.errors import InputError, MissingDependencyError, SettingsError
from mining.common.files import write_text
from mining.common.logs import log
from mining.common.manifest import read_manifest
from mining.common.stage import begin
from tests.conftest import REPOSITORY
from tests.wandb_files import OfflineRun, read_runs
from training.settings import WandbSettings
from training.wandb_runs import safe_name, sync_hint

wandb = pytest.importorskip("wandb", reason="needs the extra: pip install 'semantic-pivots[wandb]'")

pytestmark = pytest.mark.slow
SECRET = "planted-4f1d9c0a7b"
# Without the dear ones: they are logged as the others are.
CHAIN = [name for name in STAGES if name not in ("sentences", "intervene", "report")]
SMALL: dict[str, Any] = {
    "wandb": {"mode": "offline"},
    "engine": {"workers": 1},
    "mix": {"arms": ["random", "pivot"], "budget_tokens": 6000,
            "always_sources": ["codeswitch", "format", "identity"]},
    "train": {
        "model": {"hidden_size": 16, "n_layers": 2, "n_heads": 2, "max_length": 64},
        "sequence_length": 64, "global_batch_sequences": 8, "duration": "4steps",
        "snapshots": [2],
    },
    "evaluate": {"draws": 1, "max_items": 4, "bootstrap_samples": 100},
    "compare": {"bootstrap_samples": 100, "permutations": 100},
    "trace": {"max_items": 4, "bootstrap_samples": 100},
    "attribute": {"bootstrap_samples": 100},
}  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of most stages, with a secret in the environment."""
    out = tmp_path_factory.mktemp("watch") / "first-look"
    base = yaml.safe_load((REPOSITORY / "configs/smoke/quickstart.yaml").read_text("utf-8"))
    config = {**base, **SMALL, "out": str(out)}
    config["world"]["pool_documents"] = 1000
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANY_PASSWORD"):
            patch.setenv(name, SECRET)
        for stage in CHAIN:
            assert main([stage, "--config", str(path)]) == 0
    # The command line took the log for itself.
    log.handlers.clear()
    log.propagate = True
    return out


@pytest.fixture(scope="module")
def runs(chain: Path) -> dict[str, OfflineRun]:
    return {run.name: run for run in read_runs(chain)}


def test_every_stage_is_a_run_of_the_experiment(runs: dict[str, OfflineRun]) -> None:
    models = [f"{arm}/0" for arm in ("random", "pivot")]
    fanned = ("train", "evaluate", "trace", "attribute")
    expected = {"world", "tokenizer", "tokenize", "count", "words", "pivots", "score", "mix"}
    expected.add("compare")
    expected |= {f"{stage}/{model}" for stage in fanned[1:] for model in models}
    expected |= {f"train {model}" for model in models}
    expected |= {f"evaluate/{arm}@step-000002/0" for arm in ("random", "pivot")}
    assert set(runs) == expected
    for name, run in runs.items():
        assert run.group == "first-look"
        assert run.job_type == name.replace(" ", "/").split("/")[0]
        assert run.exit_code == 0
    for name in ("train pivot/0", "evaluate/pivot/0", "evaluate/pivot@step-000002/0"):
        assert "seed-0" in runs[name].tags
    assert runs["evaluate/pivot@step-000002/0"].config["arm"] == "pivot"


def test_the_artifacts_are_the_chain(runs: dict[str, OfflineRun]) -> None:
    """What a run names as its input is, to the digest, what another one logged."""
    made = {artifact: name for name, run in runs.items() for artifact in run.made}
    links = {
        (made[artifact], name)
        for name, run in runs.items()
        for artifact in run.used
        if artifact in made
    }
    for before, after in (
        ("world", "tokenize"), ("tokenizer", "tokenize"), ("tokenize", "count"),
        ("count", "pivots"), ("pivots", "score"), ("score", "mix"), ("mix", "train pivot/0"),
        ("train pivot/0", "evaluate/pivot/0"), ("train pivot/0", "evaluate/pivot@step-000002/0"),
        ("evaluate/pivot/0", "compare"), ("trace/pivot/0", "attribute/pivot/0"),
        ("evaluate/pivot/0", "attribute/pivot/0"),
    ):  # fmt: skip
        assert (before, after) in links, (before, after)
    strangers = {(name, a) for name, run in runs.items() for a in run.used if a not in made}
    assert strangers == set()
    assert {kind for _, kind, _ in runs["train pivot/0"].made} >= {"model", "config", "checkpoint"}


def test_scalars_tables_curves_and_figures(runs: dict[str, OfflineRun], chain: Path) -> None:
    pivots = runs["pivots"].table("pivots")
    manifest = read_manifest(chain / "pivots")
    assert runs["pivots"].values()["counts/pivots"] == manifest.counts["pivots"] > 0
    assert 0 < len(pivots) <= 50
    assert pivots[0]["statistic"] == max(row["statistic"] for row in pivots)
    assert f"\u00ab{pivots[0]['text']}\u00bb" in pivots[0]["contexts"].replace(" ", "")
    scored = [runs[f"evaluate/pivot{step}/0"].values() for step in ("@step-000002", "")]
    assert [values["step"] for values in scored] == [2, 4]
    for values in scored:
        assert values["score/all_low"] <= values["score/all"] <= values["score/all_high"]
        assert "score/la-lb" in values
    examples = [
        runs["evaluate/pivot/0"].table(f"translations_{name}") for name in ("right", "wrong")
    ]
    assert all(row["rank"] == 1 for row in examples[0])
    assert all(row["rank"] > 1 for row in examples[1])
    layers = [r for r in runs["trace/pivot/0"].history if "layer" in r]
    assert [r["layer"] for r in layers] == sorted(r["layer"] for r in layers)
    assert all("layers/all/p_pivot" in r for r in layers)
    assert {row["arm"] for row in runs["mix"].table("arms")} == {"random", "pivot"}
    assert "attribute/auc/pair/mean/n" in runs["attribute/pivot/0"].values()
    image = runs["compare"].file("figures/series")
    assert image.read_bytes() == (chain / "compare/figures/series.png").read_bytes()
    training = runs["train pivot/0"]
    assert any("train/loss" in record for record in training.history)


def test_the_dashboard_shows_what_is_logged(chain: Path, runs: dict[str, OfflineRun]) -> None:
    """Built without the service; what it would be sent has our keys, which the runs have too."""
    languages, directions = evaluated(chain)
    assert languages == ["la", "lb", "lc"]
    assert len(directions) == 6
    workspace = make_workspace("team", "project", "first-look", languages, directions)
    spec = workspace._to_model().model_dump_json(by_alias=True)
    logged = {key for run in runs.values() for record in run.history for key in record}
    shown = {key for key in re.findall(r'"([a-z]+/[A-Za-z_/-]+)"', spec) if "/" in key}
    assert {"train/loss", "score/all", "score/la-lb", "layers/all/p_pivot"} <= shown
    assert {"validation/la/loss"} <= shown
    # A model so small need not have items of both behaviours.
    missing = {
        key for key in shown - logged if not key.startswith(("layers/direct", "layers/pivot"))
    }
    assert missing == set()
    assert "first-look" in spec


def test_the_dashboard_needs_a_team_and_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"wandb\.entity"):
        dashboard(RunConfig(out=str(tmp_path)))
    settings = WandbSettings(entity="team")
    with pytest.raises(InputError, match="holds no evaluation"):
        dashboard(RunConfig(out=str(tmp_path), wandb=settings))


def test_no_secret_is_written_anywhere(chain: Path) -> None:
    written = [path for path in chain.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_stage_is_logged_once_and_always_as_the_same_run(
    chain: Path, runs: dict[str, OfflineRun], caplog: pytest.LogCaptureFixture
) -> None:
    config = RunConfig(out=str(chain), wandb=WandbSettings(mode="offline"))
    job = Job("count", "count", chain / "count", lambda: None)
    watch = Watch(config)
    watch.stage(job)
    assert len(read_runs(chain)) == len(runs)
    # As if the process had been killed after the stage and before its run.
    (chain / "wandb" / "logged" / runs["count"].id).unlink()
    with caplog.at_level(logging.INFO, logger="pivots"):
        watch.stage(job)
        watch.close()
    found = [run for run in read_runs(chain) if run.name == "count"]
    assert [run.id for run in found] == [runs["count"].id] * 2
    assert sync_hint(chain) in caplog.text
    assert sync_hint(Path("my runs")).endswith("wandb sync 'my runs'/wandb/offline-run-*")


def test_the_same_stage_done_elsewhere_is_another_run(tmp_path: Path) -> None:
    folders = [tmp_path / place / "run" / "count" for place in ("a", "b")]
    for folder in folders:
        run = begin("count", folder, {"k": 1}, {})
        assert run is not None
        run.finish({})
    first, second = (wandb_id(folder, "run") for folder in folders)
    assert first != second
    assert wandb_id(folders[0], "run") == first


def test_a_failure_is_one_warning_and_only_the_first_process_logs(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(**_: Any) -> None:
        raise OSError("no space")

    settings = WandbSettings(mode="offline", folder=str(tmp_path))
    config = RunConfig(out=str(chain), wandb=settings)
    jobs = [Job(stage, stage, chain / stage, lambda: None) for stage in ("count", "pivots")]
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, logger="pivots"):
        patch.setattr(wandb, "init", fails)
        watch = Watch(config)
        for job in jobs:
            watch.stage(job)
        watch.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no space" in caplog.text
    monkeypatch.setenv("RANK", "1")
    watch = Watch(config)
    watch.stage(jobs[0])
    assert read_runs(tmp_path) == []


def test_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.INFO, logger="pivots"):
        assert Watch(RunConfig(out=str(tmp_path))).mode == "disabled"
    assert "not installed" in caplog.text
    with pytest.raises(MissingDependencyError, match="mode is offline"):
        Watch(RunConfig(out=str(tmp_path), wandb=WandbSettings(mode="offline")))


def test_the_quarantine_is_shown_without_what_it_holds(tmp_path: Path) -> None:
    run = begin("tokenize", tmp_path / "tokenize", {}, {})
    assert run is not None
    line = '{"file": "a.jsonl", "line": 3, "reason": "broken JSON", "detail": "x", "bytes": 9, '
    line += '"sha256": "ab", "raw": "somebody\'s words"}\n'
    write_text(run.out / "quarantine" / "00000.jsonl", line)
    manifest = run.finish({"quarantined": {"broken JSON": 1}, "dropped": {"duplicate text": 5}})
    found = tables("tokenize", run.out, manifest, Plan(RunConfig(out=str(tmp_path))))
    assert found["quarantine_reasons"].rows == [
        ["quarantined", "broken JSON", 1], ["dropped", "duplicate text", 5],
    ]  # fmt: skip
    assert found["quarantine"].rows == [["a.jsonl", 3, "broken JSON", "x", 9, "ab"]]


def test_names(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"inputs": {}}')
    models = [Model("pivot", 3, "", None), Model("a@step10", 0, "", None, "a", 10)]

    def of(name: str) -> dict[str, Any]:
        return model_of(Job("evaluate", name, tmp_path, lambda: None), models)

    assert of("count") == {}
    assert of("evaluate/pivot/3") == {"arm": "pivot", "seed": 3, "model": "pivot"}
    assert of("evaluate/a@step10/0") == {"arm": "a", "seed": 0, "model": "a@step10", "step": 10}
    assert safe_name("evaluate-a/b@step 1") == "evaluate-a-b-step-1"
