"""Counts pairs band by band: map tasks leave an inverted index on disk, band tasks count from it.

A map task turns its share of the documents into blocks of an inverted index, 2 bytes for each
different item of a document. A band task reads all shares and counts some rows of the triangle of
pairs, which it writes once: no triangle of partial counts is ever written, so disk grows with the
documents and not with the square of the items. Several bands are counted in one reading of the
index where memory allows. An engine that moves sums instead of an index (Spark) takes the counts of
one share from `band_counts`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.files import atomic_path, read_json, write_json
from mining.contexts import Source, read_contexts
from mining.kernels.cooccurrence import (
    Block,
    band_cells,
    band_counter,
    bands,
    block_documents,
    index_block,
    unique_items,
)
from mining.pair_table import write_band

# Counts are 32 bits wide until they are added up over more documents than that.
MAX_DOCUMENTS = (1 << 32) - 1
ALIGNMENT = 4  # of a block's documents in their file: the largest type of their numbers


@dataclass(frozen=True)
class StoredBlock:
    """Where a block lies in a share's files, and how large it is.

    `row_offsets` and `documents` are the places of its arrays, in bytes.
    """

    folder: Path
    n_documents: int
    n_postings: int
    row_offsets: int
    documents: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the document numbers (see Block)."""
        return np.dtype(np.uint16 if self.n_documents < 1 << 16 else np.uint32)

    def read(self, n_items: int, first: int) -> Block:
        """The block without the items below `first`, which are left without documents."""
        row_offsets = np.fromfile(
            self.folder / "rows.bin", np.int64, n_items + 1, offset=self.row_offsets
        )
        skipped = int(row_offsets[first])
        start = self.documents + skipped * self.dtype.itemsize
        documents = _map_file(
            self.folder / "documents.bin", start, self.n_postings - skipped, self.dtype
        )
        return Block(np.maximum(row_offsets - skipped, 0), documents, self.n_documents)


def _map_file(path: Path, start: int, size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`size` numbers of a file, from the byte `start` on, mapped into memory: nothing is copied.

    Writes never reach the file; it is not read-only, because kernels are compiled for one kind of
    array.
    """
    if size == 0:
        return np.empty(0, dtype=dtype)
    skipped = start % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapped = mmap.mmap(
            file.fileno(), skipped + size * dtype.itemsize, access=mmap.ACCESS_COPY,
            offset=start - skipped,
        )  # fmt: skip
    mapped.madvise(mmap.MADV_WILLNEED)  # or a network's file system is asked page by page
    return np.frombuffer(mapped, dtype, size, skipped)


def index_documents(
    rank: int,
    world: int,
    source: Source,
    item_of: Path,
    n_items: int,
    folder: Path,
    block_postings: int,
) -> None:
    """Map task: write the index of every world-th piece of the shards, from the rank-th on.

    `item_of` is the file that maps ids to items. It goes to `index_folder(folder, rank)`.
    """
    numbering = np.load(item_of, allow_pickle=False)
    blocks = index_blocks(source, numbering, n_items, rank, world, block_postings)
    write_index(index_folder(folder, rank), blocks)


def write_index(folder: Path, blocks: Iterable[Block]) -> None:
    """Write blocks as they come, for `read_index`; the list of them last."""
    listed = []
    with (
        atomic_path(folder / "rows.bin") as rows_path,
        atomic_path(folder / "documents.bin") as documents_path,
        rows_path.open("wb") as rows,
        documents_path.open("wb") as documents,
    ):
        for block in blocks:
            listed.append([block.n_documents, len(block.documents), rows.tell(), documents.tell()])
            rows.write(np.ascontiguousarray(block.row_offsets).data)
            documents.write(np.ascontiguousarray(block.documents).data)
            documents.write(bytes(-documents.tell() % ALIGNMENT))
    write_json(folder / "blocks.json", listed)


def index_folder(folder: Path, rank: int) -> Path:
    """Where the map task `rank` leaves its index."""
    return folder / f"index-{rank:05d}"


def index_blocks(
    source: Source,
    item_of: npt.NDArray[np.int32],
    n_items: int,
    rank: int,
    world: int,
    block_postings: int,
) -> Iterator[Block]:
    """A share's documents in blocks of bounded size, documents without any item left out."""
    most_documents = block_documents(n_items)
    held: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]] = []
    n_held = n_documents = 0
    for piece, kept in read_contexts(source, rank, world):
        found, ends = unique_items(piece.tokens, piece.offsets, kept, item_of, n_items)
        sizes = np.diff(ends)
        sizes, start = sizes[sizes > 0], 0
        while len(sizes):
            taken = sizes[: most_documents - n_documents]
            n_taken = int(taken.sum())
            held.append((found[start : start + n_taken], taken))
            n_held, n_documents = n_held + n_taken, n_documents + len(taken)
            sizes, start = sizes[len(taken) :], start + n_taken
            if n_documents == most_documents or n_held >= block_postings:
                yield _join(held, n_items)
                held, n_held, n_documents = [], 0, 0
    if held:
        yield _join(held, n_items)


