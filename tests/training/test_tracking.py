"""A training in W&B: what it logs, and that nothing W&B does stops it."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mining.common.errors import MissingDependencyError
from mining.common.files import read_json
from mining.common.lineage import verify_outputs
from tests.training.outputs import contents
from tests.wandb_files import read_runs
from training import loop
from training.errors import StoppedError
from training.settings import TrainSettings, WandbSettings
from training.train import run_train


def test_wandb_offline(
    mix: Path, tiny: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Path
) -> None:
    pytest.importorskip("wandb", reason="needs the extra: pip install 'semantic-pivots[wandb]'")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    plain = loop.learning_rate

    def signal_at_step_13(settings: TrainSettings, step: int, n_steps: int) -> float:
        if step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(settings, step, n_steps)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", signal_at_step_13)
        with pytest.raises(StoppedError):
            run_train(tiny, WandbSettings(mode="auto"), tmp_path / "a", mix, "pivot", 7)
    # What only divides the work makes no other run of it.
    resumed = dataclasses.replace(tiny, keep_checkpoints=1)
    run_train(resumed, WandbSettings(mode="auto"), tmp_path / "a", mix, "pivot", 7)
    first, found = read_runs(tmp_path / "a")
    assert first.id == found.id == read_json(tmp_path / "a" / "run.json")["id"]
    assert first.exit_code == 1
    steps = [[r["step"] for r in run.history if "train/loss" in r] for run in (first, found)]
    assert steps == [[4, 8, 12], [16, 20, 24]]
    assert (found.name, found.job_type, found.exit_code) == ("train pivot/7", "train", 0)
    assert any("train/grad_norm" in record for record in found.history)
    assert [kind for _, kind, _ in found.used] == ["mix"]
    assert {kind for _, kind, _ in found.made} >= {"config", "checkpoint", "weights", "model"}
    assert contents(tmp_path / "a") == contents(unbroken)


def test_a_missing_or_failing_wandb_stops_nothing(
    mix: Path, tiny: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    short = dataclasses.replace(tiny, duration="1step")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.INFO, logger="pivots"):
        run_train(short, WandbSettings(mode="auto"), tmp_path / "a", mix, "pivot", 0)
    assert "no W&B (not installed" in caplog.text
    with pytest.raises(MissingDependencyError, match=r"semantic-pivots\[wandb\]"):
        run_train(short, WandbSettings(mode="offline"), tmp_path / "b", mix, "pivot", 0)

    class Broken:
        @staticmethod
        def init(**_: Any) -> None:
            raise OSError("no space")

    monkeypatch.setitem(sys.modules, "wandb", Broken)
    run_train(short, WandbSettings(mode="offline"), tmp_path / "c", mix, "pivot", 0)
    verify_outputs(tmp_path / "c")
