"""Models: the named sizes, the styles, what decays, what is continued."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from launch.config import parse_config
from mining.common.errors import (
    InputError,
    MismatchError,
    MissingDependencyError,
    SettingsError,
)
from mining.common.manifest import read_manifest
from mining.common.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY
from training.model import (
    build_model,
    check_attention,
    from_config,
    load_pretrained,
    make_optimizer,
    model_config,
    parameters,
)
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train

# Vocabulary and parameters; llama-7b, olmo-1b and olmo-7b are what the published models have.
SIZES = {
    "llama-1m": (8_000, 1_100_448),
    "llama-10m": (16_000, 10_522_880),
    "llama-50m": (32_000, 48_015_872),
    "llama-125m": (50_304, 123_587_328),
    "llama-350m": (50_304, 359_842_816),
    "llama-1b": (50_304, 1_176_832_000),
    "llama-3b": (32_000, 2_914_667_520),
    "llama-7b": (32_000, 6_738_415_616),
    "olmo-1m": (8_000, 1_099_776),
    "olmo-10m": (16_000, 10_518_528),
    "olmo-125m": (50_304, 123_568_128),
    "olmo-350m": (50_304, 359_792_640),
    "olmo-1b": (50_304, 1_176_764_416),
    "olmo-7b": (50_304, 6_888_095_744),
}


def test_every_named_size_is_known() -> None:
    files = (REPOSITORY / "configs" / "models").glob("*.yaml")
    assert {path.stem for path in files} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes(name: str) -> None:
    path = REPOSITORY / "configs" / "models" / f"{name}.yaml"
    settings = ModelSettings(**yaml.safe_load(path.read_text())["train"]["model"])
    vocabulary, expected = SIZES[name]
    with torch.device("meta"):
        model = from_config(model_config(settings, vocabulary, 0))
    assert parameters(model) == expected
    assert model.config.model_type == name.split("-")[0]
    assert f"{expected:,} parameters with a vocabulary of {vocabulary:,}" in path.read_text()


def test_a_size_goes_over_another_configuration(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("train: {learning_rate: 0.5, model: {n_layers: 99, init_std: 0.5}}")
    size = REPOSITORY / "configs" / "models" / "olmo-1m.yaml"
    train = parse_config(["--config", str(mine), "--config", str(size)], "train").train
    assert (train.model.style, train.model.n_layers) == ("olmo", 3)
    assert (train.learning_rate, train.model.init_std) == (0.5, 0.5)


@pytest.mark.parametrize("style", ["llama", "olmo", "olmo2"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_decay(style: str, tied: bool) -> None:
    settings = ModelSettings(
        hidden_size=16, n_layers=1, n_heads=2, tie_embeddings=tied,
        style=style,  # type: ignore[arg-type]
    )  # fmt: skip
    model = from_config(model_config(settings, 40, 0))
    train = TrainSettings(model=settings, weight_decay=0.3)
    optimizer = make_optimizer(model, train, torch.device("cpu"))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        matrix = "proj" in name or name == "lm_head.weight"
        assert decay.pop(id(parameter)) == (0.3 if matrix else 0.0), name
    assert not decay


@pytest.fixture(scope="module")
def one_batch(make_mix: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mix of three sequences: every step of three sees them all."""
    folder = tmp_path_factory.mktemp("three") / "mix"
    return make_mix(folder, n_documents=5)  # type: ignore[operator, no-any-return]


