"""Reads token shards piece by piece: the unit that map tasks share, small enough for memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mining.common.errors import InputError
from mining.common.files import atomic_path
from mining.common.shards import open_table


@dataclass(frozen=True)
class Piece:
    """The documents of one row group of a shard.

    `first` is the number of its first document, counted over all shards in order. `lang` int64
    [n_docs] points into `languages`. Document d's tokens are tokens[offsets[d]:offsets[d + 1]];
    they are Arrow's memory and read-only.
    """

    first: int
    languages: list[str]
    lang: npt.NDArray[np.int64]
    source: pa.Array
    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.lang)


def count_pieces(shards: Sequence[Path]) -> int:
    """The number of pieces that `read_pieces` divides the shards into."""
    return sum(pq.read_metadata(path).num_row_groups for path in shards)


def head_of(piece: Piece, n_rows: int) -> Piece:
    """The first rows of a piece."""
    return dataclasses.replace(
        piece,
        lang=piece.lang[:n_rows],
        source=piece.source[:n_rows],
        offsets=piece.offsets[: n_rows + 1],
        tokens=piece.tokens[: piece.offsets[n_rows]],
    )


def count_documents(shards: Sequence[Path]) -> list[int]:
    """The number of documents of each piece, from the files' metadata."""
    found = []
    for path in shards:
        metadata = pq.read_metadata(path)
        found += [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    return found


def count_tokens(shards: Sequence[Path]) -> list[int]:
    """The number of tokens of each piece, from the files' metadata.

    A document without tokens counts as one.
    """
    found = []
    for path in shards:
        metadata = pq.read_metadata(path)
        column = metadata.num_columns - 1  # `tokens` is the last of a shard's columns
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        found += [group.column(column).num_values for group in groups]
    return found


def read_pieces(shards: Sequence[Path], n_ids: int, rank: int, world: int) -> Iterator[Piece]:
    """Yield every world-th piece of the shards, from the rank-th on.

    Raises InputError where a shard holds an id of `n_ids` or more.
    """
    number = 0
    first = 0
    for path in shards:
        with open_table(path) as file:
            for group in range(file.num_row_groups):
                n_documents = file.metadata.row_group(group).num_rows
                if n_documents and number % world == rank:
                    table = file.read_row_group(group, columns=["lang", "source", "tokens"])
                    yield _as_piece(path, first, table.combine_chunks().to_batches()[0], n_ids)
                number += 1
                first += n_documents


def _as_piece(path: Path, first: int, batch: pa.RecordBatch, n_ids: int) -> Piece:
    encoded = pc.dictionary_encode(batch.column("lang"))
    lists = batch.column("tokens")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    tokens = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    if len(tokens) and int(tokens.max()) >= n_ids:
        raise InputError(f"{path}: holds the id {int(tokens.max())}, the vocabulary has {n_ids}")
    return Piece(
        first=first,
        languages=encoded.dictionary.to_pylist(),
        lang=encoded.indices.to_numpy().astype(np.int64),
        source=batch.column("source"),
        offsets=offsets - offsets[0],
        tokens=tokens,
    )


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as .npy, atomically."""
    array = np.asarray(array, order="C")
    header = np.lib.format.header_data_from_array_1_0(array)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        # np.save leaves it to the C library, and knows of a full disk only how much is missing.
        handle.write(array.data)


def map_array(path: Path) -> npt.NDArray[Any]:
    """A saved array, mapped into memory if it has entries; writes to it never reach the file.

    Not read-only, because kernels are compiled for one kind of array.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except ValueError:  # nothing to map in an empty array
        return np.asarray(np.load(path, allow_pickle=False))
