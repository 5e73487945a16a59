"""What makes a step faster and changes no loss: torch.compile, bf16 on a GPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mining.common.manifest import read_manifest
from tests.training.outputs import lines
from training.settings import TrainSettings, WandbSettings
from training.train import run_train


@pytest.mark.slow
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_torch_compile(
    activation_checkpointing: bool, mix: Path, tiny: TrainSettings, no_wandb: WandbSettings,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on CPU needs a C++ compiler: install g++")
    from transformers.models.llama import modeling_llama

    masks = []
    make_mask = modeling_llama.create_causal_mask

    def watched(*args: Any, **kwargs: Any) -> Any:
        masks.append(make_mask(*args, **kwargs))
        return masks[-1]

    plain = dataclasses.replace(tiny, duration="4steps", log_every=1)
    run_train(plain, no_wandb, tmp_path / "plain", mix, "pivot", 7)
    compiled = dataclasses.replace(
        plain, compile=True, activation_checkpointing=activation_checkpointing
    )
    monkeypatch.setattr(modeling_llama, "create_causal_mask", watched)
    torch._dynamo.utils.counters.clear()
    run_train(compiled, no_wandb, tmp_path / "compiled", mix, "pivot", 7)
    # Flash kernels take no mask, and must not be given one.
    assert masks
    assert all(mask is None for mask in masks)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    pairs = zip(lines(tmp_path / "compiled"), lines(tmp_path / "plain"), strict=True)
    assert all(mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4) for mine, theirs in pairs)


@pytest.mark.gpu
def test_bf16_on_a_gpu(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    on_cpu = dataclasses.replace(tiny, device="cpu")
    run_train(on_cpu, no_wandb, tmp_path / "cpu", mix, "pivot", 7)
    run_train(tiny, no_wandb, tmp_path / "gpu", mix, "pivot", 7)
    counts = read_manifest(tmp_path / "gpu").counts
    assert counts["device"] == "cuda"
    assert counts["precision"] == "bf16"
    for mine, theirs in zip(lines(tmp_path / "gpu"), lines(tmp_path / "cpu"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=0.05)
