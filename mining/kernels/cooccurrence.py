"""Exact document frequencies and document co-occurrence counts (METHOD section 4).

Items are numbered 0..K-1 by falling document frequency. A block of documents is kept as an inverted
index; for item i the kernel walks over the documents that contain i and adds 1 to an accumulator
for each item j > i of the document. The accumulators of one row are uint16, so that a row of
thousands of items stays in the nearest cache, and are spilled before they can overflow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel

BAND_CELLS = 1 << 23
SPILL_DOCUMENTS = (1 << 16) - 1
NOT_AN_ITEM = -1


class Block(NamedTuple):
    """Documents as sets of items, with an inverted index.

    `items` [n_postings] (uint16 where every item fits, else uint32) holds the documents' items, one
    document after another, ascending in each. Item i's postings are `row_offsets[i]` up to
    `row_offsets[i + 1]` (int64 [K + 1]); `positions` (uint32 [n_postings]) is where in `items`
    the posting's document has i, and `following` (uint32 [n_postings]) how many items of that
    document come after it.
    """

    items: npt.NDArray[np.uint16 | np.uint32]
    row_offsets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.uint32]
    following: npt.NDArray[np.uint32]


def item_dtype(n_items: int) -> np.dtype[Any]:
    """The narrowest dtype that holds every item number."""
    return np.dtype(np.uint16 if n_items <= 1 << 16 else np.uint32)


def band_rows(n_items: int) -> int:
    """Rows of one band of the pair triangle: depends on the number of items only."""
    return max(1, BAND_CELLS // max(1, n_items))


def bands(n_items: int) -> list[tuple[int, int]]:
    """The bands (first row, one past the last row) that cover the rows 0..K-1."""
    rows = band_rows(n_items)
    return [(first, min(first + rows, n_items)) for first in range(0, n_items, rows)]


@kernel
def add_document_frequencies(
    tokens: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    counts: npt.NDArray[np.uint64],
) -> None:
    """Add 1 to `counts[groups[d], t]` for each document d and each different token t in it.

    `tokens` uint32 [n_tokens]; document d's are tokens[offsets[d]:offsets[d + 1]]; `groups` int64
    [n_docs]; a document of a negative group is passed over. `counts` uint64 [n_groups, n_ids],
    where n_ids must be above every token.
    """
    seen = np.full(counts.shape[1], -1, dtype=np.int64)
    for document in range(len(groups)):
        group = groups[document]
        if group < 0:
            continue
        for place in range(offsets[document], offsets[document + 1]):
            token = tokens[place]
            if seen[token] != document:
                seen[token] = document
                counts[group, token] += np.uint64(1)


@kernel
def unique_items(
    tokens: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    keep: npt.NDArray[np.bool_],
    item_of: npt.NDArray[np.int32],
    n_items: int,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Each document's different items, in the order in which they first stand in it.

    `item_of` int32 [n_ids] maps token ids to items, NOT_AN_ITEM where a token is none. Documents
    with `keep` (bool [n_docs]) false are left out. Returns (items uint32, offsets int64
    [kept + 1]).
    """
    seen = np.full(n_items, -1, dtype=np.int64)
    found = np.empty(len(tokens), dtype=np.uint32)
    ends = np.zeros(len(keep) + 1, dtype=np.int64)
    n_found = 0
    n_kept = 0
    for document in range(len(keep)):
        if not keep[document]:
            continue
        for place in range(offsets[document], offsets[document + 1]):
            item = item_of[tokens[place]]
            if item >= 0 and seen[item] != document:
                seen[item] = document
                found[n_found] = item
                n_found += 1
        n_kept += 1
        ends[n_kept] = n_found
    return found[:n_found].copy(), ends[: n_kept + 1].copy()


def index_block(
    items: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], n_items: int
) -> Block:
    """Sort and invert documents' item sets (as `unique_items` gives them), in linear time.

    Raises OverflowError from 2**32 postings on: divide the documents into smaller blocks.
    """
    if len(items) >= 1 << 32:
        raise OverflowError(f"{len(items)} postings in one block, at most {(1 << 32) - 1}")
    in_order = np.empty(len(items), dtype=item_dtype(n_items))
    row_offsets, positions, following = _invert(items, offsets, n_items, in_order)
    return Block(in_order, row_offsets, positions, following)


@kernel
def _invert(
    items: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    n_items: int,
    in_order: npt.NDArray[np.uint16 | np.uint32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    n_docs = len(offsets) - 1
    row_offsets = np.zeros(n_items + 1, dtype=np.int64)
    for item in items:
        row_offsets[item + 1] += 1
    for item in range(n_items):
        row_offsets[item + 1] += row_offsets[item]
    # A counting sort by item leaves each item's documents in `documents`; going through it in turn
    # and dealing the items out to their documents again sorts every document.
    documents = np.empty(len(items), dtype=np.uint32)
    free = row_offsets[:-1].copy()
    for document in range(n_docs):
        for place in range(offsets[document], offsets[document + 1]):
            item = items[place]
            documents[free[item]] = document
            free[item] += 1
    positions = np.empty(len(items), dtype=np.uint32)
    following = np.empty(len(items), dtype=np.uint32)
    next_place = offsets[:-1].copy()
    for item in range(n_items):
        for posting in range(row_offsets[item], row_offsets[item + 1]):
            document = documents[posting]
            place = next_place[document]
            in_order[place] = item
            positions[posting] = place
            following[posting] = offsets[document + 1] - place - 1
            next_place[document] = place + 1
    return row_offsets, positions, following


def pair_counts(blocks: list[Block], first: int, last: int, n_items: int) -> npt.NDArray[np.uint32]:
    """Counts of the pairs (i, j), first <= i < last, i < j, over all blocks.

    Returns uint32 [last - first, K - first]; entry [i - first, j - first] is the number of
    documents with both, 0 where j <= i. At most 2**32 - 1 documents in all.
    """
    counts = np.zeros((last - first, n_items - first), dtype=np.uint32)
    for block in blocks:
        add_pair_counts(*block, first, counts)
    return counts


@kernel
def add_pair_counts(
    items: npt.NDArray[np.uint16 | np.uint32],
    row_offsets: npt.NDArray[np.int64],
    positions: npt.NDArray[np.uint32],
    following: npt.NDArray[np.uint32],
    first: int,
    counts: npt.NDArray[np.uint32],
) -> None:
    """Add a block's pair counts of the rows from `first` on to `counts`; see `pair_counts`.

    Row gather, the readable reference: its cost is one addition for each pair of items of each
    document.
    """
    n_items = first + counts.shape[1]
    row = np.zeros(n_items, dtype=np.uint16)
    for i in range(first, first + counts.shape[0]):
        start = row_offsets[i]
        while start < row_offsets[i + 1]:
            stop = min(start + SPILL_DOCUMENTS, row_offsets[i + 1])
            row[:] = 0
            for posting in range(start, stop):
                begin = np.int64(positions[posting]) + 1
                for j in items[begin : begin + np.int64(following[posting])]:
                    row[j] += np.uint16(1)
            for j in range(i + 1, n_items):
                counts[i - first, j - first] += row[j]
            start = stop
