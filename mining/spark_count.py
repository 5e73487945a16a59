"""Counts pairs on Spark: every task the pairs of its documents, band by band; Spark adds up bands.

What crosses the network are the tasks' dense bands in compressed chunks, once each, never a pair.
All chunks of a band meet in one partition, which adds them as they come and writes the band's
Parquet file, so that memory holds one band of sums, however many tasks there are.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zstandard

from mining.contexts import Source
from mining.count_memory import MemoryPlan
from mining.engine_settings import EngineSettings
from mining.kernels.cooccurrence import bands
from mining.pair_bands import band_counts, index_documents, read_index
from mining.pair_table import write_band
from mining.spark import (
    ERROR_COLUMNS,
    ERRORS,
    Batches,
    Site,
    on_executors,
    one_row_each,
    open_site,
    places,
    run_job,
)
from mining.spark_worker import local_folder
from mining.tasks import marker_path, missing_tasks

# 4 MiB before compression; a cell of Arrow's binary columns holds at most 2 GiB.
CHUNK_CELLS = 1 << 20
# `place`: the band's, among those to be written; `start`: the chunk's first cell in the band, row
# by row. A task that fails sends one row with the pickled error instead.
CHUNKS = pa.schema(
    [
        pa.field("place", pa.int32()),
        pa.field("start", pa.int64()),
        pa.field("counts", pa.binary()),
        pa.field("error", pa.binary()),
    ]
)
CHUNK_COLUMNS = "place int, start long, counts binary, error binary"


def count_pairs_on_spark(
    source: Source,
    item_of: Path,
    n_items: int,
    n_tasks: int,
    memory: MemoryPlan,
    out: Path,
    folder: Path,
    engine: EngineSettings,
) -> None:
    """Write the pairs of every band that has no marker under `folder` yet to `out`.

    `item_of` is the file with each id's item. The documents are counted by `n_tasks` tasks, each
    within `memory`.
    """
    site = open_site(folder)
    n_bands = len(bands(n_items))
    wanted = missing_tasks(site.folder, n_bands)
    if not wanted:
        return
    count = functools.partial(
        _count_share, n_tasks=n_tasks, source=source, item_of=item_of, n_items=n_items,
        memory=memory, wanted=wanted,
    )  # fmt: skip
    share = functools.partial(_count_shares, count=count, n_bands=len(wanted), site=site)
    add = functools.partial(
        _add_up, n_items=n_items, n_tasks=n_tasks, wanted=wanted, out=out, site=site
    )
    chunks = on_executors(one_row_each(engine, n_tasks), share, CHUNK_COLUMNS)
    by_band = chunks.repartitionById(len(wanted), "place")
    sums = on_executors(by_band, add, ERROR_COLUMNS)
    run_job("count: pairs", sums, n_tasks + n_bands, n_bands - len(wanted))


def _count_shares(
    batches: Batches, count: Callable[[int], Batches], n_bands: int, site: Site
) -> Batches:
    """Map side: the counts of a task's share of the documents, in chunks."""
    for rank in places(batches):
        yield from site.attempt(rank, count(rank), CHUNKS, n_places=n_bands)


def _count_share(
    rank: int,
    n_tasks: int,
    source: Source,
    item_of: Path,
    n_items: int,
    memory: MemoryPlan,
    wanted: tuple[int, ...],
) -> Batches:
    # A folder of its own, so that a task's second copy on this machine finds another.
    with tempfile.TemporaryDirectory(dir=local_folder()) as name:
        folder = Path(name)
        index_documents(rank, n_tasks, source, item_of, n_items, folder, memory.block_size)
        index = read_index(folder, [rank])
        for band, counts in band_counts(index, n_items, wanted, memory.bands_at_a_time):
            for start, chunk in pack(counts):
                row = {"place": wanted.index(band), "start": start, "counts": chunk}
                yield pa.RecordBatch.from_pylist([row], schema=CHUNKS)


def _add_up(
    batches: Batches, n_items: int, n_tasks: int, wanted: tuple[int, ...], out: Path, site: Site
) -> Batches:
    """Reduce side: add up the chunks of a band and write it, unless a task failed."""
    total: npt.NDArray[np.uint64] | None = None
    band = n_chunks = n_errors = 0
    with site.entered():
        for batch in batches:
            for row in batch.to_pylist():
                if row["error"] is not None:
                    n_errors += 1
                    yield pa.RecordBatch.from_pylist([row], schema=ERRORS)
                    continue
                if total is None:
                    band = wanted[row["place"]]
                    first, last = bands(n_items)[band]
                    total = np.zeros((last - first, n_items - first), dtype=np.uint64)
                add_packed(row["start"], row["counts"], total)
                n_chunks += 1
        if total is None or n_errors:
            return
        if n_chunks != n_tasks * -(-total.size // CHUNK_CELLS):
            raise RuntimeError(f"band {band}: {n_chunks} chunks came of {n_tasks} tasks")
        write_band(out / f"{band:05d}.parquet", total, first, first)
        marker_path(site.folder, band).touch()


def pack(counts: npt.NDArray[np.uint32]) -> Iterator[tuple[int, bytes]]:
    """Compressed chunks of an array and the first cell of each, in the array's flat order.

    Counts take as many bytes as the chunk's largest needs.
    """
    cells = counts.reshape(-1)
    compressor = zstandard.ZstdCompressor(level=1)
    for start in range(0, len(cells), CHUNK_CELLS):
        chunk = cells[start : start + CHUNK_CELLS]
        narrow = chunk.astype(np.min_scalar_type(int(chunk.max())))
        yield start, compressor.compress(narrow.tobytes())


def add_packed(start: int, chunk: bytes, total: npt.NDArray[np.uint64]) -> None:
    """Add a chunk of `pack` to `total`, of the shape of the array that it came from."""
    data = zstandard.ZstdDecompressor().decompress(chunk)
    cells = total.reshape(-1)[start : start + CHUNK_CELLS]
    cells += np.frombuffer(data, dtype=f"u{len(data) // len(cells)}")
