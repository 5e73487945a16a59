"""Windowed co-occurrence against a plain loop over all pairs of places."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mining.kernels.window
from mining.kernels.window import Weighting, distance_weights, pad_documents, window_counts

N_IDS = 9
DOCUMENTS = st.lists(st.lists(st.integers(0, N_IDS - 1), max_size=20), max_size=6)


@settings(max_examples=60)
@given(
    DOCUMENTS, st.integers(1, 7), st.sampled_from(["flat", "harmonic"]), st.booleans(), st.data()
)
def test_window_counts(
    documents: list[list[int]],
    window: int,
    weighting: Weighting,
    directed: bool,
    data: st.DataObject,
) -> None:
    n_items = data.draw(st.integers(1, N_IDS))
    item_of = np.full(N_IDS, -1, dtype=np.int32)
    item_of[data.draw(st.permutations(range(N_IDS)))[:n_items]] = np.arange(n_items)
    weights = distance_weights(window, weighting)
    expected: Counter[tuple[int, int]] = Counter()
    for document in documents:
        items = [int(item_of[token]) for token in document]
        for p, i in enumerate(items):
            for q in range(p + 1, min(p + window, len(items) - 1) + 1):
                j = items[q]
                if i >= 0 and j >= 0:
                    pair = (i, j) if directed else (min(i, j), max(i, j))
                    expected[pair] += int(weights[q - p - 1])
    tokens = np.array([t for d in documents for t in d], dtype=np.uint32)
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    stream = pad_documents(tokens, offsets, item_of, window)
    found = window_counts(stream, weights, directed, n_items)
    left = np.repeat(np.arange(n_items), np.diff(found.offsets))
    pairs = list(zip(left.tolist(), found.right.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert found.sums.tolist() == [expected[pair] for pair in pairs]


@pytest.mark.parametrize("directed", [True, False])
def test_rows_of_few_and_many_places(directed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are noted cell by cell, rows that are read whole, and more than one part."""
    n_items, window = 900, 5
    rng = np.random.default_rng(0)
    items = np.minimum(rng.zipf(1.2, 60_000) - 1, n_items - 1).astype(np.int32)
    stream = np.concatenate([np.full(window, -1), items, np.full(window, -1)]).astype(np.int32)
    weights = distance_weights(window, "harmonic")
    expected = np.zeros((n_items, n_items), dtype=np.uint64)
    for distance, weight in enumerate(weights, start=1):
        np.add.at(expected, (items[:-distance], items[distance:]), weight)
    if not directed:
        expected = np.triu(expected + np.tril(expected, -1).T)
    for at_a_time in (1 << 22, 1 << 10):
        monkeypatch.setattr(mining.kernels.window, "PAIRS_AT_A_TIME", at_a_time)
        found = window_counts(stream, weights, directed, n_items)
        left = np.repeat(np.arange(n_items), np.diff(found.offsets))
        assert len(left) == np.count_nonzero(expected)
        dense = np.zeros_like(expected)
        dense[left, found.right] = found.sums
        assert np.array_equal(dense, expected)
        assert all(
            np.all(np.diff(found.right[start:end].astype(np.int64)) > 0)
            for start, end in itertools.pairwise(found.offsets)
        )


def test_weights_are_exact_and_bounded() -> None:
    assert distance_weights(10, "harmonic").tolist() == [2520 // d for d in range(1, 11)]
    assert all(2520 % d == 0 for d in range(1, 11))
    with pytest.raises(OverflowError, match="window 41"):
        distance_weights(41, "harmonic")
