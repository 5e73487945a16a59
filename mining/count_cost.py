"""What the `count` stage costs: its work in countable units, and how long a unit takes here.

    seconds = (2 read + frequencies + unique) · tokens + index · postings
              + rows · Σ_j doc_freq(j) (⌊j / 512⌋ + 1) + cells · blocks · K² / 2
              + transpose · K² / 2 + write · pairs
              + read_again · Σ_readings Σ_{j >= its first item} doc_freq(j)

The work follows from the documents (their number, tokens and document frequencies); the rates are
measured on a small sample of the real shards, in some seconds, with the code that counts. The pairs
that occur at all are extrapolated: see `expected_pairs`.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.optimize import nnls

from mining.common.errors import InputError
from mining.contexts import Source, read_contexts
from mining.kernels.cooccurrence import (
    NOT_AN_ITEM,
    Block,
    add_document_frequencies,
    band_cells,
    band_counter,
    bands,
    block_documents,
    index_block,
    unique_items,
)
from mining.kernels.popcount import TILE
from mining.pair_bands import index_folder, read_index, write_index
from mining.pair_table import write_band
from mining.pieces import Piece, count_tokens, head_of

SAMPLE_TOKENS = 4_000_000
SAMPLE_PIECES = 16
RANK_CLASSES = 256
BAND_TASKS_PER_WORKER = 4
START_SECONDS = 0.3  # tables of items, folders, markers
BAND_PARTS = ("read_again", "rows", "cells", "transpose", "write")  # of a band task


@dataclass(frozen=True)
class Work:
    """What is to be done.

    `postings`: different items of a document, summed up; `read_again`: those that bands read from
    the index; `row_additions`: bit-rows added up; `cells`: counts brought up to date, over all
    blocks; `triangle`: counts of the pairs once; `pairs`: those above 0. `tokens` and `documents`
    are those read.
    """

    tokens: float
    documents: float
    postings: float
    read_again: float
    row_additions: float
    cells: float
    triangle: float
    pairs: float


@dataclass(frozen=True)
class Rates:
    """Seconds for each unit of Work, and bytes of a pair in the table."""

    read: float
    frequencies: float
    unique: float
    index: float
    read_again: float
    rows: float
    cells: float
    transpose: float
    write: float
    pair_bytes: float

    def seconds(self, work: Work) -> dict[str, float]:
        """Seconds of one core for each part of the work."""
        return {
            "read": 2 * self.read * work.tokens,
            "frequencies": self.frequencies * work.tokens,
            "unique": self.unique * work.tokens,
            "index": self.index * work.postings,
            "read_again": self.read_again * work.read_again,
            "rows": self.rows * work.row_additions,
            "cells": self.cells * work.cells,
            "transpose": self.transpose * work.triangle,
            "write": self.write * work.pairs,
        }


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take: wall-clock seconds, and bytes on disk."""

    work: Work
    rates: Rates
    workers: int
    n_bands: int

    @property
    def core_seconds(self) -> dict[str, float]:
        """Seconds of one core for each part of the work."""
        return self.rates.seconds(self.work)

    @property
    def seconds(self) -> float:
        """Wall-clock time; tasks share the work evenly, but a band is one task's."""
        parts = self.core_seconds
        banded = sum(parts[name] for name in BAND_PARTS)
        rest = sum(parts.values()) - banded
        return START_SECONDS + rest / self.workers + banded / min(self.workers, self.n_bands)

    @property
    def index_bytes(self) -> float:
        """Disk that the index takes while the stage runs."""
        return 2 * self.work.postings

    @property
    def output_bytes(self) -> float:
        """Disk that the table of pairs takes."""
        return self.rates.pair_bytes * self.work.pairs


