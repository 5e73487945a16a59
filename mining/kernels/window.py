"""Windowed co-occurrence: how often two items stand at most w tokens apart, weighted by distance.

Weights are whole numbers, so that sums are exact whatever their order: 1 at every distance (flat),
or lcm(1..w) / d at distance d (the harmonic weights of GloVe, Pennington et al. 2014, section 4.2,
times lcm(1..w): 2520 for w = 10). A row of the matrix is summed up in one array that stays in the
cache, item by item, instead of one table for all pairs. What costs time then are branches that no
processor can foresee and additions that wait for the one before, so there are none of the former,
and neighbours are gathered first and added afterwards.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mining.kernels.compiled import kernel

Weighting = Literal["flat", "harmonic"]
MAX_HARMONIC_WINDOW = 40  # lcm(1..40) is 5.3e15; more would soon overflow 64 bits
PLACES_AT_A_TIME = 64
PAIRS_AT_A_TIME = 1 << 22


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


class Rows(NamedTuple):
    """A sparse matrix: row i holds sums[k] at right[k] for k in offsets[i]..offsets[i + 1] - 1.

    `offsets` int64 [n_items + 1], `right` uint32 (ascending within a row), `sums` uint64, none 0.
    """

    offsets: npt.NDArray[np.int64]
    right: npt.NDArray[np.uint32]
    sums: npt.NDArray[np.uint64]


def window_counts(
    stream: npt.NDArray[np.int32], weights: npt.NDArray[np.uint64], directed: bool, n_items: int
) -> Rows:
    """Weighted counts of all pairs in a stream that `pad_documents` made for len(weights).

    Undirected: the pairs (i, j) with i <= j, each pair of places counted once. Directed: i stands
    before j.
    """
    ends = np.cumsum(_count_items(stream, n_items))
    # Arrays are made here, because numpy asks for large memory pages and compiled code does not.
    places = np.empty(ends[-1], dtype=np.int64)
    _sort_places(stream, ends[:-1].copy(), places)
    window = len(weights)
    if directed:
        steps, step_weights = np.arange(1, window + 1), weights
    else:
        steps = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
        step_weights = np.concatenate([weights[::-1], weights])
    # Neighbours that do not count add to spare cells behind the row, each step to one of its own.
    # These are never 0, and so never taken for cells that are new.
    row = np.zeros(n_items + len(steps), dtype=np.uint64)
    row[n_items:] = 1
    offsets = np.zeros(n_items + 1, dtype=np.int64)
    size = max(n_items, min(PAIRS_AT_A_TIME, len(places) * len(steps)))
    right, sums = np.empty(size, dtype=np.uint32), np.empty(size, dtype=np.uint64)
    first = 0
    while first < n_items:
        if offsets[first] + n_items > len(right):
            # Grown in place, where the system can: copied, the pairs would be in memory twice.
            for array in (right, sums):
                array.resize(len(array) + size, refcheck=False)
        first = _count_rows(
            stream, places, ends, steps, step_weights, directed, first, row, offsets, right, sums
        )
    for array in (right, sums):
        array.resize(offsets[-1], refcheck=False)
    return Rows(offsets, right, sums)


@kernel
def _count_items(stream: npt.NDArray[np.int32], n_items: int) -> npt.NDArray[np.int64]:
    """How often each item stands in the stream, int64 [n_items + 1], with a 0 before."""
    counts = np.zeros(n_items + 1, dtype=np.int64)
    for item in stream:
        counts[item + 1] += item >= 0
    return counts


@kernel
def _sort_places(
    stream: npt.NDArray[np.int32], free: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> None:
    """The places of each item, in order; item i's begin at free[i] (which is changed)."""
    for place in range(len(stream)):
        item = stream[place]
        if item >= 0:
            places[free[item]] = place
            free[item] += 1


