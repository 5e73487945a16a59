"""Pairs of items in windows: map tasks count blocks of documents, merge tasks add up row bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.errors import SettingsError
from mining.common.files import read_json, write_json
from mining.contexts import Source, read_contexts
from mining.kernels.cooccurrence import bands
from mining.kernels.window import (
    Rows,
    Weighting,
    add_rows,
    distance_weights,
    pad_documents,
    window_counts,
)
from mining.pair_table import write_band
from mining.pieces import Piece, count_tokens, map_array, save_array


@dataclass(frozen=True)
class Window:
    """How far apart two items may stand, in tokens, and what each distance weighs."""

    width: int
    directed: bool
    weighting: Weighting

    def weights(self) -> npt.NDArray[np.uint64]:
        """The weight of each distance, uint64 [width]; sums are to be divided by the first."""
        return distance_weights(self.width, self.weighting)


def check_overflow(window: Window, shards: Sequence[Path]) -> None:
    """Raise SettingsError where a sum of weights might not fit 64 bits."""
    n_tokens = sum(count_tokens(shards))
    # A place meets `width` later ones and, in a pair of two items, as many earlier ones.
    most = 2 * n_tokens * sum(map(int, window.weights()))
    if most >= 1 << 64:
        raise SettingsError(
            f"count.window: {window.width} with {window.weighting} weights over {n_tokens} tokens "
            "may not fit 64 bits; take a smaller window or flat weights"
        )


def count_window_pairs(
    rank: int,
    world: int,
    source: Source,
    item_of: Path,
    n_items: int,
    window: Window,
    folder: Path,
    block_tokens: int,
) -> None:
    """Map task: the weighted pairs of each block of the task's documents, as sparse rows."""
    numbering = np.load(item_of, allow_pickle=False)
    n_blocks = 0
    for stream in _streams(source, numbering, window, rank, world, block_tokens):
        counts = window_counts(stream, window.weights(), window.directed, n_items)
        save_rows(folder, rank, n_blocks, counts)
        n_blocks += 1
    write_json(folder / f"blocks-{rank:05d}.json", n_blocks)


def save_rows(folder: Path, rank: int, block: int, counts: Rows) -> None:
    """Leave the pairs of a block of the task `rank` for the merge tasks."""
    for name in Rows._fields:
        save_array(_path(folder, rank, block, name), getattr(counts, name))


def _streams(
    source: Source,
    item_of: npt.NDArray[np.int32],
    window: Window,
    rank: int,
    world: int,
    block_tokens: int,
) -> Iterator[npt.NDArray[np.int32]]:
    held: list[npt.NDArray[np.int32]] = []
    n_held = 0
    for piece, kept in read_contexts(source, rank, world):
        held.append(window_stream(piece, kept, item_of, window.width))
        n_held += len(held[-1])
        if n_held >= block_tokens:
            yield np.concatenate(held)
            held, n_held = [], 0
    if held:
        yield np.concatenate(held)


def window_stream(
    piece: Piece, kept: npt.NDArray[np.bool_], item_of: npt.NDArray[np.int32], width: int
) -> npt.NDArray[np.int32]:
    """The documents of a piece that are kept, as a stream of items (see `pad_documents`)."""
    sizes = np.diff(piece.offsets)
    tokens = piece.tokens[np.repeat(kept, sizes)]
    offsets = np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64)
    return pad_documents(tokens, offsets, item_of, width)


def merge_window_pairs(
    rank: int, world: int, partial: Path, n_parts: int, n_items: int, directed: bool, out: Path
) -> None:
    """Merge task: add up every world-th band of rows over all blocks, and write it as Parquet."""
    blocks = [
        (part, block)
        for part in range(n_parts)
        for block in range(read_json(partial / f"blocks-{part:05d}.json"))
    ]
    for band, (first, last) in list(enumerate(bands(n_items)))[rank::world]:
        left = 0 if directed else first  # undirected pairs have i <= j
        total = np.zeros((last - first, n_items - left), dtype=np.uint64)
        for place in blocks:
            # Mapped anew for each band: a mapped file counts as an open one.
            block = Rows(*(map_array(_path(partial, *place, name)) for name in Rows._fields))
            ends = block.offsets[first : last + 1]
            some = slice(ends[0], ends[-1])
            add_rows(ends, block.right[some], block.sums[some], left, total)
        write_band(out / f"{band:05d}.parquet", total, first, left)


def _path(folder: Path, rank: int, block: int, name: str) -> Path:
    return folder / f"windows-{rank:05d}" / f"{block:05d}-{name}.npy"
