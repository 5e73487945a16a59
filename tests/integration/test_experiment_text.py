"""`pivots experiment text` from the command line, on a generated world read as a plain corpus."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from launch.cli import main
from mining.settings import WorldSettings
from mining.world import run_world

pytestmark = pytest.mark.slow

REAL = Path(__file__).parents[2] / "configs" / "experiment" / "real.yaml"
ARMS = ["random", "pivot", "low-pivot"]
WORLD = WorldSettings(
    languages=2, topics=2, concepts_per_topic=14, training_per_topic=6, pivots=14,
    names_per_language=4, pool_documents=1200, document_tokens=32, max_pair_count=10,
    format_passes=2, identity_passes=2, neutral_words=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    run_world(WORLD, folder / "world", 0)
    config = {
        "out": str(folder / "run"),
        "seeds": [0, 1],
        "task": str(folder / "world" / "task.yaml"),
        "corpus": {"path": str(folder / "world" / "documents"), "languages": ["la", "lb"]},
        "tokenizer": {"model_type": "word", "vocab_size": 1000, "character_coverage": 1.0},
        "count": {"top_items": 512},
        "words": {"keep_punctuation": True},
        "mix": {"arms": ARMS, "budget_tokens": 9000},
        "train": {
            "model": {
                "hidden_size": 16, "n_layers": 2, "n_heads": 2, "intermediate_size": 32,
                "max_length": 32,
            },
            "sequence_length": 32, "global_batch_sequences": 8, "duration": "20 steps",
            "validation_tokens": 2000, "snapshots": [10],
        },
        "evaluate": {"draws": 1, "min_doc_freq": 3, "bootstrap_samples": 100},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["experiment", "text", "--config", str(path)]) == 0
    return folder / "run"


def test_page_tables_and_conclusion(root: Path) -> None:
    folder = root / "experiment"
    summary = json.loads((folder / "summary.json").read_text())
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert summary["conclusion"] in page
    assert summary["conclusion"] in (folder / "results.md").read_text(encoding="utf-8")
    effects = pd.read_parquet(folder / "effects.parquet")
    assert set(effects["cell"]) == {"all", "apart", "together"}
    cells = pd.read_parquet(folder / "cells.parquet")
    assert set(cells["arm"]) == set(ARMS)
    means = cells[cells["cell"] == "all"].groupby("arm")["accuracy"].mean()
    primary = summary["primary"]
    assert primary["difference"] == pytest.approx(means["pivot"] - means["random"])
    assert summary["items"]["all"] == summary["items"]["apart"] + summary["items"]["together"]
    budgets = pd.read_parquet(folder / "budgets.parquet")
    assert sorted(set(budgets["tokens"])) == [10 * 256, 20 * 256]
    final = budgets[budgets["tokens"] == 20 * 256]["difference"]
    assert final.mean() == pytest.approx(primary["difference"])
    for name in ("cells", "effects", "seeds", "budget"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000


def test_seeds_share_what_is_mined_and_draw_mixes_of_their_own(root: Path) -> None:
    assert not list((root / "seeds").rglob("count"))
    chosen = {}
    for seed in ("0", "1"):
        arms = json.loads((root / "seeds" / seed / "mix" / "arms.json").read_text())["arms"]
        tokens = {arm: {k: v["tokens"] for k, v in arms[arm]["languages"].items()} for arm in ARMS}
        assert tokens["pivot"] == tokens["random"] == tokens["low-pivot"]
        table = pd.read_parquet(root / "seeds" / seed / "mix" / "random" / "documents.parquet")
        chosen[seed] = set(table["id"])
    assert chosen["0"] != chosen["1"]


def test_a_finished_experiment_is_not_run_again(root: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("manifest.json")}
    assert main(["experiment", "text", "--config", str(root / "config.yaml")]) == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("manifest.json")} == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--corpus.path", "null"], "expected a folder of documents"),
        (["--mix.arms", "[random, pivot, oracle]"], "a corpus has no such arm"),
        (["--mix.arms", "[pivot, low-pivot]"], "found no random"),
        (["--experiment.vary", '{"mix.budget_tokens": [1]}'], "expected none for real text"),
    ],
)
def test_what_real_text_cannot_have_is_said(
    extra: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", "text", "--config", str(REAL), "--out", str(tmp_path)]
    assert main([*command, *extra]) == 2
    assert message in capsys.readouterr().err
