"""`pivots experiment world` from the command line on a tiny world with two seeds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from launch.cli import main
from mining.common.token_file import open_token_file
from mining.common.tokenizer import load_tokenizer
from mining.planted import read_planted

pytestmark = pytest.mark.slow

WORLD = Path(__file__).parents[2] / "configs" / "experiment" / "world.yaml"
ARMS = ["random", "pivot", "low-pivot", "oracle", "broken-pivot"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experiment") / "run"
    config = {
        "out": str(out),
        "seeds": [0, 1],
        "world": {
            "languages": 2, "topics": 2, "concepts_per_topic": 14, "training_per_topic": 6,
            "pivots": 14, "names_per_language": 4, "pool_documents": 1200, "document_tokens": 32,
            "max_pair_count": 10, "format_passes": 2, "identity_passes": 2, "neutral_words": 8,
        },
        "tokenizer": {"model_type": "word", "vocab_size": 1000, "character_coverage": 1.0},
        "count": {"top_items": 512, "sources": ["pool"]},
        "words": {"keep_punctuation": True},
        "mix": {
            "arms": ARMS, "budget_tokens": 9000,
            "always_sources": ["codeswitch", "format", "identity"],
        },
        "train": {
            "model": {
                "hidden_size": 16, "n_layers": 2, "n_heads": 2, "intermediate_size": 32,
                "max_length": 32,
            },
            "sequence_length": 32, "global_batch_sequences": 8, "duration": "40 steps",
            "validation_tokens": 2000,
        },
        "evaluate": {"draws": 1, "bootstrap_samples": 100},
        "trace": {"bootstrap_samples": 100},
        "attribute": {"bootstrap_samples": 100},
        "wandb": {"mode": "disabled"},
        "experiment": {"vary": {"world.concepts_per_pivot": [2], "mix.top_share": [0.8]}},
    }  # fmt: skip
    path = out.parent / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["experiment", "world", "--config", str(path)]) == 0
    return out


def test_page_tables_and_conclusion(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "experiment"
    summary = json.loads((folder / "summary.json").read_text())
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert summary["conclusion"].split("[")[0][:60] in html
    quoted = (folder / "results.md").read_text(encoding="utf-8")
    assert summary["conclusion"] in quoted
    assert "| p1c0 |" in quoted
    effects = pd.read_parquet(folder / "effects.parquet")
    assert set(effects["cell"]) == {"p1c0", "p0c0", "p1c1", "p0c1", "train"}
    assert (effects["n_seeds"] == 2).all()
    cells = pd.read_parquet(folder / "cells.parquet")
    assert set(cells["arm"]) == set(ARMS)
    # An effect is the difference of the cells' means.
    row = effects[
        (effects["arm"] == "pivot") & (effects["reference"] == "random")
        & (effects["cell"] == "p1c0") & (effects["measure"] == "accuracy")
    ].iloc[0]  # fmt: skip
    means = cells[cells["cell"] == "p1c0"].groupby("arm")["accuracy"].mean()
    assert row["difference"] == pytest.approx(means["pivot"] - means["random"])
    doses = pd.read_parquet(folder / "doses.parquet")
    assert set(doses["reference"]) == {"random", "broken-pivot"}
    by_key = {key: set(part["value"].dropna()) for key, part in doses.groupby("key")}
    assert by_key == {"world.concepts_per_pivot": {1.0, 2.0}, "mix.top_share": {0.8}}
    # A dose is the mean over its seeds, and a wider choice is poorer in pivots.
    runs = pd.read_parquet(folder / "dose_runs.parquet")
    own = runs[(runs["key"] == "mix.top_share") & (runs["reference"] == "random")]
    rate = own.groupby("base")[["planted_share", "pivot_rate"]].mean()
    assert (rate.loc[False] < rate.loc[True]).all()
    wide = doses[(doses["key"] == "mix.top_share") & ~doses["base"]]
    wide = wide[wide["reference"] == "random"].iloc[0]
    assert wide["difference"] == pytest.approx(own.loc[~own["base"], "difference"].mean())
    assert wide["planted_share"] == pytest.approx(rate.loc[False, "planted_share"])
    ablations = pd.read_parquet(folder / "ablations.parquet")
    assert set(ablations["arm"]) == set(ARMS)
    mining = pd.read_parquet(folder / "mining.parquet")
    assert mining["oracle_overlap"].between(0, 1).all()
    doses_drawn = ("dose-world.concepts_per_pivot", "dose-planted-share", "dose-pivot-rate")
    for name in ("cells", "effects", "seeds", *doses_drawn):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000


def test_a_dose_takes_what_its_setting_leaves_alone(root: Path) -> None:
    """Mining is not done again for another mix, and no dose looks at the layers."""
    vary = root / "vary"
    assert not (vary / "mix.top_share" / "0.8" / "seeds" / "0" / "count").exists()
    assert (vary / "world.concepts_per_pivot" / "2" / "seeds" / "0" / "count").is_dir()
    assert not list(vary.rglob("trace"))


def test_a_finished_experiment_is_not_run_again(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in root.rglob("manifest.json")}
    assert main(["experiment", "world", "--config", str(root / "config.yaml")]) == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("manifest.json")} == before
    summary = json.loads((root / "experiment" / "summary.json").read_text())
    assert summary["conclusion"] in capsys.readouterr().out


def test_the_broken_arm_breaks_the_ties_and_nothing_else(root: Path) -> None:
    run = root / "seeds" / "0"
    tokenizer = load_tokenizer(run / "tokenizer")
    planted = read_planted(run / "world", tokenizer)
    arms = {}
    for arm in ("pivot", "broken-pivot"):
        tokens, ends = open_token_file(run / "mix" / arm / "tokens.ds", tokenizer.vocab_size)
        table = pd.read_parquet(run / "mix" / arm / "documents.parquet")
        arms[arm] = (np.split(np.asarray(tokens), ends[:-1].astype(np.int64)), table)
    whole, broken = arms["pivot"], arms["broken-pivot"]
    pd.testing.assert_frame_equal(whole[1], broken[1])
    is_pivot = planted.mask(tokenizer.vocab_size)
    topic = dict(zip(planted.ids.tolist(), planted.topic, strict=True))
    maps: dict[str, dict[int, set[int]]] = {}
    n_changed = 0
    for row, old, new in zip(whole[1].itertuples(), whole[0], broken[0], strict=True):
        assert len(old) == len(new)
        if row.always:
            assert (old == new).all()
            continue
        assert (is_pivot[old] == is_pivot[new]).all()
        assert (old[~is_pivot[old]] == new[~is_pivot[new]]).all()
        for a, b in zip(old[is_pivot[old]].tolist(), new[is_pivot[new]].tolist(), strict=True):
            maps.setdefault(row.lang, {}).setdefault(a, set()).add(b)
            assert topic[a] == topic[b]
            n_changed += a != b
    assert n_changed > 0
    # One permutation a language, another one in each.
    assert all(old == min(new) for old, new in maps["la"].items())
    assert all(old != min(new) for old, new in maps["lb"].items())
    for one in maps.values():
        assert all(len(found) == 1 for found in one.values())
        assert max(Counter(min(found) for found in one.values()).values()) == 1
    assert maps["la"] != maps["lb"]


def test_the_oracle_is_richest_in_what_was_planted(root: Path) -> None:
    arms = json.loads((root / "seeds" / "0" / "mix" / "arms.json").read_text())["arms"]
    share = {arm: arms[arm]["planted_share"] for arm in ARMS}
    assert share["oracle"] >= share["pivot"] > share["random"] > share["low-pivot"]
    # Proportions are of the documents as chosen, before the ties are broken.
    assert share["broken-pivot"] == share["pivot"]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ('{"world.nothing": [1]}', "expected the name of a setting"),
        ('{"world": [1]}', "expected the name of a setting"),
        ('{"tokenizer.model_type": [1]}', "is no number"),
        ('{"world.topics": [1.5]}', "expected a whole number"),
        ('{"mix.fill_language": [1]}', "is no number"),
        ('{"seed": [1]}', "changes no seed's run"),
    ],
)
def test_what_cannot_be_varied_is_named(
    vary: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", "world", "--config", str(WORLD), "--out", str(tmp_path)]
    command += ["--experiment.vary", vary]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_corpus_has_no_planted_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"id": "a", "text": "x y", "lang": "en"}\n', encoding="utf-8")
    code = main(["experiment", "world", "--config", str(WORLD), "--corpus.path", str(documents)])
    assert code == 2
    assert "corpus.path" in capsys.readouterr().err


def test_seeds_end_with_the_command_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "launch.cli", "experiment", "world", "--config", str(WORLD),
        "--out", str(out), "--engine.workers", "2",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        logs = [out / "seeds" / str(seed) / "run.log" for seed in (0, 1)]
        deadline = time.monotonic() + 120
        while not all(log.exists() and log.stat().st_size for log in logs):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        seeds = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(seeds) >= 2
    assert psutil.wait_procs(seeds, timeout=30)[1] == []