@kernel
def _count_rows(
    stream: npt.NDArray[np.int32],
    places: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    weights: npt.NDArray[np.uint64],
    directed: bool,
    first: int,
    row: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    right: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.uint64],
) -> int:
    """Write the rows from `first` on for which there is room, and return the first one left over.

    `offsets` is written up to the returned row, `right` and `sums` from offsets[first] on. `row` is
    all 0, but for its spare cells.
    """
    n_items = len(ends) - 1
    new = np.empty(n_items + 1, dtype=np.uint32)
    is_new = np.zeros((n_items + 63) // 64, dtype=np.uint64)  # one bit an item
    gathered = np.empty(PLACES_AT_A_TIME * len(steps), dtype=np.int32)
    n_found = offsets[first]
    for i in range(first, n_items):
        if n_found + n_items > len(right):
            return i
        least = 0 if directed else i
        mine = places[ends[i] : ends[i + 1]]
        sparse = 2 * len(mine) * len(steps) < n_items - least
        n_new = 0
        for start in range(0, len(mine), PLACES_AT_A_TIME):
            some = mine[start : start + PLACES_AT_A_TIME]
            _gather(stream, some, steps, gathered)
            cells = gathered[: len(some) * len(steps)]
            if sparse:
                n_new = _add_and_note(cells, weights, least, row, new, n_new)
            else:
                _add(cells, weights, least, row)
        if not directed:
            row[i] >>= np.uint64(1)  # a pair of equal items was seen from both its places
        if sparse:
            n_found = _take_noted(new[:n_new], is_new, row, right, sums, n_found)
        else:
            for j in range(least, n_items):
                right[n_found], sums[n_found] = j, row[j]
                n_found += row[j] != 0
                row[j] = 0
        offsets[i + 1] = n_found
    return n_items


@kernel
def _gather(
    stream: npt.NDArray[np.int32],
    places: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    gathered: npt.NDArray[np.int32],
) -> None:
    """The neighbours of each place, one step after another."""
    n = np.uint64(0)  # unsigned numbers index without a check whether they count from the end
    for place in places:
        for step in steps:
            gathered[n] = stream[np.uint64(place + step)]
            n += np.uint64(1)


@kernel
def _add(
    cells: npt.NDArray[np.int32],
    weights: npt.NDArray[np.uint64],
    least: int,
    row: npt.NDArray[np.uint64],
) -> None:
    """Add the steps' weights to their cells; those of cells below `least` to spare cells."""
    spare = len(row) - len(weights)
    n = np.uint64(0)
    for _ in range(len(cells) // len(weights)):
        for step in range(len(weights)):
            j = np.int64(cells[n])
            n += np.uint64(1)
            row[np.uint64(j if j >= least else spare + step)] += weights[np.uint64(step)]


@kernel
def _add_and_note(
    cells: npt.NDArray[np.int32],
    weights: npt.NDArray[np.uint64],
    least: int,
    row: npt.NDArray[np.uint64],
    new: npt.NDArray[np.uint32],
    n_new: int,
) -> int:
    """The same as `_add`; cells that were 0 are appended to `new`, whose length is returned."""
    spare = len(row) - len(weights)
    n = np.uint64(0)
    for _ in range(len(cells) // len(weights)):
        for step in range(len(weights)):
            j = np.int64(cells[n])
            n += np.uint64(1)
            cell = np.uint64(j if j >= least else spare + step)
            before = row[cell]
            row[cell] = before + weights[np.uint64(step)]
            new[np.uint64(n_new)] = cell
            n_new += before == 0
    return n_new


@intrinsic  # type: ignore[untyped-decorator]
def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """The number of the lowest set bit of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: list[Any]) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@kernel
def _take_noted(
    new: npt.NDArray[np.uint32],
    is_new: npt.NDArray[np.uint64],
    row: npt.NDArray[np.uint64],
    right: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.uint64],
    n_found: int,
) -> int:
    """Move the noted cells' sums, in the order of the cells, behind the first `n_found`."""
    for j in new:
        is_new[j >> 6] |= np.uint64(1) << np.uint64(j & 63)
    for word in range(len(is_new)):
        bits = is_new[word]
        is_new[word] = 0
        while bits:
            j = (word << 6) + _lowest_bit(bits)
            bits &= bits - np.uint64(1)
            right[n_found], sums[n_found] = j, row[j]
            row[j] = 0
            n_found += 1
    return n_found


@kernel
def add_rows(
    offsets: npt.NDArray[np.int64],
    right: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.uint64],
    left: int,
    total: npt.NDArray[np.uint64],
) -> None:
    """Add some rows of a Rows to `total` (uint64 [rows, columns]), whose first column is `left`.

    `offsets` [rows + 1] is the part of those rows; `right` and `sums` begin with the first of them.
    """
    for row in range(len(offsets) - 1):
        for place in range(offsets[row] - offsets[0], offsets[row + 1] - offsets[0]):
            total[row, right[place] - left] += sums[place]
