"""A small mix, made in code the way the `mix` stage lays it out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from mining.common.stage import begin
from mining.common.token_file import write_token_file
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train

VOCABULARY = 60
NO_WANDB = WandbSettings(mode="disabled")


def write_tokenizer(folder: Path, vocabulary: int = VOCABULARY) -> None:
    """A word-level tokenizer: entry 0 ends a text, entry 1 is unknown, then w2, w3, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {"</s>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, vocabulary)}
    engine = Tokenizer(WordLevel(entries, unk_token="<unk>"))
    engine.pre_tokenizer = WhitespaceSplit()
    engine.add_special_tokens(["</s>", "<unk>"])
    engine.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_mix(folder: Path, n_documents: int = 150, vocabulary: int = VOCABULARY) -> Path:
    """A mix with one arm, "pivot", whose documents count upwards in one of two languages."""
    run = begin("mix", folder, {"n": n_documents}, {})
    assert run is not None
    write_tokenizer(folder / "tokenizer", vocabulary)
    rng = np.random.default_rng(0)

    def documents(count: int, low: int, high: int) -> list[np.ndarray]:
        starts = rng.integers(low, high, size=count)
        return [
            (low + (start - low + np.arange(15)) % (high - low)).astype(np.uint32)
            for start in starts
        ]

    middle = vocabulary // 2
    train = documents(n_documents // 2, 2, middle) + documents(n_documents // 2, middle, vocabulary)
    order = rng.permutation(len(train))
    write_token_file(folder / "pivot" / "tokens.ds", [train[i] for i in order], vocabulary, 0)
    for lang, low, high in (("en", 2, middle), ("fr", middle, vocabulary)):
        write_token_file(
            folder / "validation" / f"{lang}.ds", documents(5, low, high), vocabulary, 0
        )
    run.finish({})
    return folder


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix") / "mix")


@pytest.fixture(scope="session")
def make_mix() -> Callable[..., Path]:
    return write_mix


@pytest.fixture(scope="session")
def no_wandb() -> WandbSettings:
    return NO_WANDB


@pytest.fixture(scope="session")
def tiny() -> TrainSettings:
    return TrainSettings(
        model=ModelSettings(hidden_size=32, n_layers=2, n_heads=2, max_length=64),
        sequence_length=16,
        global_batch_sequences=4,
        duration="24steps",
        learning_rate=3e-3,
        checkpoint_every=10,
        log_every=4,
        validate_every=12,
    )


@pytest.fixture(scope="session")
def unbroken(
    mix: Path,
    tiny: TrainSettings,
    no_wandb: WandbSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A training that ran in one go, seed 7; to be read only."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run_train(tiny, no_wandb, out, mix, "pivot", 7)
    return out
