"""A world whose pivots tie nothing together: the page must say that nothing is shown."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from launch.cli import main

pytestmark = pytest.mark.slow


def test_in_a_broken_world_the_page_says_that_there_is_no_effect(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = {
        "out": str(out),
        "seeds": [0, 1, 2],
        "world": {
            "broken_pivots": True,
            "languages": 2, "topics": 2, "concepts_per_topic": 20, "training_per_topic": 12,
            "pivots": 24, "names_per_language": 4, "pool_documents": 3000, "document_tokens": 32,
            "max_pair_count": 10, "format_passes": 8, "identity_passes": 2, "neutral_words": 8,
        },
        "tokenizer": {"model_type": "word", "vocab_size": 1000, "character_coverage": 1.0},
        "count": {"top_items": 512, "sources": ["pool"]},
        "words": {"keep_punctuation": True},
        "mix": {
            "arms": ["random", "pivot", "broken-pivot"], "budget_tokens": 24000,
            "always_sources": ["codeswitch", "format", "identity"],
        },
        "train": {
            "model": {
                "hidden_size": 32, "n_layers": 2, "n_heads": 2, "intermediate_size": 64,
                "max_length": 32,
            },
            "sequence_length": 32, "global_batch_sequences": 8, "learning_rate": 6.0e-3,
            "validation_tokens": 1000,
        },
        "evaluate": {"draws": 1, "forms": ["source"], "bootstrap_samples": 100},
        "trace": {"bootstrap_samples": 100},
        "intervene": {"max_items": 8, "bootstrap_samples": 100},
        "attribute": {"bootstrap_samples": 100},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["experiment", "world", "--config", str(path)]) == 0

    # Mining finds the pivots, each beside one concept's words, and the mixes differ in them ...
    mining = pd.read_parquet(out / "experiment" / "mining.parquet")
    whole = mining[(mining["definition"] == "specificity") & (mining["rule"] == "as set")]
    assert (whole["recall"] > 0.5).all()
    arms = json.loads((out / "seeds" / "0" / "mix" / "arms.json").read_text())["arms"]
    assert arms["pivot"]["planted_share"] > 2 * arms["random"]["planted_share"]
    truth = json.loads((out / "seeds" / "0" / "world" / "truth.json").read_text())
    assert all(of["la"] != of["lb"] for of in truth["pivots"].values())
    # ... but they tie no words together, and the page says so.
    summary = json.loads((out / "experiment" / "summary.json").read_text())
    assert summary["verdict"] == "open"
    assert summary["conclusion"].startswith("No effect shown")
    page = html.unescape((out / "experiment" / "report.html").read_text(encoding="utf-8"))
    assert summary["conclusion"] in page
    assert "Not shown" in page
