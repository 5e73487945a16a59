"""The table of pairs that `count` writes, one file a row band: i, j and the count, sorted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.files import atomic_path
from mining.kernels.compiled import kernel

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("i", pa.uint32(), nullable=False),
        pa.field("j", pa.uint32(), nullable=False),
        pa.field("n", pa.uint64(), nullable=False),
    ]
)
ROWS_PER_GROUP = 1 << 20
# What is written fastest, at a byte a pair: `i` repeats itself, which zstd takes up; `j` and `n`
# differ little from pair to pair, and their differences leave nothing to compress.
ENCODING = {"i": "PLAIN", "j": "DELTA_BINARY_PACKED", "n": "DELTA_BINARY_PACKED"}
COMPRESSION = {"i": "zstd", "j": "none", "n": "none"}


def write_band(
    path: Path, counts: npt.NDArray[np.uint32] | npt.NDArray[np.uint64], first: int, left: int
) -> None:
    """Write the entries of `counts` [rows, columns] that are not 0, atomically.

    Its first row is item `first`, its first column item `left`. Holds a million pairs at a time.
    """
    i, j = (np.empty(ROWS_PER_GROUP, dtype=np.uint32) for _ in range(2))
    n = np.empty(ROWS_PER_GROUP, dtype=np.uint64)
    row = column = 0
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary,
            PAIRS_SCHEMA,
            compression=COMPRESSION,
            use_dictionary=False,
            column_encoding=ENCODING,
            write_page_checksum=True,
            write_statistics=["i"],  # what the others range over tells a reader nothing
        ) as writer,
    ):
        while True:
            n_found, row, column = _next_pairs(counts, row, column, i, j, n)
            if n_found == 0:
                return
            i[:n_found] += np.uint32(first)
            j[:n_found] += np.uint32(left)
            found = [pa.array(values[:n_found]) for values in (i, j, n)]
            writer.write_table(pa.Table.from_arrays(found, schema=PAIRS_SCHEMA), ROWS_PER_GROUP)


@kernel
def _next_pairs(
    counts: npt.NDArray[Any],
    row: int,
    column: int,
    i: npt.NDArray[np.uint32],
    j: npt.NDArray[np.uint32],
    n: npt.NDArray[np.uint64],
) -> tuple[int, int, int]:
    """Fill i, j and n with the entries from (row, column) on that are not 0, as many as fit.

    Returns how many were found, and the row and column to go on from.
    """
    n_found = np.uint64(0)  # unsigned numbers index without a check whether they count from the end
    n_columns = counts.shape[1]
    while row < counts.shape[0]:
        # As many cells as would fit if none were 0: there is no branch in between.
        end = min(n_columns, column + len(i) - np.int64(n_found))
        for place in range(column, end):
            value = counts[row, place]
            i[n_found], j[n_found], n[n_found] = row, place, value
            n_found += np.uint64(value != 0)
        row, column = (row + 1, 0) if end == n_columns else (row, end)
        if n_found == len(i):
            break
    return int(n_found), row, column
