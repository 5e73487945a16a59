"""Exact document frequencies and document co-occurrence counts (METHOD section 4).

Items are numbered 0..K-1 by falling document frequency. A block of documents is kept both as item
sets and as an inverted index. Pairs are counted by positional popcount (`mining.kernels.popcount`);
the row gather below is what it is tested against, and what counts where it does not compile.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core.errors import NumbaError

from mining.common.logs import log
from mining.kernels.compiled import kernel
from mining.kernels.popcount import TILE, add_popcounts

BAND_CELLS = 1 << 23
TRANSPOSE_BLOCK = 32
NOT_AN_ITEM = -1


class Block(NamedTuple):
    """Documents as sets of items, and the same as an inverted index.

    `items` [n_postings] (uint16 where every item fits, else uint32) holds the documents' items, one
    document after another; document d's are items[offsets[d]:offsets[d + 1]] (int64 [n_docs + 1]).
    The documents with item i are `documents` (uint32 [n_postings], ascending) from row_offsets[i]
    up to row_offsets[i + 1] (int64 [K + 1]).
    """

    items: npt.NDArray[np.uint16 | np.uint32]
    offsets: npt.NDArray[np.int64]
    row_offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.uint32]


def item_dtype(n_items: int) -> np.dtype[Any]:
    """The narrowest dtype that holds every item number."""
    return np.dtype(np.uint16 if n_items <= 1 << 16 else np.uint32)


def band_rows(n_items: int) -> int:
    """Rows of one band of the pair triangle, whole tiles: depends on the number of items only."""
    return max(TILE, BAND_CELLS // max(1, n_items) // TILE * TILE)


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
    """Invert documents' item sets (as `unique_items` gives them), in linear time.

    Raises OverflowError from 2**31 documents on: divide them into smaller blocks.
    """
    if len(offsets) > 1 << 31:
        raise OverflowError(f"{len(offsets) - 1} documents in one block, at most {(1 << 31) - 1}")
    row_offsets, documents = _invert(items, offsets, n_items)
    return Block(items.astype(item_dtype(n_items)), offsets, row_offsets, documents)


@kernel
def _invert(
    items: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], n_items: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    row_offsets = np.zeros(n_items + 1, dtype=np.int64)
    for item in items:
        row_offsets[item + 1] += 1
    for item in range(n_items):
        row_offsets[item + 1] += row_offsets[item]
    documents = np.empty(len(items), dtype=np.uint32)
    free = row_offsets[:-1].copy()
    for document in range(len(offsets) - 1):
        for item in items[offsets[document] : offsets[document + 1]]:
            documents[free[item]] = document
            free[item] += 1
    return row_offsets, documents


def pair_counts(blocks: list[Block], first: int, last: int, n_items: int) -> npt.NDArray[np.uint32]:
    """Counts of the pairs (i, j), first <= i < last, i < j, over all blocks.

    Returns uint32 [last - first, K - first]; entry [i - first, j - first] is the number of
    documents with both, 0 where j <= i. At most 2**32 - 1 documents in all.
    """
    if has_popcount():
        return popcount_pairs(blocks, first, last, n_items)
    return gather_pairs(blocks, first, last, n_items)


def popcount_pairs(
    blocks: list[Block], first: int, last: int, n_items: int
) -> npt.NDArray[np.uint32]:
    """`pair_counts` by positional popcount, in time Σ doc_freq(j) · (rows / 512) for each j."""
    n_tiles = -(-(last - first) // TILE)
    # Transposed: the kernel fills 512 neighbouring counts of one item at a time.
    transposed = np.zeros((n_items - first, n_tiles * TILE), dtype=np.uint32)
    for block in blocks:
        n_docs = len(block.offsets) - 1
        add_popcounts(block.row_offsets, block.documents, n_docs, first, last, transposed)
    return _upper_triangle(transposed, last - first)


@kernel
def _upper_triangle(transposed: npt.NDArray[np.uint32], n_rows: int) -> npt.NDArray[np.uint32]:
    """The transpose's first `n_rows` rows, 0 on and below the diagonal, by blocks for the cache."""
    n_columns = transposed.shape[0]
    counts = np.empty((n_rows, n_columns), dtype=np.uint32)
    for top in range(0, n_rows, TRANSPOSE_BLOCK):
        for left in range(0, n_columns, TRANSPOSE_BLOCK):
            for i in range(top, min(top + TRANSPOSE_BLOCK, n_rows)):
                for j in range(left, min(left + TRANSPOSE_BLOCK, n_columns)):
                    counts[i, j] = transposed[j, i] if j > i else np.uint32(0)
    return counts


def gather_pairs(
    blocks: list[Block], first: int, last: int, n_items: int
) -> npt.NDArray[np.uint32]:
    """`pair_counts` by row gather, the readable reference: one addition for each pair."""
    counts = np.zeros((last - first, n_items - first), dtype=np.uint32)
    for block in blocks:
        _add_gathered(*block, first, counts)
    return counts


@kernel
def _add_gathered(
    items: npt.NDArray[np.uint16 | np.uint32],
    offsets: npt.NDArray[np.int64],
    row_offsets: npt.NDArray[np.int64],
    documents: npt.NDArray[np.uint32],
    first: int,
    counts: npt.NDArray[np.uint32],
) -> None:
    n_items = first + counts.shape[1]
    row = np.zeros(n_items, dtype=np.uint32)
    for i in range(first, first + counts.shape[0]):
        row[:] = 0
        for document in documents[row_offsets[i] : row_offsets[i + 1]]:
            for j in items[offsets[document] : offsets[document + 1]]:
                row[j] += np.uint32(1)
        counts[i - first, i + 1 - first :] += row[i + 1 :]


@functools.cache
def has_popcount() -> bool:
    """Whether the popcount kernel compiles here and counts a small sample right.

    It is written in LLVM's vector instructions, which a new numba might translate otherwise.
    """
    rng = np.random.default_rng(0)
    n_items, lengths = 2 * TILE, np.full(40, 300)
    items = np.concatenate([rng.permutation(n_items)[:n] for n in lengths]).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    blocks = [index_block(items, offsets, n_items)]
    try:
        found = popcount_pairs(blocks, 0, n_items, n_items)
    except (NumbaError, RuntimeError, TypeError) as error:
        log.warning("pairs are counted by row gather: popcount does not compile (%s)", error)
        return False
    if np.array_equal(found, gather_pairs(blocks, 0, n_items, n_items)):
        return True
    log.warning("pairs are counted by row gather: popcount counts a sample wrongly")
    return False
