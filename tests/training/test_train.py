"""The stage as a whole: outputs, export, what it refuses, what it learns, a score on the way."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers

from mining.common.errors import InputError, SettingsError
from mining.common.lineage import verify_outputs
from mining.common.manifest import read_manifest
from mining.common.tokenizer import load_tokenizer
from tests.training.outputs import contents, lines
from training.model import build_model
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train


def test_outputs(unbroken: Path, tiny: TrainSettings) -> None:
    verify_outputs(unbroken)
    manifest = read_manifest(unbroken, "train")
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json",
            "metrics.jsonl"} <= set(manifest.outputs)  # fmt: skip
    assert "timings.jsonl" not in manifest.outputs
    assert manifest.counts["steps"] == 24
    assert manifest.counts["tokens"] == 24 * 4 * 16
    records = lines(unbroken)
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == [4, 8, 12, 16, 20, 24]
    assert set(train[0]) == {"kind", "step", "tokens", "loss", "lr", "grad_norm"}
    validation = [r for r in records if r["kind"] == "validation"]
    assert [(r["step"], r.get("lang")) for r in validation] == [
        (step, lang) for step in (0, 12, 24) for lang in ("en", "fr", None)
    ]
    assert all(r["tokens"] == r["step"] * 64 for r in records)
    assert manifest.counts["train_loss"] == train[-1]["loss"] < train[0]["loss"]
    last = {r.get("lang", "all"): r for r in validation[-3:]}
    assert manifest.counts["validation_loss"] == {k: r["loss"] for k, r in last.items()}
    bits = {k: r["bits_per_byte"] for k, r in last.items()}
    assert manifest.counts["validation_bits_per_byte"] == bits
    # Both languages have 79 predicted tokens; all together is not the mean of the two ratios.
    nats = {k: r["loss"] * 79 for k, r in last.items()}
    assert last["all"]["loss"] == pytest.approx((nats["en"] + nats["fr"]) / 158, abs=1e-6)
    n_bytes = sum(nats[k] / math.log(2) / bits[k] for k in ("en", "fr"))
    expected = (nats["en"] + nats["fr"]) / math.log(2) / n_bytes
    assert bits["all"] == pytest.approx(expected, abs=1e-5)
    assert not (unbroken / ".work").exists()


def test_export_loads_in_plain_transformers(unbroken: Path, mix: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(unbroken / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    ours = load_tokenizer(mix / "tokenizer")
    text = "w3 w4 nothing w59 w2"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert GenerationConfig.from_pretrained(unbroken / "model").eos_token_id == ours.eos_id
    saved = load_file(unbroken / "model" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name])
    # The same logits as the model in training gave, bit for bit.
    settings = ModelSettings(path=str(unbroken / "model"))
    trained = build_model(settings, ours, 0)
    ids = torch.arange(2, 32)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, trained(input_ids=ids).logits)
    # The last validation loss, computed again from the export by other means.
    tokens = np.fromfile(mix / "validation" / "en.ds", dtype="<u2").astype(np.int64)
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = torch.from_numpy(tokens[start : start + 17])[None]
        with torch.no_grad():
            logits = model(input_ids=window[:, :-1]).logits
        total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    expected = read_manifest(unbroken).counts["validation_loss"]["en"]
    assert total / (len(tokens) - 1) == pytest.approx(expected, abs=2e-6)


def test_done_before_and_changed_settings(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    short = dataclasses.replace(tiny, duration="3steps")
    run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    before = contents(tmp_path / "a")
    with caplog.at_level(logging.INFO, logger="pivots"):
        run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    assert "already done" in caplog.text
    faster = dataclasses.replace(short, learning_rate=0.01)
    with caplog.at_level(logging.INFO, logger="pivots"):
        run_train(faster, no_wandb, tmp_path / "a", mix, "pivot", 0)
    assert "settings.learning_rate changed: 0.003 -> 0.01" in caplog.text
    after = contents(tmp_path / "a")
    assert before["model/model.safetensors"] != after["model/model.safetensors"]


def test_what_fails_early_touches_nothing_and_lets_go_of_the_folder(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    short = dataclasses.replace(tiny, duration="1step")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "3")
        with pytest.raises(SettingsError, match=r"found 4, expected a multiple of 3 process\(es\)"):
            run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert not (tmp_path / "a").exists()
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(SettingsError, match="configured for FSDP") as caught:
            run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 7)
    # While the error, with its frames, is still held.
    run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert caught.value.exit_code
    verify_outputs(tmp_path / "a")


def test_missing_arm_and_unfinished_mix(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no arm 'random'; its arms are pivot"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "random", 0)
    with pytest.raises(InputError, match="does not exist"):
        run_train(tiny, no_wandb, tmp_path / "a", tmp_path / "nowhere", "pivot", 0)


def test_accumulation_gives_the_same_curve(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    split = dataclasses.replace(tiny, micro_batch_sequences=1)
    run_train(split, no_wandb, tmp_path / "a", mix, "pivot", 7)
    for mine, theirs in zip(lines(tmp_path / "a"), lines(unbroken), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_learns_a_tiny_text(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    longer = dataclasses.replace(tiny, duration="400steps", learning_rate=1e-2, log_every=50)
    run_train(longer, no_wandb, tmp_path / "a", mix, "pivot", 0)
    counts = read_manifest(tmp_path / "a").counts
    # Every word follows from the one before; only the first of each document must be guessed,
    # which costs ln(28) / 16 nats a token, and the 15th word looks like any other.
    assert counts["train_loss"] < 0.5
    assert max(counts["validation_loss"].values()) < 0.6


def test_runs_in_a_thread(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    short = dataclasses.replace(tiny, duration="1step")
    thread = threading.Thread(
        target=run_train, args=(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    )
    thread.start()
    thread.join()
    verify_outputs(tmp_path / "a")


def test_a_score_is_taken_on_the_way(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    """The score that the launcher gives: here the largest logit after the first word."""

    class Largest:
        files: ClassVar = {"tokenizer": mix / "tokenizer" / "tokenizer.json"}

        def __call__(self, net: Any, tokenizer: Any) -> dict[str, float]:
            net.eval()
            ids = torch.tensor([tokenizer.encode("w2")])
            with torch.no_grad():
                return {"largest": float(net(input_ids=ids).logits.max())}

    settings = dataclasses.replace(tiny, score_every=10)
    run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7, Largest())
    scores = [r for r in lines(tmp_path / "a") if r["kind"] == "score"]
    assert [r["step"] for r in scores] == [0, 10, 20, 24]
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a/model")
    tokenizer = load_tokenizer(tmp_path / "a/model")
    last = Largest()(net, tokenizer)["largest"]
    assert scores[-1]["largest"] == pytest.approx(last, abs=1e-5)
    assert "task" in read_manifest(tmp_path / "a").inputs
    # Looking changes nothing.
    weights = [(f / "model/model.safetensors").read_bytes() for f in (tmp_path / "a", unbroken)]
    assert weights[0] == weights[1]
