"""Exact document frequencies and document co-occurrence counts (METHOD section 4).

Items are numbered 0..K-1 by falling document frequency. A block of documents is kept as an inverted
index. Pairs are counted by positional popcount (`mining.kernels.popcount`); the row gather below is
what it is tested against, and what counts where it does not compile.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core.errors import NumbaError

from mining.common.logs import log
from mining.kernels.compiled import kernel
from mining.kernels.popcount import LEVELS, TILE, add_popcounts, aligned_rows

BAND_CELLS = 1 << 23
# Bit-rows of a block, 64 bytes a document: the fewer, the nearer to the core they stay; the more,
# the less often the counts of every pair are brought up to date. Few enough for 16-bit numbers.
MIN_BLOCK_DOCUMENTS, MAX_BLOCK_DOCUMENTS = 1 << 14, (1 << 16) - 1
TRANSPOSE_BLOCK = 16  # numbers of a cache line
NOT_AN_ITEM = -1
_SCRATCH = threading.local()


class Block(NamedTuple):
    """Some documents as an inverted index.

    The `n_documents` documents are numbered from 0; those with item i are `documents` ([n_postings]
    uint16, or uint32 in a block of 65,536 documents or more; ascending) from row_offsets[i] up to
    row_offsets[i + 1] (int64 [K + 1]).
    """

    row_offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.uint16 | np.uint32]
    n_documents: int


def block_documents(n_items: int) -> int:
    """How many documents a block should have."""
    return min(max(2 * n_items, MIN_BLOCK_DOCUMENTS), MAX_BLOCK_DOCUMENTS)


def band_rows(n_items: int) -> int:
    """Rows of one band of the pair triangle, whole tiles: depends on the number of items only."""
    return max(TILE, BAND_CELLS // max(1, n_items) // TILE * TILE)


def band_cells(n_items: int) -> int:
    """Counts that a band is kept in while it is counted, at most; 4 bytes each."""
    return -(-min(band_rows(n_items), n_items) // TILE) * TILE * n_items


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
    seen = np.full(n_items + 1, -1, dtype=np.int32)
    found = np.empty(len(tokens) + 1, dtype=np.uint32)
    ends = np.zeros(len(keep) + 1, dtype=np.int64)
    n_found = 0
    n_kept = 0
    for document in range(len(keep)):
        if not keep[document]:
            continue
        seen[n_items] = document  # where tokens that are no items look
        for place in range(offsets[document], offsets[document + 1]):
            item = item_of[tokens[place]]
            slot = item if item >= 0 else n_items
            # Without a branch, which would be guessed wrongly every third time.
            found[n_found] = slot
            n_found += seen[slot] != document
            seen[slot] = document
        n_kept += 1
        ends[n_kept] = n_found
    return found[:n_found].copy(), ends[: n_kept + 1].copy()


def index_block(
    items: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], n_items: int
) -> Block:
    """Invert documents' item sets (as `unique_items` gives them), in linear time.

    Raises OverflowError from 2**31 documents on: divide them into smaller blocks.
    """
    n_documents = len(offsets) - 1
    if n_documents >= 1 << 31:
        raise OverflowError(f"{n_documents} documents in one block, at most {(1 << 31) - 1}")
    row_offsets = np.zeros(n_items + 1, dtype=np.int64)
    documents: npt.NDArray[np.uint16 | np.uint32]
    if n_documents < 1 << 16:
        documents = np.empty(len(items), dtype=np.uint16)
    else:
        documents = np.empty(len(items), dtype=np.uint32)
    _invert(items, offsets, row_offsets, documents)
    return Block(row_offsets, documents, n_documents)


@kernel
def _invert(
    items: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    row_offsets: npt.NDArray[np.int64],
    documents: npt.NDArray[np.uint16 | np.uint32],
) -> None:
    for item in items:
        row_offsets[item + 1] += 1
    for item in range(len(row_offsets) - 1):
        row_offsets[item + 1] += row_offsets[item]
    free = row_offsets[:-1].copy()
    for document in range(len(offsets) - 1):
        for place in range(offsets[document], offsets[document + 1]):
            item = items[place]
            documents[free[item]] = document
            free[item] += 1


class PopcountBand:
    """Counts of the pairs (i, j), first <= i < last, i < j, by positional popcount.

    Takes time Σ doc_freq(j) · (rows / 512) over all j. Kept transposed, because the kernel fills
    512 neighbouring counts of one item at a time. `memory` (uint32 [band_cells]) is used for it
    where given: fresh memory costs more than counting little.
    """

    def __init__(
        self, first: int, last: int, n_items: int, memory: npt.NDArray[np.uint32] | None = None
    ) -> None:
        self.first, self.last = first, last
        shape = n_items - first, -(-(last - first) // TILE) * TILE
        if memory is None:
            memory = np.empty(shape[0] * shape[1], dtype=np.uint32)
        self._transposed = memory[: shape[0] * shape[1]].reshape(shape)
        self._transposed[:] = 0

    def add(self, block: Block) -> None:
        """Add a block's documents; at most 2**32 - 1 in all."""
        rows = _bit_rows(max(block.n_documents + 1, 1 << 16))
        planes = aligned_rows(2 * LEVELS)
        add_popcounts(*block, self.first, self.last, self._transposed, rows, planes)

    def counts(self, memory: npt.NDArray[np.uint32] | None = None) -> npt.NDArray[np.uint32]:
        """The counts so far, uint32 [last - first, K - first].

        Entry [i - first, j - first] is the number of documents with both, 0 where j <= i.
        """
        shape = self.last - self.first, len(self._transposed)
        if memory is None:
            memory = np.empty(shape[0] * shape[1], dtype=np.uint32)
        counts = memory[: shape[0] * shape[1]].reshape(shape)
        _upper_triangle(self._transposed, counts)
        return counts


