"""Trainings that continue a checkpoint: of ours, of transformers, and ones that do not fit."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from mining.common.errors import InputError, MismatchError, SettingsError
from mining.common.manifest import read_manifest
from tests.training.outputs import lines
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train


def test_continues_from_a_checkpoint_folder(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    again = dataclasses.replace(
        tiny, model=ModelSettings(path=str(unbroken / "model")), duration="2steps"
    )
    run_train(again, no_wandb, tmp_path / "a", mix, "pivot", 0)
    first = read_manifest(unbroken)
    manifest = read_manifest(tmp_path / "a")
    assert "model.safetensors" in manifest.inputs["model"]["files"]
    start = {r.get("lang", "all"): r["loss"] for r in lines(tmp_path / "a") if r["step"] == 0}
    assert start == first.counts["validation_loss"]
    assert str(unbroken) not in (tmp_path / "a/model/config.json").read_text()


def test_a_transformers_checkpoint_continues_like_ours(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    """Written by transformers alone, its weights in several files."""
    theirs = tmp_path / "theirs"
    net = transformers.AutoModelForCausalLM.from_pretrained(unbroken / "model")
    net.save_pretrained(theirs, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(unbroken / "model" / name, theirs / name)
    assert len(list(theirs.glob("model-*.safetensors"))) > 1
    for name, path in (("a", unbroken / "model"), ("b", theirs)):
        model = ModelSettings(path=str(path))
        again = dataclasses.replace(tiny, model=model, duration="6steps", log_every=1)
        run_train(again, no_wandb, tmp_path / name, mix, "pivot", 3)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_goes_on_with_optimizer_state_only_of_a_whole_checkpoint(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    """The moments are used, and only those of a whole checkpoint."""
    whole = dataclasses.replace(tiny, snapshots=(10,), keep_every=10, validate_every=None)
    run_train(whole, no_wandb, tmp_path / "first", mix, "pivot", 7)
    kept = tmp_path / "first/checkpoints/step-00000010"
    path = str(tmp_path / "first/snapshots/step-000010")
    model = ModelSettings(path=path, optimizer=str(kept))
    again = dataclasses.replace(tiny, model=model, duration="2steps", validate_every=None)
    run_train(again, no_wandb, tmp_path / "a", mix, "pivot", 7)
    fresh = dataclasses.replace(again, model=ModelSettings(path=path))
    run_train(fresh, no_wandb, tmp_path / "b", mix, "pivot", 7)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] != weights[1]
    shard = kept / "shard-00000-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"step-00000010: not a whole checkpoint \(shard-00000"):
        run_train(again, no_wandb, tmp_path / "c", mix, "pivot", 7)


def test_a_checkpoint_of_another_tokenizer_is_refused(
    make_mix: Callable[..., Path], tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    unbroken: Path,
) -> None:  # fmt: skip
    other = make_mix(tmp_path / "mix", vocabulary=70)
    again = dataclasses.replace(tiny, model=ModelSettings(path=str(unbroken / "model")))
    with pytest.raises(MismatchError, match="tokenizer fingerprint"):
        run_train(again, no_wandb, tmp_path / "a", other, "pivot", 0)


def test_sequences_longer_than_the_checkpoint_takes(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    again = dataclasses.replace(
        tiny, model=ModelSettings(path=str(unbroken / "model")), sequence_length=65
    )
    with pytest.raises(SettingsError, match="sequence_length"):
        run_train(again, no_wandb, tmp_path / "a", mix, "pivot", 0)
