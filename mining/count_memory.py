"""How much memory a task of the `count` stage takes, and how to stay below a limit.

The sizes here are what docs/SCALING.md writes down as a formula; `launch.bench.memory` compares
them with what the operating system says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mining.common.errors import SettingsError
from mining.kernels.cooccurrence import MAX_BLOCK_DOCUMENTS, band_cells, bands
from mining.kernels.window import PAIRS_AT_A_TIME
from mining.pair_table import ROWS_PER_GROUP
from mining.pieces import count_documents, count_tokens

# Python with numpy, numba, pyarrow and datatrove, and the compiled kernels.
BASE_BYTES = 380 << 20
# A token of a piece: what Parquet decodes, Arrow's list, our copy and its different items.
TOKEN_BYTES = 20
# A posting while its block is put together: the items of its pieces, joined, and the index.
POSTING_BYTES = 12
MIN_POSTINGS, MAX_POSTINGS = 1 << 20, 1 << 25
# A place of a stream: its item, twice while blocks are joined, and where it stands.
PLACE_BYTES = 16
PAIR_BYTES = 12  # of a sparse row
MIN_BLOCK_TOKENS, MAX_BLOCK_TOKENS = 1 << 20, 1 << 26
# Without a limit: bands that are counted in one reading of the index.
DEFAULT_BANDS_BYTES = 1 << 28
BIT_ROWS_BYTES = 64 * (MAX_BLOCK_DOCUMENTS + 2)
WRITER_BYTES = 5 * 16 * ROWS_PER_GROUP


@dataclass(frozen=True)
class MemoryPlan:
    """How the `count` stage divides its work to stay below a limit of memory.

    `block_size` is the least number of postings (different items of documents) in a block of the
    index or, where pairs are counted in windows, of tokens in a block; `bytes` is what a task takes
    at most.
    """

    block_size: int
    bands_at_a_time: int
    bytes: int

    def bytes_of(self, n_tasks: int) -> int:
        """What so many tasks take together that are threads of one process."""
        return self.bytes + (n_tasks - 1) * (self.bytes - BASE_BYTES)


def plan_memory(
    limit: int | None, n_items: int, n_ids: int, shards: Sequence[Path], n_languages: int
) -> MemoryPlan:
    """Divide the work so that a task takes at most `limit` bytes; None stands for no limit.

    Raises SettingsError, naming the least that works, where the limit is below it.
    """
    pieces = count_tokens(shards)
    largest = max(pieces, default=0)
    first_pass = _frequencies_bytes(largest, n_ids, n_languages)
    least = max(
        first_pass,
        _index_bytes(MIN_POSTINGS, largest, n_ids),
        _bands_bytes(1, MIN_POSTINGS + largest, n_items),
    )
    _check_limit(limit, least, n_items)
    postings = max(MIN_POSTINGS, min(MAX_POSTINGS, sum(pieces)))
    while (
        limit is not None
        and postings > MIN_POSTINGS
        and limit
        < max(_index_bytes(postings, largest, n_ids), _bands_bytes(1, postings + largest, n_items))
    ):
        postings = max(MIN_POSTINGS, postings // 2)
    block = postings + largest  # its last piece may go over the limit of a block
    fixed = _bands_bytes(0, block, n_items)
    at_a_time = bands_within(DEFAULT_BANDS_BYTES if limit is None else limit - fixed, n_items)
    taken = _index_bytes(postings, largest, n_ids), _bands_bytes(at_a_time, block, n_items)
    return MemoryPlan(postings, at_a_time, max(first_pass, *taken))


def plan_windows(
    limit: int | None,
    n_items: int,
    n_ids: int,
    shards: Sequence[Path],
    n_languages: int,
    width: int,
    directed: bool,
) -> MemoryPlan:
    """The same for pairs in windows of `width` tokens; one band is counted at a time."""
    pieces = count_tokens(shards)
    largest = max(pieces, default=0)
    # A piece as a stream: `width` gaps before and after every document.
    sizes = zip(pieces, count_documents(shards), strict=True)
    stream = max((tokens + width * (rows + 1) for tokens, rows in sizes), default=0)
    cells = n_items * n_items if directed else n_items * (n_items + 1) // 2

    def counting(block: int) -> int:
        places = block + stream  # its last piece may go over the size of a block
        pairs = min(places * width, cells) + max(n_items, PAIRS_AT_A_TIME)
        return BASE_BYTES + TOKEN_BYTES * largest + PLACE_BYTES * places + PAIR_BYTES * pairs

    # Sums of 8 bytes, and a block's pairs as they are mapped into memory.
    merging = BASE_BYTES + (8 + PAIR_BYTES) * band_cells(n_items) + WRITER_BYTES
    other = max(_frequencies_bytes(largest, n_ids, n_languages), merging)
    _check_limit(limit, max(counting(MIN_BLOCK_TOKENS), other), n_items)
    block = max(MIN_BLOCK_TOKENS, min(MAX_BLOCK_TOKENS, sum(pieces)))
    while limit is not None and block > MIN_BLOCK_TOKENS and limit < counting(block):
        block = max(MIN_BLOCK_TOKENS, block // 2)
    return MemoryPlan(block, 1, max(counting(block), other))


def _check_limit(limit: int | None, least: int, n_items: int) -> None:
    if limit is not None and limit < least:
        raise SettingsError(
            f"count.memory_limit: found {limit} bytes, a task that counts {n_items} items takes at "
            f"least {least} ({-(-least // 10**6)}MB)"
        )


def bands_within(n_bytes: int, n_items: int) -> int:
    """How many bands can be counted at a time in arrays of `n_bytes`; at least one."""
    return max(1, min(len(bands(n_items)), n_bytes // (4 * band_cells(n_items))))


def _frequencies_bytes(largest_piece: int, n_ids: int, n_languages: int) -> int:
    """A task of the first pass: a piece, and counts by language, twice while one piece is added."""
    return BASE_BYTES + TOKEN_BYTES * largest_piece + (16 * n_languages + 8) * n_ids


def _index_bytes(postings: int, largest_piece: int, n_ids: int) -> int:
    """A map task: a piece, the block that it is added to, and the numbering of the items."""
    piece = TOKEN_BYTES * largest_piece
    return BASE_BYTES + piece + POSTING_BYTES * (postings + largest_piece) + 4 * n_ids


def _bands_bytes(at_a_time: int, postings: int, n_items: int) -> int:
    """A band task: the bands, one more for the transposed one, a block, and what is written."""
    block = 2 * postings + 24 * n_items
    arrays = 4 * band_cells(n_items) * (at_a_time + 1)
    return BASE_BYTES + arrays + block + BIT_ROWS_BYTES + WRITER_BYTES
