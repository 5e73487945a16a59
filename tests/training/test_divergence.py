"""Losses that are not finite: training stops, and goes on by skipping where that is asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mining.common.errors import MismatchError
from tests.training.outputs import contents
from training import loop
from training.errors import DivergedError
from training.settings import TrainSettings, WandbSettings
from training.train import run_train


def test_a_loss_that_is_not_finite_stops(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []
    plain = loop.NextTokenLoss.forward

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = plain(self, tokens)
        # The first is the trial batch.
        return loss * float("nan") if sum(calls) == 7 else loss

    monkeypatch.setattr(loop.NextTokenLoss, "forward", poisoned)
    with pytest.raises(DivergedError, match=r"step 6: loss nan") as caught:
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    ids = loop.DataOrder(7, len(loop.Sequences(mix / "pivot/tokens.ds", 60, 16)), 4).ids(5)
    assert str(ids.tolist()) in str(caught.value)
    assert not (tmp_path / "a" / "manifest.json").exists()
    saved = json.loads((tmp_path / "a/nonfinite/step-000006.json").read_text())
    assert [entry["sequence"] for entry in saved["sequences"]] == ids.tolist()
    assert saved["sequences"][0]["first_token"] == ids[0] * 16


def test_a_stopped_training_goes_on_by_skipping(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the error advises: skip in the same folder; another rate there is refused."""
    plain, step_of = loop.NextTokenLoss.forward, loop.learning_rate
    at: list[int] = []

    def rate(settings: TrainSettings, step: int, n_steps: int) -> float:
        at.append(step)
        return step_of(settings, step, n_steps)

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        bad = torch.is_grad_enabled() and at and at[-1] == 11
        return plain(self, tokens) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(loop, "learning_rate", rate)
    monkeypatch.setattr(loop.NextTokenLoss, "forward", poisoned)
    with pytest.raises(DivergedError, match=r"With train\.on_nonfinite skip the same command"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    slower = dataclasses.replace(tiny, learning_rate=1e-4)
    with pytest.raises(MismatchError, match="learning_rate changed"):
        run_train(slower, no_wandb, tmp_path / "a", mix, "pivot", 7)
    at.clear()
    skipping = dataclasses.replace(tiny, on_nonfinite="skip")
    run_train(skipping, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert at[0] == 10
    at.clear()
    run_train(skipping, no_wandb, tmp_path / "b", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_validation_loss_that_is_not_finite_stops(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = loop.NextTokenLoss.forward

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        return plain(self, tokens) * (1.0 if torch.is_grad_enabled() else float("inf"))

    monkeypatch.setattr(loop.NextTokenLoss, "forward", poisoned)
    with pytest.raises(DivergedError, match="validation after step 0: loss inf on en"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
