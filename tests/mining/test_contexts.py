"""Units and contexts of `count`: sequences, windows, given vocabularies; each by plain loops."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining import count_memory
from mining.common.errors import InputError, SettingsError
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, write_table
from mining.count import run_count
from mining.engine_settings import EngineSettings
from mining.kernels import cooccurrence
from mining.pivots import run_pivots
from mining.settings import CountSettings, PivotsSettings
from mining.window_pairs import Window, check_overflow
from tests.mining.test_count import (
    Document,
    make_shards,
    make_tokenizer,
    output_bytes,
    random_documents,
)

ONE = EngineSettings(workers=1)
DOCUMENTS = random_documents(90, 62)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return make_tokenizer(tmp_path / "tokenizer", 60)


def read_weighted(folder: Path) -> dict[tuple[int, int], int]:
    """The pairs by token ids."""
    ids = pq.read_table(folder / "items.parquet").column("id").to_pylist()
    table = pa.concat_tables([pq.read_table(p) for p in sorted((folder / "pairs").glob("*"))])
    i, j, n = (table.column(name).to_pylist() for name in ("i", "j", "n"))
    assert list(zip(i, j, strict=True)) == sorted(zip(i, j, strict=True))
    return {(ids[a], ids[b]): count for a, b, count in zip(i, j, n, strict=True)}


def test_a_sequence_counts_like_a_document_of_its_own(tmp_path: Path, tokenizer: Path) -> None:
    length = 7
    cut: list[Document] = [
        (lang, source, tokens[start : start + length])
        for lang, source, tokens in DOCUMENTS
        for start in range(0, max(1, len(tokens)), length)
    ]
    whole = make_shards(tmp_path / "whole", DOCUMENTS, tokenizer, 3)
    pieces = make_shards(tmp_path / "pieces", cut, tokenizer, 2)
    by_sequence = CountSettings(
        top_items=40, context="sequence", sequence_length=length, sources=("web",)
    )
    by_document = CountSettings(top_items=40, sources=("web",))
    run_count(by_sequence, tmp_path / "a", whole, tokenizer, ONE)
    run_count(by_document, tmp_path / "b", pieces, tokenizer, ONE)
    a, b = output_bytes(tmp_path / "a"), output_bytes(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(a[name] == b[name] for name in a if name != "manifest.json")
    counts = read_manifest(tmp_path / "a", "count").counts
    assert counts["documents"] == sum(source == "web" for _, source, _ in cut)
    assert (counts["context"], counts["sequence_length"]) == ("sequence", length)
    run_pivots(PivotsSettings(min_doc_freq=1), tmp_path / "pivots", tmp_path / "a")


def brute_force(
    documents: list[Document], items: set[int], width: int, directed: bool, harmonic: bool
) -> dict[tuple[int, int], Fraction]:
    found: Counter[tuple[int, int]] = Counter()
    for _, _, tokens in documents:
        for p, left in enumerate(tokens):
            for d in range(1, width + 1):
                if p + d >= len(tokens) or left not in items or tokens[p + d] not in items:
                    continue
                found[left, tokens[p + d]] += Fraction(1, d) if harmonic else 1  # type: ignore[assignment]
    if directed:
        return dict(found)  # type: ignore[arg-type]
    merged: Counter[frozenset[int]] = Counter()
    for (a, b), n in found.items():
        merged[frozenset((a, b))] += n
    return {(min(pair), max(pair)): Fraction(n) for pair, n in merged.items()}


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weights", ["flat", "harmonic"])
def test_windows_equal_a_plain_loop_however_the_work_is_divided(
    tmp_path: Path,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    directed: bool,
    weights: Any,
) -> None:
    monkeypatch.setattr(cooccurrence, "band_rows", lambda n_items: 7)
    found = []
    for n_shards, n_tasks, block in ((3, 1, 1 << 20), (3, 3, 100), (1, 1, 10), (4, 2, 500)):
        for name in ("MIN_BLOCK_TOKENS", "MAX_BLOCK_TOKENS"):
            monkeypatch.setattr(count_memory, name, block)
        tokens = make_shards(tmp_path / f"tokens-{block}", DOCUMENTS, tokenizer, n_shards)
        settings = CountSettings(
            top_items=25, context="window", window=4, directed=directed, weights=weights,
            sources=("book",), map_tasks=n_tasks,
        )  # fmt: skip
        out = tmp_path / f"count-{n_shards}-{n_tasks}-{block}"
        run_count(settings, out, tokens, tokenizer, ONE)
        found.append({k: v for k, v in output_bytes(out).items() if k != "manifest.json"})
    assert all(files == found[0] for files in found)
    assert len([name for name in found[0] if name.startswith("pairs/")]) == 4

    counts = read_manifest(out, "count").counts
    assert counts["divisor"] == (12 if weights == "harmonic" else 1)
    assert (counts["context"], counts["window"], counts["directed"]) == ("window", 4, directed)
    pairs = read_weighted(out)
    items = set(pq.read_table(out / "items.parquet").column("id").to_pylist())
    books = [d for d in DOCUMENTS if d[1] == "book"]
    expected = brute_force(books, items, 4, directed, weights == "harmonic")
    if not directed:  # items are numbered by frequency, pairs by items
        pairs = {(min(pair), max(pair)): n for pair, n in pairs.items()}
    assert {pair: Fraction(n, counts["divisor"]) for pair, n in pairs.items()} == expected
    with pytest.raises(InputError, match=r"count\.context document or sequence"):
        run_pivots(PivotsSettings(), tmp_path / "pivots", out)


def test_sums_that_may_not_fit_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    shards = list_shards(make_shards(tmp_path / "t", DOCUMENTS, tokenizer, 2) / "tokens")
    check_overflow(Window(20, False, "harmonic"), shards)
    with pytest.raises(SettingsError, match="may not fit 64 bits"):
        check_overflow(Window(40, False, "harmonic"), shards)
    with pytest.raises(SettingsError, match="window"):
        CountSettings(window=41, weights="harmonic")


def test_a_given_vocabulary_of_token_ids(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_shards(tmp_path / "tokenize", DOCUMENTS, tokenizer, 2)
    path = tmp_path / "ids.txt"
    path.write_text("40\n\n3\n12\n 5\n1\n40\n61\n")  # 1 is the end-of-text token
    settings = CountSettings(vocabulary=str(path), top_items=2)
    run_count(settings, tmp_path / "given", tokens, tokenizer, ONE)
    run_count(CountSettings(), tmp_path / "all", tokens, tokenizer, ONE)
    wanted = {3, 5, 12, 40, 61}
    everything = read_weighted(tmp_path / "all")
    present = {i for d in DOCUMENTS for i in d[2]} & wanted
    items = pq.read_table(tmp_path / "given" / "items.parquet").column("id").to_pylist()
    assert set(items) == present
    assert read_weighted(tmp_path / "given") == {
        pair: n for pair, n in everything.items() if set(pair) <= wanted
    }
    manifest = read_manifest(tmp_path / "given", "count")
    assert manifest.counts["vocabulary_absent"] == len(wanted - present)
    assert list(manifest.inputs["vocabulary"]["files"]) == ["ids.txt"]
    before = output_bytes(tmp_path / "given")
    path.write_text("3\n12\n")
    run_count(settings, tmp_path / "given", tokens, tokenizer, ONE)
    assert output_bytes(tmp_path / "given") != before
    for text, message in (("3\ncat\n", r"ids\.txt:2: found 'cat'"), ("99\n5\n", "below 62"),
                          ("5\n", "1 items can be counted")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            run_count(settings, tmp_path / "bad", tokens, tokenizer, ONE)
    with pytest.raises(InputError, match=r"none\.txt"):
        run_count(
            CountSettings(vocabulary=str(tmp_path / "none.txt")),
            tmp_path / "bad", tokens, tokenizer, ONE,
        )  # fmt: skip


def test_a_given_vocabulary_of_words(tmp_path: Path, tokenizer: Path) -> None:
    documents: list[Document] = [("en", "w", [1, 2, 3]), ("fr", "w", [3, 1]), ("fr", "w", [4, 0])]
    tokens = make_shards(tmp_path / "tokenize", documents, tokenizer, 1, unit="word")
    words = ["straße", "été", "w7", "other"]
    table = {"id": pa.array([1, 2, 3, 4], pa.uint32()), "word": words}
    write_table(tokens / "words" / "vocabulary.parquet", pa.table(table))
    path = tmp_path / "words.txt"
    path.write_text("E\u0301te\u0301\nW7\nunheard of\n")
    run_count(
        CountSettings(unit="word", vocabulary=str(path)),
        tmp_path / "out", tokens, tokenizer, ONE,
    )  # fmt: skip
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pydict()
    assert items["text"] == ["w7", "été"]
    assert read_weighted(tmp_path / "out") == {(3, 2): 1}


def test_windows_at_the_border_of_a_document_and_a_word_that_meets_itself(
    tmp_path: Path, tokenizer: Path
) -> None:
    documents: list[Document] = [("en", "w", [5, 5, 6]), ("en", "w", [6, 0, 5]), ("en", "w", [])]
    tokens = make_shards(tmp_path / "tokenize", documents, tokenizer, 1)
    settings = CountSettings(context="window", window=1)
    run_count(settings, tmp_path / "out", tokens, tokenizer, ONE)
    # The two 6 stand in neighbouring documents; 0 is special, and keeps its place.
    assert read_weighted(tmp_path / "out") == {(5, 5): 1, (5, 6): 1}
    assert np.all(pq.read_table(tmp_path / "out" / "items.parquet")["doc_freq"].to_numpy() == 2)
