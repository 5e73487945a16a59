"""Windowed co-occurrence against a plain loop over all pairs of places."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.kernels.window import Weighting, distance_weights, pad_documents, window_counts

N_IDS = 9
DOCUMENTS = st.lists(st.lists(st.integers(0, N_IDS - 1), max_size=20), max_size=6)


@settings(deadline=None, max_examples=60)
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
    left, right, sums = window_counts(stream, weights, directed, n_items)
    pairs = list(zip(left.tolist(), right.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert sums.tolist() == [expected[pair] for pair in pairs]


def test_more_pairs_than_fit_at_first() -> None:
    stream = np.concatenate([[-1], np.random.default_rng(0).integers(0, 900, 200_000), [-1]])
    left, _, sums = window_counts(stream.astype(np.int32), distance_weights(1, "flat"), True, 900)
    assert len(left) > 1 << 16
    assert sums.sum() == 199_999


def test_weights_are_exact_and_bounded() -> None:
    assert distance_weights(10, "harmonic").tolist() == [2520 // d for d in range(1, 11)]
    assert all(2520 % d == 0 for d in range(1, 11))
    with pytest.raises(OverflowError, match="window 41"):
        distance_weights(41, "harmonic")