def _bit_rows(n_rows: int) -> npt.NDArray[np.uint64]:
    """Scratch memory, at least `n_rows` bit-rows, that the calls of a thread share."""
    found: npt.NDArray[np.uint64] | None = getattr(_SCRATCH, "rows", None)
    if found is None or len(found) < n_rows:
        found = _SCRATCH.rows = aligned_rows(n_rows)
    return found


@kernel
def _upper_triangle(transposed: npt.NDArray[np.uint32], counts: npt.NDArray[np.uint32]) -> None:
    """Fill in `counts` with the transpose, 0 on and below the diagonal, by blocks for the cache."""
    n_rows, n_columns = counts.shape
    for left in range(0, n_columns, TRANSPOSE_BLOCK):
        right = min(left + TRANSPOSE_BLOCK, n_columns)
        for i in range(min(left, n_rows)):
            for j in range(left, right):
                counts[i, j] = transposed[j, i]
        for i in range(left, n_rows):
            for j in range(left, right):
                counts[i, j] = transposed[j, i] if j > i else np.uint32(0)


class GatherBand:
    """What PopcountBand counts, by row gather, the readable reference: one addition a pair."""

    def __init__(
        self, first: int, last: int, n_items: int, memory: npt.NDArray[np.uint32] | None = None
    ) -> None:
        self.first = first
        self._counts = np.zeros((last - first, n_items - first), dtype=np.uint32)

    def add(self, block: Block) -> None:
        """Add a block's documents; at most 2**32 - 1 in all."""
        _add_gathered(*block, self.first, self._counts)

    def counts(self, memory: npt.NDArray[np.uint32] | None = None) -> npt.NDArray[np.uint32]:
        """The counts so far, as PopcountBand's."""
        return self._counts


def band_counter() -> type[PopcountBand] | type[GatherBand]:
    """The fastest way to count a band that works here."""
    return PopcountBand if has_popcount() else GatherBand


def pair_counts(
    blocks: Iterable[Block],
    first: int,
    last: int,
    n_items: int,
    way: type[PopcountBand] | type[GatherBand] | None = None,
) -> npt.NDArray[np.uint32]:
    """Counts of the pairs (i, j), first <= i < last, i < j, over all blocks (see PopcountBand)."""
    counter = (way or band_counter())(first, last, n_items)
    for block in blocks:
        counter.add(block)
    return counter.counts()


@kernel
def _add_gathered(
    row_offsets: npt.NDArray[np.int64],
    documents: npt.NDArray[np.uint16 | np.uint32],
    n_documents: int,
    first: int,
    counts: npt.NDArray[np.uint32],
) -> None:
    # The documents' items again, ascending: the index turned back.
    offsets = np.zeros(n_documents + 1, dtype=np.int64)
    for document in documents[row_offsets[first] :]:
        offsets[np.int64(document) + 1] += 1
    for document in range(n_documents):
        offsets[document + 1] += offsets[document]
    items = np.empty(offsets[n_documents], dtype=np.uint32)
    # Where a document's items above i begin: filled from the last item on, so that they ascend.
    above = offsets[1:].copy()
    for i in range(first + counts.shape[1] - 1, first - 1, -1):
        for document in documents[row_offsets[i] : row_offsets[i + 1]]:
            if i < first + counts.shape[0]:
                for j in items[above[document] : offsets[np.int64(document) + 1]]:
                    counts[i - first, np.int64(j) - first] += np.uint32(1)
            above[document] -= 1
            items[above[document]] = i


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
        found = pair_counts(blocks, 0, n_items, n_items, PopcountBand)
    except (NumbaError, RuntimeError, TypeError) as error:
        log.warning("pairs are counted by row gather: popcount does not compile (%s)", error)
        return False
    if np.array_equal(found, pair_counts(blocks, 0, n_items, n_items, GatherBand)):
        return True
    log.warning("pairs are counted by row gather: popcount counts a sample wrongly")
    return False