def _join(held: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]], n_items: int) -> Block:
    items, sizes = (np.concatenate(parts) for parts in zip(*held, strict=True))
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return index_block(items, offsets, n_items)


def read_index(folder: Path, ranks: Sequence[int]) -> list[StoredBlock]:
    """The blocks that the map tasks `ranks` left below `folder`."""
    found = []
    for rank in ranks:
        share = index_folder(folder, rank)
        found += [StoredBlock(share, *entry) for entry in read_json(share / "blocks.json")]
    return found


def band_counts(
    index: Sequence[StoredBlock],
    n_items: int,
    wanted: Sequence[int] | None = None,
    bands_at_a_time: int = 1,
) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """The counts of pairs over the blocks of an index: for each band its number and its counts.

    `wanted` are the numbers of bands, None for all. The counts are uint32 [last - first, K - first]
    for the band's rows first..last - 1, 0 on and below the diagonal. The array is filled again for
    the next band: take what is needed before. Each `bands_at_a_time` bands cost a reading of the
    index and `4 * band_cells(n_items)` bytes each. Raises OverflowError above MAX_DOCUMENTS.
    """
    n_documents = sum(block.n_documents for block in index)
    if n_documents > MAX_DOCUMENTS:
        raise OverflowError(f"{n_documents} documents in one sum of 32 bits, divide them")
    borders = bands(n_items)
    chosen = list(range(len(borders)) if wanted is None else wanted)
    way, cells = band_counter(), band_cells(n_items)
    n_kept = min(bands_at_a_time, len(chosen))
    memory = [np.empty(cells, dtype=np.uint32) for _ in range(n_kept + 1)]
    for start in range(0, len(chosen), bands_at_a_time):
        group = chosen[start : start + bands_at_a_time]
        counters = [way(*borders[band], n_items, memory[k]) for k, band in enumerate(group)]
        for block in index:
            read = block.read(n_items, borders[min(group)][0])
            for counter in counters:
                counter.add(read)
            del read  # or it would be held beside the next one
        for band, counter in zip(group, counters, strict=True):
            yield band, counter.counts(memory[-1])


def write_bands(
    rank: int,
    world: int,
    partial: Path,
    n_parts: int,
    n_items: int,
    out: Path,
    bands_at_a_time: int,
) -> None:
    """Band task: count every world-th band over all shares, and write each as Parquet."""
    borders = bands(n_items)
    wanted = range(len(borders))[rank::world]
    sums = _sums(read_index(partial, range(n_parts)))
    if len(sums) == 1:
        for band, counts in band_counts(sums[0], n_items, wanted, bands_at_a_time):
            write_band(out / f"{band:05d}.parquet", counts, borders[band][0], borders[band][0])
        return
    for band in wanted:
        first, last = borders[band]
        total = np.zeros((last - first, n_items - first), dtype=np.uint64)
        for index in sums:
            for _, counts in band_counts(index, n_items, [band]):
                total += counts
        write_band(out / f"{band:05d}.parquet", total, first, first)


def _sums(index: list[StoredBlock]) -> list[list[StoredBlock]]:
    """Divide an index into parts of at most MAX_DOCUMENTS documents; at least one part."""
    parts: list[list[StoredBlock]] = [[]]
    n_documents = 0
    for block in index:
        if n_documents + block.n_documents > MAX_DOCUMENTS:
            parts.append([])
            n_documents = 0
        parts[-1].append(block)
        n_documents += block.n_documents
    return parts