def work_of(
    doc_freq: npt.NDArray[np.float64] | npt.NDArray[np.int64],
    documents: float,
    tokens: float,
    pairs: float,
    n_tasks: int,
    bands_at_a_time: int,
) -> Work:
    """The work for items of these document frequencies (falling, [K]), in so many band tasks."""
    n_items = len(doc_freq)
    borders = bands(n_items)
    # A task counts every n_tasks-th band, and reads the items from its first band's on.
    firsts = [
        borders[band][0]
        for rank in range(n_tasks)
        for band in range(rank, len(borders), n_tasks * bands_at_a_time)
    ]
    above = np.cumsum(np.asarray(doc_freq, dtype=np.float64)[::-1])[::-1]
    starts = np.arange(0, n_items, TILE)
    triangle = float((n_items - starts).sum() * TILE)
    n_blocks = max(1, -(-int(documents) // block_documents(n_items)))
    return Work(
        tokens=tokens,
        documents=documents,
        postings=float(doc_freq.sum()),
        read_again=float(above[firsts].sum()),
        row_additions=float((doc_freq * (np.arange(n_items) // TILE + 1)).sum()),
        cells=triangle * n_blocks,
        triangle=triangle,
        pairs=pairs,
    )


def expected_pairs(
    doc_freq: npt.NDArray[np.float64],
    n_sample: int,
    rows: npt.NDArray[np.int64],
    n_seen: float,
    documents: float,
) -> float:
    """How many pairs occur in `documents` documents, from what a sample of them shows.

    `doc_freq` float64 [K] are the frequencies in the sample's `n_sample` documents, falling;
    `n_seen` is the number of pairs (i, j > i) that occur there with i in `rows`. Taken as
    independent, items i and j never meet in N documents with probability exp(-N p_i p_j); that
    topics bring items together is one factor on all p_i p_j, chosen so that the sample's own pairs
    come out.
    """
    n_items = len(doc_freq)
    borders = np.unique(np.geomspace(1, n_items + 1, RANK_CLASSES).astype(np.int64)) - 1
    sizes = np.diff(borders)
    share = np.add.reduceat(doc_freq, borders[:-1]) / sizes / n_sample

    def pairs(at: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], n: float) -> float:
        above = np.clip(borders[1:] - np.maximum(borders[:-1], at[:, None] + 1), 0, None)
        meet = doc_freq[at][:, None] / n_sample * share
        return float((weight[:, None] * above * -np.expm1(-n * meet)).sum())

    sampled = rows[:: max(1, len(rows) // RANK_CLASSES)]
    weight = np.full(len(sampled), len(rows) / len(sampled))
    low, high = 1e-6, 1e6
    for _ in range(40):
        middle = (low * high) ** 0.5
        enough = pairs(sampled, weight, n_sample * middle) >= n_seen
        low, high = (low, middle) if enough else (middle, high)
    return pairs((borders[:-1] + borders[1:]) // 2, sizes.astype(np.float64), documents * low)


@dataclass(frozen=True)
class Sample:
    """Some pieces of the shards, and what the first pass makes of them.

    `pieces` come with the rows that count; `n_tokens` are theirs, `scale` times as many are in the
    shards. `ids` are those of the items found, `doc_freq` int64 their documents, falling; `item_of`
    maps ids to items. `n_items` is the number of items in all shards. The seconds are those of one
    token.
    """

    pieces: list[tuple[Piece, npt.NDArray[np.bool_]]]
    n_tokens: int
    scale: float
    ids: npt.NDArray[np.int64]
    doc_freq: npt.NDArray[np.int64]
    item_of: npt.NDArray[np.int32]
    n_items: int
    read_seconds: float
    frequencies_seconds: float


def take_sample(source: Source, excluded: npt.NDArray[np.bool_], n_items: int, most: int) -> Sample:
    """Read at most `most` tokens of the shards and choose the items among them.

    `excluded` bool [n_ids] are ids that never are items. Raises InputError where the sample holds
    no two items.
    """
    in_pieces = count_tokens(source.shards)
    n_tokens, n_pieces = sum(in_pieces), len(in_pieces)
    wanted = max(1, min(SAMPLE_PIECES, n_pieces * most // max(1, n_tokens)))
    step = max(1, n_pieces // wanted)
    start = time.perf_counter()
    pieces = []
    read = decoded = 0
    for piece, kept in read_contexts(source, 0, step):
        decoded += len(piece.tokens)
        # A small sample is a part of a piece.
        n_rows = max(1, int(np.searchsorted(piece.offsets, most - read, side="right")) - 1)
        pieces.append((head_of(piece, n_rows), kept[:n_rows]))
        read += len(pieces[-1][0].tokens)
        if read >= most or len(pieces) == wanted:
            break
    read_seconds = (time.perf_counter() - start) / max(1, decoded)
    if not read:
        raise InputError(f"{source.shards[0].parent}: holds no tokens to measure")

    start = time.perf_counter()
    frequencies = np.zeros((1, source.n_ids), dtype=np.uint64)
    for piece, kept in pieces:
        groups = np.where(kept, np.int64(0), np.int64(-1))
        add_document_frequencies(piece.tokens, piece.offsets, groups, frequencies)
    frequencies_seconds = (time.perf_counter() - start) / read
    allowed = np.where(excluded, 0, frequencies[0].astype(np.int64))
    ids = np.argsort(-allowed, kind="stable")[:n_items]
    ids = ids[allowed[ids] > 0]
    if len(ids) < 2:
        raise InputError(
            f"{source.shards[0].parent}: found no two items in a sample of documents (see "
            "count.sources and count.vocabulary)"
        )
    item_of = np.full(source.n_ids, NOT_AN_ITEM, dtype=np.int32)
    item_of[ids] = np.arange(len(ids), dtype=np.int32)
    scale = n_tokens / read
    # Rare ids that the sample has missed will be items too, with few documents each.
    every = min(n_items, int((~excluded).sum())) if scale > 1 else len(ids)
    return Sample(
        pieces, read, scale, ids, allowed[ids], item_of, every, read_seconds, frequencies_seconds
    )


def estimate(
    source: Source,
    excluded: npt.NDArray[np.bool_],
    n_items: int,
    workers: int,
    most: int,
    bands_at_a_time: int,
) -> Estimate:
    """Measure a sample of at most `most` tokens of the shards, and what all will take."""
    load_first_pass(source)
    _load_code()
    sample = take_sample(source, excluded, n_items, most)
    ids = sample.ids
    start = time.perf_counter()
    parts = [
        unique_items(piece.tokens, piece.offsets, kept, sample.item_of, len(ids))
        for piece, kept in sample.pieces
    ]
    seconds_unique = time.perf_counter() - start
    items = np.concatenate([found for found, _ in parts])
    sizes = np.concatenate([np.diff(ends) for _, ends in parts])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        block = index_block(items, offsets, len(ids))
        write_index(index_folder(Path(folder), 0), [block])
        seconds_index = time.perf_counter() - start
        start = time.perf_counter()
        (stored,) = read_index(Path(folder), [0])
        stored.read(len(ids), 0).documents.max(initial=0)
        seconds_read_again = time.perf_counter() - start

    few = len(sizes) // 8
    blocks = [block]
    if few:
        blocks.append(index_block(items[: offsets[few]], offsets[: few + 1], len(ids)))
    kernel = _measure_kernel(blocks, len(ids))
    # Documents of the whole are those of the sample, as many times as its tokens are in it.
    found = sample.doc_freq.astype(np.float64)
    documents = len(sizes) * sample.scale
    pairs = expected_pairs(found, len(sizes), kernel.counted_rows, kernel.n_seen, documents)
    found = np.concatenate([found, np.zeros(sample.n_items - len(found))]) * sample.scale
    n_bands = len(bands(len(found)))
    n_tasks = band_tasks(workers, n_bands)
    n_tokens = sample.n_tokens * sample.scale
    return Estimate(
        work=work_of(found, documents, n_tokens, pairs, n_tasks, bands_at_a_time),
        rates=Rates(
            read=sample.read_seconds,
            frequencies=sample.frequencies_seconds,
            unique=seconds_unique / sample.n_tokens,
            index=seconds_index / max(1, len(items)),
            read_again=seconds_read_again / max(1, len(items)),
            **kernel.rates,
        ),
        workers=workers,
        n_bands=n_bands,
    )


def band_tasks(workers: int, n_bands: int) -> int:
    """How many tasks share the bands: of unequal work and dealt out in turn, so some a worker."""
    return min(BAND_TASKS_PER_WORKER * workers, n_bands)


def load_first_pass(source: Source) -> None:
    """Run once what is to be measured: to compile or load it takes longer than a sample."""
    next(read_contexts(source, 0, max(1, len(count_tokens(source.shards)))), None)
    tokens, offsets = np.zeros(1, dtype=np.uint32), np.array([0, 1])
    tokens.flags.writeable = False  # as those of a piece: a kernel of its own
    found = np.zeros((1, 1), dtype=np.uint64)
    add_document_frequencies(tokens, offsets, np.zeros(1, dtype=np.int64), found)


def _load_code() -> None:
    tokens, offsets = np.arange(TILE, dtype=np.uint32), np.array([0, TILE])
    tokens.flags.writeable = False
    item_of = np.arange(TILE, dtype=np.int32)
    items, ends = unique_items(tokens, offsets, np.ones(1, dtype=np.bool_), item_of, TILE)
    _measure_kernel([index_block(items, ends, TILE)], TILE)


@dataclass(frozen=True)
class _Kernel:
    """The kernel's rates; the items whose pairs were counted for them, and how many occurred."""

    rates: dict[str, float]
    counted_rows: npt.NDArray[np.int64]
    n_seen: int


def _measure_kernel(blocks: list[Block], n_items: int) -> _Kernel:
    """Count some bands of each block, and write one of blocks[0], the whole sample."""
    borders = bands(n_items)
    chosen = sorted({0, len(borders) // 4, len(borders) // 2})
    done, seconds = [], []
    counted_rows = []
    n_seen = n_cells = n_written = file_bytes = 0
    transpose = write = 0.0
    memory = [np.zeros(band_cells(n_items), dtype=np.uint32) for _ in range(2)]
    for number, block in enumerate(blocks):
        doc_freq = np.diff(block.row_offsets)
        for band in chosen:
            first, last = borders[band]
            took = []
            for _ in range(2):  # the first time may wait for memory
                counter = band_counter()(first, last, n_items, memory[0])
                start = time.perf_counter()
                counter.add(block)
                took.append(time.perf_counter() - start)
            seconds.append(min(took))
            starts = np.arange(first, last, TILE)
            additions = sum(int(doc_freq[tile:].sum()) for tile in starts)
            done.append([additions, int((n_items - starts).sum()) * TILE])
            if number:
                continue
            start = time.perf_counter()
            counts = counter.counts(memory[1])
            transpose += time.perf_counter() - start
            n_cells += counts.size
            counted_rows.append(np.arange(first, last))
            n_seen += int(np.count_nonzero(counts))
            if band != chosen[-1]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "band.parquet"
                start = time.perf_counter()
                write_band(path, counts, first, first)
                write = time.perf_counter() - start
                n_written = pq.read_metadata(path).num_rows
                file_bytes = path.stat().st_size
    # Least squares of the relative errors; a time is never below 0.
    relative = np.array(done, dtype=np.float64) / np.array(seconds)[:, None]
    (rows, cells), _ = nnls(relative, np.ones(len(seconds)))
    rates = {
        "rows": float(rows),
        "cells": float(cells),
        "transpose": transpose / n_cells,
        "write": write / max(1, n_written),
        "pair_bytes": file_bytes / max(1, n_written),
    }
    return _Kernel(rates, np.concatenate(counted_rows), n_seen)
