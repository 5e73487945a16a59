"""Real documents: counts against scikit-learn, and the reduced real chain."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from mining.common.manifest import read_manifest
from mining.common.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.shared_data, pytest.mark.slow]
CONFIG = REPOSITORY / "configs" / "smoke" / "real.yaml"
LANGUAGES = ("en", "fr", "zh", "ja")
PER_FILE = 60


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first documents of every file of the real corpus."""
    from tests.conftest import SHARED

    folder = tmp_path_factory.mktemp("sample")
    for path in sorted((SHARED / "corpus").glob("*/*.jsonl.gz")):
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)[:PER_FILE]
        target = folder / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(gzip.compress(b"".join(lines), mtime=0))
    return folder


@pytest.fixture(scope="module")
def run(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "run"
    command = [sys.executable, "-m", "launch.cli", "run", str(CONFIG), "--out", str(out)]
    done = subprocess.run(
        [*command, "--corpus.path", str(sample)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_counts_equal_scikit_learns(sample: Path, run: Path) -> None:
    """Document frequencies and all pair counts of the top token items, by an independent way."""
    tokenizer = load_tokenizer(run / "tokenizer")
    texts = [
        json.loads(line)["text"]
        for path in sorted(sample.rglob("*.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    items = pd.read_parquet(run / "count" / "items.parquet")
    vectorizer = CountVectorizer(
        analyzer=tokenizer.encode, vocabulary=[int(i) for i in items["id"]], binary=True,
        dtype=np.int64,
    )  # fmt: skip
    unique = list(dict.fromkeys(texts))  # the chain drops documents whose text stood before
    matrix = vectorizer.transform(unique)
    product = (matrix.T @ matrix).tocoo()
    upper = product.row < product.col
    expected = pd.DataFrame(
        {"i": product.row[upper], "j": product.col[upper], "n": product.data[upper]}
    )
    expected = expected[expected.n > 0].sort_values(["i", "j"]).reset_index(drop=True)
    found = pq.read_table(run / "count" / "pairs").to_pandas()
    assert len(found) == len(expected) > 100_000
    for column in ("i", "j", "n"):
        assert (found[column].to_numpy() == expected[column].to_numpy()).all()
    assert (items.doc_freq.to_numpy() == np.asarray(matrix.sum(axis=0)).ravel()).all()
    counts = read_manifest(run / "count").counts
    assert counts["documents"] == len(unique)


def test_reduced_real_chain(run: Path) -> None:
    tokenize = read_manifest(run / "tokenize").counts
    assert tokenize["records"] == tokenize["documents"] + sum(tokenize["dropped"].values())
    assert not tokenize["quarantined"]
    assert set(tokenize["by_lang"]) == set(LANGUAGES)
    arms = json.loads((run / "mix" / "arms.json").read_text())["arms"]
    matched = [arms[arm]["languages"] for arm in ("random", "pivot", "low-pivot")]
    for lang in LANGUAGES:
        assert len({languages[lang]["tokens"] for languages in matched}) == 1
    for lang in ("fr", "zh", "ja"):  # English fills up: the same random documents in all arms
        low, middle, high = (
            arms[arm]["languages"][lang]["mean_proportion"]
            for arm in ("low-pivot", "random", "pivot")
        )
        assert low <= middle <= high
    words = pd.read_parquet(run / "words" / "words.parquet")
    assert words[(words.lang == "en") & (words.word == "file")].doc_freq.item() > 100
    for arm in arms:
        summary = json.loads((run / "evaluate" / arm / "0" / "summary.json").read_text())
        assert len(summary["directions"]) == 12
        assert summary["score"]["low"] <= summary["score"]["mean"] <= summary["score"]["high"]
    assert (run / "report" / "report.html").stat().st_size > 100_000
