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
from mining.pair_table import ROWS_PER_GROUP
from mining.pieces import count_tokens

# Python with numpy, numba, pyarrow and datatrove, and the compiled kernels.
BASE_BYTES = 380 << 20
# A token of a piece: what Parquet decodes, Arrow's list, our copy and its different items.
TOKEN_BYTES = 20
# A posting while its block is put together: the items of its pieces, joined, and the index.
POSTING_BYTES = 12
MIN_POSTINGS, MAX_POSTINGS = 1 << 20, 1 << 25
# Without a limit: bands that are counted in one reading of the index.
DEFAULT_BANDS_BYTES = 1 << 28
BIT_ROWS_BYTES = 64 * (MAX_BLOCK_DOCUMENTS + 2)
WRITER_BYTES = 5 * 16 * ROWS_PER_GROUP


@dataclass(frozen=True)
class MemoryPlan:
    """How the `count` stage divides its work to stay below a limit of memory.

    `bytes` is what a task takes at most.
    """

    block_postings: int
    bands_at_a_time: int
    bytes: int


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
    if limit is not None and limit < least:
        raise SettingsError(
            f"count.memory_limit: found {limit} bytes, a task that counts {n_items} items takes at "
            f"least {least} ({-(-least // 10**6)}MB)"
        )
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
