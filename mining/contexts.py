"""What the `count` stage counts over: documents of chosen sources, or pieces of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mining.pieces import Piece, read_pieces


@dataclass(frozen=True)
class Source:
    """What a map task has to know of the shards.

    `sources` are those that count (none: all), `n_ids` is the size of the vocabulary,
    `sequence_length` the most tokens of a context, or None where it is the whole document.
    """

    shards: tuple[Path, ...]
    sources: tuple[str, ...]
    n_ids: int
    sequence_length: int | None = None


def read_contexts(
    source: Source, rank: int, world: int
) -> Iterator[tuple[Piece, npt.NDArray[np.bool_]]]:
    """Yield every world-th piece of the shards from the rank-th on, and which of its rows count.

    The rows are documents or, with `sequence_length`, their pieces (see `cut_documents`).
    """
    for piece in read_pieces(source.shards, source.n_ids, rank, world):
        if source.sequence_length is not None:
            piece = cut_documents(piece, source.sequence_length)
        yield piece, _kept(piece, source.sources)


def cut_documents(piece: Piece, length: int) -> Piece:
    """Cut documents into consecutive pieces of at most `length` tokens; an empty one stays one."""
    sizes = np.diff(piece.offsets)
    n_pieces = np.maximum(1, -(-sizes // length))
    document = np.repeat(np.arange(len(sizes)), n_pieces)
    within = np.arange(len(document)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    starts = piece.offsets[document] + within * length
    return dataclasses.replace(
        piece,
        lang=piece.lang[document],
        source=piece.source.take(pa.array(document)),
        offsets=np.append(starts, piece.offsets[-1]),
    )


def _kept(piece: Piece, sources: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Which rows of a piece count: those of the given sources, or all (bool [n_rows])."""
    if not sources:
        return np.ones(len(piece), dtype=np.bool_)
    known = pa.array(sources, pa.string())
    return np.asarray(pc.is_in(piece.source, value_set=known).to_numpy(zero_copy_only=False))
