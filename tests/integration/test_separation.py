"""The score tells directions that a model was trained on from those that it was not.

A small model is trained for a minute or two on lists of translations in four of the twelve
directions, and asked in all of them; a model with random weights stands beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from eval.items import plan_items
from launch.cli import main
from launch.pipeline import DEFAULT_TASK, find_task
from mining.common.seeds import generator
from mining.common.task import read_task
from mining.common.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

TRAINED = (("en", "fr"), ("fr", "en"), ("zh", "ja"), ("ja", "zh"))
N_CONCEPTS = 60
N_DOCUMENTS = 5000
STAGES = ("tokenizer", "tokenize", "count", "words", "pivots", "score", "mix", "train")


def write_documents(path: Path) -> None:
    """Lists of eight translations in one direction each, the directions in turn."""
    task = read_task(find_task(DEFAULT_TASK))
    rng = generator(0, "documents")
    plan = plan_items(task, N_CONCEPTS, None, None)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(N_DOCUMENTS):
            source, target = TRAINED[number % len(TRAINED)]
            concepts = [item.concept for item in plan[source, target] if not item.identical]
            drawn = rng.choice(len(concepts), size=9, replace=False)
            asked = concepts[drawn[-1]]
            text = task.prompt(
                source, target, [concepts[i] for i in drawn[:-1]], asked.words[source]
            )
            text += task.answer_text(asked.words[target])
            lines.write(json.dumps({"id": f"d{number}", "text": text, "lang": source}) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("separation")
    write_documents(folder / "documents.jsonl")
    config = {
        "out": str(folder / "run"),
        "corpus": {"path": str(folder / "documents.jsonl"), "languages": ["en", "fr", "zh", "ja"]},
        "tokenizer": {"model_type": "bpe", "vocab_size": 900, "character_coverage": 1.0},
        "count": {"top_items": 256},
        "mix": {
            "arms": ["original"],
            "budget_tokens": 380_000,
            "languages": {"fr": 0.25, "zh": 0.25, "ja": 0.25},
            "fill_language": "en",
            "max_pool_share": 1.0,
        },
        "train": {
            "model": {"hidden_size": 128, "n_layers": 3, "n_heads": 4, "max_length": 256},
            "sequence_length": 128,
            "global_batch_sequences": 16,
            "learning_rate": 4.0e-3,
            "validate_every": None,
        },
        "models": {"untrained": str(folder / "untrained")},
        "evaluate": {"draws": 2, "max_items": N_CONCEPTS, "forms": ["source"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for stage in STAGES:
        assert main([stage, "--config", str(folder / "config.yaml")]) == 0
    tokenizer = load_tokenizer(folder / "run" / "tokenizer")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
        )
    ).save_pretrained(folder / "untrained")
    text = (folder / "run" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "untrained" / "tokenizer.json").write_text(text, encoding="utf-8")
    evaluate = ["evaluate", "--config", str(folder / "config.yaml"), "--only"]
    assert main([*evaluate, "[original]"]) == 0
    wider = ["--evaluate.max_items", "300", "--evaluate.confidence", "0.99"]
    assert main([*evaluate, "[untrained]", *wider]) == 0
    return folder / "run" / "evaluate"


def test_trained_directions_stand_apart_from_held_out_ones(run: Path) -> None:
    directions = json.loads((run / "original" / "0" / "summary.json").read_text())["directions"]
    trained = [directions[f"{a}-{b}"] for a, b in TRAINED]
    held_out = [
        value for name, value in directions.items() if tuple(name.split("-")) not in TRAINED
    ]
    assert len(held_out) == 8
    for measure in ("score", "accuracy"):
        lowest = min(value[measure]["low"] for value in trained)
        assert lowest > max(value[measure]["high"] for value in held_out), measure
    assert min(value["score"]["low"] for value in trained) > 0
    assert np.mean([value["accuracy"]["mean"] for value in held_out]) < 0.25


def test_a_random_model_scores_nothing(run: Path) -> None:
    summary = json.loads((run / "untrained" / "0" / "summary.json").read_text())
    assert summary["chance"] == pytest.approx(0.1)
    assert summary["score"]["low"] <= 0 <= summary["score"]["high"]
    assert summary["accuracy"]["low"] <= 0.1 <= summary["accuracy"]["high"]


def test_a_series_of_checkpoints_is_drawn_against_step(run: Path, tmp_path: Path) -> None:
    models = run.parent.parent
    for step in (10, 200):
        shutil.copytree(models / "untrained", tmp_path / "series" / f"step-{step}")
    command = ["evaluate", "--models.series", str(tmp_path / "series"), "--only", "[series]"]
    small = ["--task", "words", "--evaluate.max_items", "3", "--evaluate.draws", "1"]
    assert main([*command, *small, "--out", str(tmp_path / "out")]) == 0
    found = pd.read_parquet(tmp_path / "out" / "compare" / "series.parquet")
    assert found[found["measure"] == "score"]["step"].tolist() == [10, 200]
    assert (tmp_path / "out" / "compare" / "figures" / "series.png").stat().st_size > 1000
