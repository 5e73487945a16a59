"""What counting pairs in windows costs: its work in countable units, and how long a unit takes.

    seconds = (2 read + frequencies + window) · tokens + (save + add) · sparse_pairs
              + zero · cells + write · pairs

`sparse_pairs` are the pairs of all blocks of documents, `cells` those of the table. The rates are
measured on a sample of the real shards, as those of documents are (mining.count_cost).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mining.contexts import Source
from mining.count_cost import START_SECONDS, Sample, expected_pairs, load_first_pass, take_sample
from mining.kernels.cooccurrence import bands
from mining.kernels.window import Rows, add_rows, pad_documents, window_counts
from mining.pair_table import write_band
from mining.window_pairs import Window, save_rows, window_stream

MERGE_PARTS = ("add", "zero", "write")


@dataclass(frozen=True)
class WindowWork:
    """What is to be done; `sparse_pairs` are those of all blocks, `cells` those of the table."""

    tokens: float
    documents: float
    sparse_pairs: float
    cells: float
    pairs: float


@dataclass(frozen=True)
class WindowEstimate:
    """What a run is expected to take; `core_seconds` of each part of the work."""

    work: WindowWork
    core_seconds: dict[str, float]
    pair_bytes: float
    workers: int
    n_merge: int

    @property
    def seconds(self) -> float:
        """Wall-clock time; tasks share the work evenly, but a band is one task's."""
        merge = sum(self.core_seconds[name] for name in MERGE_PARTS)
        rest = sum(self.core_seconds.values()) - merge
        return START_SECONDS + rest / self.workers + merge / min(self.workers, self.n_merge)

    @property
    def index_bytes(self) -> float:
        """Disk that the blocks' pairs take while the stage runs."""
        return 12 * self.work.sparse_pairs

    @property
    def output_bytes(self) -> float:
        """Disk that the table of pairs takes."""
        return self.pair_bytes * self.work.pairs


def estimate_windows(
    source: Source,
    excluded: npt.NDArray[np.bool_],
    n_items: int,
    window: Window,
    workers: int,
    most: int,
    block_tokens: int,
) -> WindowEstimate:
    """Measure a sample of at most `most` tokens of the shards, and what all will take."""
    load_first_pass(source)
    _load_code(window)
    sample = take_sample(source, excluded, n_items, most)
    start = time.perf_counter()
    parts = [window_stream(*piece, sample.item_of, window.width) for piece in sample.pieces]
    stream = np.concatenate(parts)
    rows = window_counts(stream, window.weights(), window.directed, len(sample.ids))
    rates = {"window": (time.perf_counter() - start) / sample.n_tokens}
    rates["read"] = 2 * sample.read_seconds
    rates["frequencies"] = sample.frequencies_seconds
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        save_rows(Path(folder), 0, 0, rows)
        rates["save"] = (time.perf_counter() - start) / max(1, len(rows.right))
        merging, pair_bytes = _measure_merge(rows, window.directed, Path(folder))
    rates |= merging

    tokens = sample.n_tokens * sample.scale
    n_blocks = workers * max(1, round(tokens / workers / block_tokens))
    documents = sample.scale * sum(int(kept.sum()) for _, kept in sample.pieces)
    pairs, in_a_block = (
        _expected(sample, stream, rows, window.directed, n) for n in (tokens, tokens / n_blocks)
    )
    left = 0 if window.directed else 1
    borders = bands(sample.n_items)
    cells = sum((last - first) * (sample.n_items - left * first) for first, last in borders)
    work = WindowWork(tokens, documents, n_blocks * in_a_block, float(cells), pairs)
    units = dict.fromkeys(("read", "frequencies", "window"), tokens)
    units |= dict.fromkeys(("save", "add"), work.sparse_pairs)
    units |= {"zero": work.cells, "write": pairs}
    core_seconds = {name: rates[name] * n for name, n in units.items()}
    return WindowEstimate(work, core_seconds, pair_bytes, workers, len(borders))


def _expected(
    sample: Sample, stream: npt.NDArray[np.int32], rows: Rows, directed: bool, tokens: float
) -> float:
    """How many pairs stand in the windows of so many tokens: the same law as for documents."""
    n_items = len(sample.ids)
    frequency = np.bincount(stream[stream >= 0], minlength=n_items).astype(np.float64)
    i = np.repeat(np.arange(n_items), np.diff(rows.offsets))
    sides = 2 if directed else 1
    n_seen = np.count_nonzero(rows.right != i) / sides
    rare = np.zeros(sample.n_items - n_items)
    found = np.concatenate([frequency, rare])
    return sides * expected_pairs(found, sample.n_tokens, np.arange(n_items), n_seen, tokens)


def _measure_merge(rows: Rows, directed: bool, folder: Path) -> tuple[dict[str, float], float]:
    """Seconds a unit of adding some bands of a block and of writing them, and bytes of a pair."""
    n_items = len(rows.offsets) - 1
    borders = bands(n_items)
    n_cells = n_added = n_written = n_bytes = 0
    seconds = dict.fromkeys(MERGE_PARTS, 0.0)
    for band in sorted({0, len(borders) // 2}):
        first, last = borders[band]
        left = 0 if directed else first
        start = time.perf_counter()
        total = np.zeros((last - first, n_items - left), dtype=np.uint64)
        total[:] = 0
        zeroed = time.perf_counter()
        ends = rows.offsets[first : last + 1]
        some = slice(ends[0], ends[-1])
        add_rows(ends, rows.right[some], rows.sums[some], left, total)
        added = time.perf_counter()
        write_band(folder / "band.parquet", total, first, left)
        written = time.perf_counter()
        seconds["zero"] += zeroed - start
        seconds["add"] += added - zeroed
        seconds["write"] += written - added
        n_cells, n_added = n_cells + total.size, n_added + int(ends[-1] - ends[0])
        n_written += pq.read_metadata(folder / "band.parquet").num_rows
        n_bytes += (folder / "band.parquet").stat().st_size
    sizes = {"zero": n_cells, "add": n_added, "write": n_written}
    rates = {name: seconds[name] / max(1, n) for name, n in sizes.items()}
    return rates, n_bytes / max(1, n_written)


def _load_code(window: Window) -> None:
    """Run once what is to be measured: to compile or load it takes longer than a sample."""
    tokens, item_of = np.zeros(2, dtype=np.uint32), np.zeros(1, dtype=np.int32)
    stream = pad_documents(tokens, np.array([0, 2]), item_of, window.width)
    rows = window_counts(stream, window.weights(), window.directed, 1)
    with tempfile.TemporaryDirectory() as folder:
        _measure_merge(rows, window.directed, Path(folder))