def test_two_halves_with_the_optimizers_state_are_one_training(
    one_batch: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    common = dataclasses.replace(tiny, global_batch_sequences=3, min_lr_share=0.0, log_every=1)
    whole = dataclasses.replace(common, duration="16steps")
    run_train(whole, no_wandb, tmp_path / "whole", one_batch, "pivot", 7)
    first = dataclasses.replace(
        common, duration="8steps", schedule_steps=16, checkpoint_every=8, keep_every=8
    )
    run_train(first, no_wandb, tmp_path / "first", one_batch, "pivot", 7)
    model = ModelSettings(
        path=str(tmp_path / "first/model"),
        optimizer=str(tmp_path / "first/checkpoints/step-00000008"),
    )
    second = dataclasses.replace(common, duration="8steps", start_step=8, model=model)
    run_train(second, no_wandb, tmp_path / "second", one_batch, "pivot", 7)
    cold = dataclasses.replace(second, model=dataclasses.replace(model, optimizer=None))
    run_train(cold, no_wandb, tmp_path / "cold", one_batch, "pivot", 7)

    def curve(out: Path) -> list[tuple[float, float]]:
        records = map(json.loads, (tmp_path / out / "metrics.jsonl").read_text().splitlines())
        return [(r["lr"], r["loss"]) for r in records if r["kind"] == "train"]

    parts = curve(tmp_path / "first") + curve(tmp_path / "second")
    for mine, theirs in zip(parts, curve(tmp_path / "whole"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    # Without the moments it is another training.
    assert abs(curve(tmp_path / "cold")[-1][1] - parts[-1][1]) > 1e-4
    assert "optimizer" in read_manifest(tmp_path / "second").inputs

    # Another model's state.
    wider = dataclasses.replace(first, model=dataclasses.replace(tiny.model, hidden_size=64))
    run_train(wider, no_wandb, tmp_path / "wider", one_batch, "pivot", 7)
    other = dataclasses.replace(model, optimizer=str(tmp_path / "wider/checkpoints/step-00000008"))
    wrong = dataclasses.replace(second, model=other)
    with pytest.raises(MismatchError, match=r"3840 elements for model\.embed_tokens\.weight"):
        run_train(wrong, no_wandb, tmp_path / "b", one_batch, "pivot", 7)


def test_a_checkpoint_saved_by_transformers_continues_as_ours(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    short = dataclasses.replace(
        tiny, duration="3steps", model=dataclasses.replace(tiny.model, style="olmo")
    )
    run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    ours, theirs = tmp_path / "a/model", tmp_path / "theirs"
    AutoModelForCausalLM.from_pretrained(ours).save_pretrained(theirs)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (theirs / name).write_bytes((ours / name).read_bytes())
    for name, folder in (("ours", ours), ("hf", theirs)):
        again = dataclasses.replace(short, model=ModelSettings(path=str(folder)))
        run_train(again, no_wandb, tmp_path / name, mix, "pivot", 0)
    files = [(tmp_path / n / "model/model.safetensors").read_bytes() for n in ("ours", "hf")]
    assert files[0] == files[1]


def test_weights_that_are_not_all_there_are_no_model(tmp_path: Path) -> None:
    """transformers draws the others at random, and makes as many layers as it is asked for."""
    settings = ModelSettings(hidden_size=8, n_layers=2, n_heads=2, max_length=16)
    from_config(model_config(settings, 99, 0)).save_pretrained(tmp_path)
    load_pretrained(tmp_path, None, torch.float32)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = json.loads(config.read_text())
    for layers in (3, 1 << 40):
        config.write_text(json.dumps(good | {"num_hidden_layers": layers}))
        with pytest.raises(InputError, match=f"asks for {layers} layers, the weights have 2"):
            load_pretrained(tmp_path, None, torch.float32)
    for key, value in (("mlp_bias", 0), ("num_attention_heads", 0), ("hidden_size", None)):
        config.write_text(json.dumps(good | {key: value}))
        with pytest.raises(InputError, match="not a causal language model"):
            load_pretrained(tmp_path, None, torch.float32)
    config.write_text(json.dumps(good))
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 that config\.json asks for \(model\.layers\.1"):
        load_pretrained(tmp_path, None, torch.float32)


@pytest.mark.parametrize(("precision", "device"), [("float32", "cuda"), ("bf16", "cpu")])
def test_flash_attention_needs_bf16_on_a_gpu(precision: str, device: str) -> None:
    asked = ModelSettings(attention="flash_attention_2")
    with pytest.raises(SettingsError, match=f"expected 'sdpa' with {precision} on {device}"):
        check_attention(asked, precision, torch.device(device))
    check_attention(asked, "bf16", torch.device("cuda"))
    check_attention(ModelSettings(), precision, torch.device(device))


def test_flash_attention_needs_its_package(mix: Path) -> None:
    tokenizer = load_tokenizer(mix / "tokenizer")
    with pytest.raises(MissingDependencyError, match="flash-attn"):
        build_model(ModelSettings(attention="flash_attention_2"), tokenizer, 0)


def test_an_optimizer_state_belongs_to_a_checkpoint() -> None:
    with pytest.raises(SettingsError, match="optimizer: found 'x', expected null"):
        ModelSettings(optimizer="x")
