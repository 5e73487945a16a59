"""The score on the way of a training is that of the evaluate stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval.evaluate import run_evaluate
from eval.live_score import LiveScore
from eval.settings import EvaluateSettings
from mining.common.errors import InputError
from mining.common.task import read_task
from mining.common.tokenizer import load_tokenizer


def test_equals_the_stage(
    tmp_path: Path, word_task: Callable[..., Path], word_level: Any, tiny_model: Any
) -> None:
    path = word_task(tmp_path / "task", 9)
    task, folder = read_task(path), tmp_path / "model"
    texts = [task.prompt("en", "fr", [c], c.words["en"]) for c in task.concepts]
    texts += [task.prompt("fr", "en", [c], c.words["fr"]) for c in task.concepts]
    word_level(texts, folder)
    tokenizer = load_tokenizer(folder)
    net = tiny_model("llama", tokenizer.vocab_size)
    net.save_pretrained(folder)

    settings = EvaluateSettings(draws=3, examples=2, bootstrap_samples=10)
    live = LiveScore(settings, path, 4, seed=5)
    found = live(net, tokenizer)
    assert found == live(net, tokenizer)
    assert {p.name for p in live.files.values()} == {"task.yaml", "concepts.tsv"}
    same = EvaluateSettings(
        draws=1, shared_draws=True, examples=2, forms=("source",), max_items=4, bootstrap_samples=10
    )
    run_evaluate(same, tmp_path / "out", str(folder), path, None, 5)
    items = pd.read_parquet(tmp_path / "out" / "items.parquet")
    scored = items.score.notna()
    assert found["items"] == scored.sum() > 0
    assert found["score"] == pytest.approx(items.score[scored].mean(), abs=1e-4)
    assert found["accuracy"] == pytest.approx(items.correct[scored].mean())


def test_a_task_without_items_is_an_error(
    tmp_path: Path, word_task: Callable[..., Path], word_level: Any, tiny_model: Any
) -> None:
    path = word_task(tmp_path / "task", 1)
    tokenizer = word_level(["same"])
    with pytest.raises(InputError, match="no item to score"):
        LiveScore(EvaluateSettings(), path, 4, seed=0)(tiny_model("llama", 9), tokenizer)
