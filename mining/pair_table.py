"""The table of pairs that `count` writes, one file a row band: i, j and the count, sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.shards import write_table

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("i", pa.uint32(), nullable=False),
        pa.field("j", pa.uint32(), nullable=False),
        pa.field("n", pa.uint64(), nullable=False),
    ]
)


def write_band(path: Path, counts: npt.NDArray[np.uint64], first: int, left: int) -> None:
    """Write the entries of `counts` uint64 [rows, columns] that are not 0.

    Its first row is item `first`, its first column item `left`.
    """
    rows, columns = np.nonzero(counts)
    table = pa.table(
        {
            "i": (rows + first).astype(np.uint32),
            "j": (columns + left).astype(np.uint32),
            "n": counts[rows, columns],
        },
        schema=PAIRS_SCHEMA,
    )
    write_table(path, table)
