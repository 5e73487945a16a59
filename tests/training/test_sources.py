"""Trainings on several sources, and on data that changes under them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mining.common.errors import MismatchError
from mining.common.manifest import read_manifest
from training import checkpoint, loop
from training.settings import SourceSettings, TrainSettings, WandbSettings
from training.train import run_train


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A raw memmap of the test mix's vocabulary."""
    tokens = np.random.default_rng(1).integers(2, 60, 1000).astype("<u2")
    tokens[::20] = 0
    tokens.tofile(tmp_path / "more.npy")
    return tmp_path / "more.npy"


def interrupted(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """Train until after the first checkpoint."""

    class KilledError(BaseException):
        pass

    def save_then_die(*args: Any, **kwargs: Any) -> None:
        checkpoint.save_checkpoint(*args, **kwargs)
        raise KilledError

    monkeypatch.setattr(loop, "save_checkpoint", save_then_die)
    with pytest.raises(KilledError):
        run_train(*arguments)
    monkeypatch.undo()


def test_resumes_within_a_mixture_and_masked_borders(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = dataclasses.replace(
        tiny,
        sources=(SourceSettings(str(source), 0.5),),
        document_borders="masked",
        activation_checkpointing=True,
    )
    run_train(settings, no_wandb, tmp_path / "whole", mix, "pivot", 7)
    interrupted(monkeypatch, settings, no_wandb, tmp_path / "cut", mix, "pivot", 7)
    run_train(settings, no_wandb, tmp_path / "cut", mix, "pivot", 7)
    for name in ("metrics.jsonl", "model/model.safetensors", "manifest.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    manifest = read_manifest(tmp_path / "whole")
    assert manifest.counts["sequences"] == 62 + (150 * 16 - 1) // 16
    assert set(manifest.inputs["source-1"]["files"]) == {"more.npy"}
    assert "path" not in manifest.settings["sources"][0]


def test_changed_data_stops_the_resume(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = dataclasses.replace(tiny, sources=(SourceSettings(str(source)),))
    arguments = (settings, no_wandb, tmp_path / "a", mix, "pivot", 7)
    interrupted(monkeypatch, *arguments)
    before = source.read_bytes()
    source.write_bytes(before[:-2] + b"\x05\x00")
    with pytest.raises(MismatchError, match=r"source-1\.files\.more\.npy\.sampled_sha256 changed"):
        run_train(*arguments)
    checkpoints = tmp_path / "a/checkpoints"
    assert any(checkpoints.iterdir())
    source.write_bytes(before)
    run_train(*arguments)
    assert not checkpoints.exists()
    # A finished training is no month of work in danger: it is made again.
    source.write_bytes(before[:-2] + b"\x05\x00")
    run_train(*arguments)
