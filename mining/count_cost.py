"""What the `count` stage costs: its work in countable units, and how long a unit takes here.

    seconds = (2 read + frequencies + unique) · tokens + index · postings
              + rows · Σ_j doc_freq(j) (⌊j / 512⌋ + 1) + cells · blocks · K² / 2
              + transpose · K² / 2 + write · pairs

The work follows from the documents (their number, tokens and document frequencies); the rates are
measured on a small sample of the real shards, in some seconds, with the code that counts. The pairs
that occur at all are extrapolated: see `expected_pairs`.
"""

from __future__ import annotations

import dataclasses
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
from mining.pair_table import write_band
from mining.pieces import count_tokens

SAMPLE_TOKENS = 4_000_000
SAMPLE_PIECES = 16
RANK_CLASSES = 256
# Three times: starting tasks, and a pool of processes where there is more than one worker.
START_SECONDS, POOL_SECONDS = 3 * 0.2, 3 * 1.5


@dataclass(frozen=True)
class Work:
    """What is to be done.

    `postings`: different items of a document, summed up; `row_additions`: bit-rows added up;
    `cells`: counts brought up to date, over all blocks; `triangle`: counts of the pairs once;
    `pairs`: those above 0. `tokens` and `documents` are those read.
    """

    tokens: float
    documents: float
    postings: float
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
    def seconds(self) -> float:
        """Wall-clock time; tasks share the work evenly, but a band is one task's."""
        fixed = START_SECONDS + (POOL_SECONDS if self.workers > 1 else 0.0)
        parts = self.rates.seconds(self.work)
        banded = sum(parts[name] for name in ("rows", "cells", "transpose", "write"))
        rest = sum(parts.values()) - banded
        return fixed + rest / self.workers + banded / min(self.workers, self.n_bands)

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
) -> Work:
    """The work for items of these document frequencies (falling, [K])."""
    n_items = len(doc_freq)
    starts = np.arange(0, n_items, TILE)
    triangle = float((n_items - starts).sum() * TILE)
    n_blocks = max(1, -(-int(documents) // block_documents(n_items)))
    return Work(
        tokens=tokens,
        documents=documents,
        postings=float(doc_freq.sum()),
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


def estimate(
    source: Source, excluded: npt.NDArray[np.bool_], n_items: int, workers: int, most: int
) -> Estimate:
    """Measure a sample of at most `most` tokens of the shards, and what all will take.

    `excluded` bool [n_ids] are ids that never are items. Raises InputError where the sample holds
    no two items.
    """
    in_pieces = count_tokens(source.shards)
    n_tokens, n_pieces = sum(in_pieces), len(in_pieces)
    _load_code(source, max(1, n_pieces))
    wanted = max(1, min(SAMPLE_PIECES, n_pieces * most // max(1, n_tokens)))
    step = max(1, n_pieces // wanted)
    start = time.perf_counter()
    sample = []
    read = 0
    for piece, kept in read_contexts(source, 0, step):
        sample.append((piece, kept))
        read += len(piece.tokens)
        if read >= most or len(sample) == wanted:
            break
    seconds_read = time.perf_counter() - start
    if not read:
        raise InputError(f"{source.shards[0].parent}: holds no tokens to measure")

    start = time.perf_counter()
    frequencies = np.zeros((1, source.n_ids), dtype=np.uint64)
    for piece, kept in sample:
        groups = np.where(kept, np.int64(0), np.int64(-1))
        add_document_frequencies(piece.tokens, piece.offsets, groups, frequencies)
    seconds_frequencies = time.perf_counter() - start
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

    start = time.perf_counter()
    parts = [
        unique_items(piece.tokens, piece.offsets, kept, item_of, len(ids)) for piece, kept in sample
    ]
    seconds_unique = time.perf_counter() - start
    items = np.concatenate([found for found, _ in parts])
    sizes = np.concatenate([np.diff(ends) for _, ends in parts])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as scratch:
        block = index_block(items, offsets, len(ids))
        block.documents.tofile(scratch)
    seconds_index = time.perf_counter() - start

    few = len(sizes) // 8
    blocks = [block]
    if few:
        blocks.append(index_block(items[: offsets[few]], offsets[: few + 1], len(ids)))
    kernel = _measure_kernel(blocks, len(ids))
    # Documents of the whole are those of the sample, as many times as its tokens are in it.
    scale = n_tokens / read
    found = allowed[ids].astype(np.float64)
    documents = len(sizes) * scale
    pairs = expected_pairs(found, len(sizes), kernel.counted_rows, kernel.n_seen, documents)
    if scale > 1 and len(ids) < n_items:
        # Rare ids that the sample has missed will be items too, with few documents each.
        found = np.concatenate([found, np.zeros(min(n_items, int((~excluded).sum())) - len(ids))])
    return Estimate(
        work=work_of(found * scale, documents, n_tokens, pairs),
        rates=Rates(
            read=seconds_read / read,
            frequencies=seconds_frequencies / read,
            unique=seconds_unique / read,
            index=seconds_index / max(1, len(items)),
            **kernel.rates,
        ),
        workers=workers,
        n_bands=len(bands(max(len(ids), len(found)))),
    )


def _load_code(source: Source, n_pieces: int) -> None:
    """Run once what is to be measured: to compile or load it takes longer than a sample."""
    next(read_contexts(source, 0, n_pieces), None)
    tokens, offsets = np.arange(TILE, dtype=np.uint32), np.array([0, TILE])
    found = np.zeros((1, TILE), dtype=np.uint64)
    add_document_frequencies(tokens, offsets, np.zeros(1, dtype=np.int64), found)
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
    """Count some bands of each block, and write those of blocks[0], the whole sample."""
    borders = bands(n_items)
    chosen = sorted({0, len(borders) // 4, len(borders) // 2})
    done, seconds = [], []
    counted_rows = []
    n_seen = n_cells = file_bytes = 0
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
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "band.parquet"
                start = time.perf_counter()
                write_band(path, counts, first, first)
                write += time.perf_counter() - start
                n_seen += pq.read_metadata(path).num_rows
                file_bytes += path.stat().st_size
    # Least squares of the relative errors; a time is never below 0.
    relative = np.array(done, dtype=np.float64) / np.array(seconds)[:, None]
    (rows, cells), _ = nnls(relative, np.ones(len(seconds)))
    rates = {
        "rows": float(rows),
        "cells": float(cells),
        "transpose": transpose / n_cells,
        "write": write / max(1, n_seen),
        "pair_bytes": file_bytes / max(1, n_seen),
    }
    return _Kernel(rates, np.concatenate(counted_rows), n_seen)


def describe(found: Estimate) -> dict[str, float]:
    """An estimate's figures for run.json."""
    return {
        **dataclasses.asdict(found.work),
        **{f"seconds_{part}": value for part, value in found.rates.seconds(found.work).items()},
        "seconds": found.seconds,
        "index_bytes": found.index_bytes,
        "output_bytes": found.output_bytes,
    }
