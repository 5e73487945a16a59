"""Windowed co-occurrence: how often two items stand at most w tokens apart, weighted by distance.

Weights are whole numbers, so that sums are exact whatever their order: 1 at every distance (flat),
or lcm(1..w) / d at distance d (the harmonic weights of GloVe, Pennington et al. 2014, section 4.2,
times lcm(1..w): 2520 for w = 10). A row of the matrix is summed up in one array that stays in the
cache, item by item, instead of one hash table for all pairs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel

Weighting = Literal["flat", "harmonic"]
MAX_HARMONIC_WINDOW = 40  # lcm(1..40) is 5.3e15; more would soon overflow 64 bits


def distance_weights(window: int, weighting: Weighting) -> npt.NDArray[np.uint64]:
    """Weight of each distance 1..window, uint64 [window]; divide harmonic sums by weights[0]."""
    if weighting == "flat":
        return np.ones(window, dtype=np.uint64)
    if window > MAX_HARMONIC_WINDOW:
        raise OverflowError(f"harmonic weights of window {window}, at most {MAX_HARMONIC_WINDOW}")
    common = math.lcm(*range(1, window + 1))
    return np.array([common // d for d in range(1, window + 1)], dtype=np.uint64)


@kernel
def pad_documents(
    tokens: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    item_of: npt.NDArray[np.int32],
    window: int,
) -> npt.NDArray[np.int32]:
    """The documents' items as one stream with `window` gaps (-1) around every document.

    Tokens that are no items are gaps too: they keep their place, so distances are in tokens.
    """
    n_documents = len(offsets) - 1
    stream = np.full(len(tokens) + window * (n_documents + 1), -1, dtype=np.int32)
    for document in range(n_documents):
        start = offsets[document] + window * (document + 1) - offsets[0]
        for place in range(offsets[document], offsets[document + 1]):
            stream[start + place - offsets[document]] = item_of[tokens[place]]
    return stream


@kernel
def window_counts(
    stream: npt.NDArray[np.int32], weights: npt.NDArray[np.uint64], directed: bool, n_items: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Weighted counts of all pairs in a stream that `pad_documents` made for len(weights).

    Undirected: the pairs (i, j) with i <= j, each pair of places counted once. Directed: i stands
    before j. Returns (i, j, sum), sorted by i and j, without zeros.
    """
    window = len(weights)
    row_offsets = np.zeros(n_items + 1, dtype=np.int64)
    for item in stream:
        if item >= 0:
            row_offsets[item + 1] += 1
    for item in range(n_items):
        row_offsets[item + 1] += row_offsets[item]
    places = np.empty(row_offsets[n_items], dtype=np.int64)
    free = row_offsets[:-1].copy()
    for place in range(len(stream)):
        item = stream[place]
        if item >= 0:
            places[free[item]] = place
            free[item] += 1

    row = np.zeros(n_items, dtype=np.uint64)
    touched = np.empty(n_items, dtype=np.uint32)
    capacity = 1 << 16
    left, right = np.empty(capacity, dtype=np.uint32), np.empty(capacity, dtype=np.uint32)
    sums = np.empty(capacity, dtype=np.uint64)
    n_found = 0
    for i in range(n_items):
        n_touched = 0
        for place in places[row_offsets[i] : row_offsets[i + 1]]:
            for d in range(1, window + 1):
                j = stream[place + d]
                if j >= 0 and (directed or j >= i):
                    if row[j] == 0:
                        touched[n_touched] = j
                        n_touched += 1
                    row[j] += weights[d - 1]
                if not directed:
                    j = stream[place - d]
                    # A pair of equal items is seen from its first place already.
                    if j > i:
                        if row[j] == 0:
                            touched[n_touched] = j
                            n_touched += 1
                        row[j] += weights[d - 1]
        while n_found + n_touched > capacity:
            capacity *= 2
            left, right = _grown(left, capacity), _grown(right, capacity)
            sums = _grown(sums, capacity)
        for j in np.sort(touched[:n_touched]):
            left[n_found], right[n_found], sums[n_found] = i, j, row[j]
            row[j] = 0
            n_found += 1
    return left[:n_found].copy(), right[:n_found].copy(), sums[:n_found].copy()


@kernel
def _grown(values: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    larger = np.empty(capacity, dtype=values.dtype)
    larger[: len(values)] = values
    return larger
