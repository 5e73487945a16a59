"""What a user would write in SQL to count pairs: a table of postings joined with itself.

Both return the counts of METHOD section 4, for documents given as sets of items: `items` uint32
[n_postings], document d's are items[offsets[d]:offsets[d + 1]], `offsets` int64 [n_docs + 1].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

QUERY = """
    SELECT a.item AS i, b.item AS j, count(*) AS n
    FROM postings AS a JOIN postings AS b ON a.document = b.document AND a.item < b.item
    GROUP BY a.item, b.item ORDER BY i, j
"""


class Pairs(NamedTuple):
    """Documents with both items i < j, sorted by i and j: each int64 [n_pairs]."""

    i: npt.NDArray[np.int64]
    j: npt.NDArray[np.int64]
    n: npt.NDArray[np.int64]


def duckdb_self_join(
    items: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], threads: int = 1
) -> Pairs:
    """Count pairs in DuckDB."""
    import duckdb

    with duckdb.connect(config={"threads": threads}) as connection:
        connection.register("postings", _postings(items, offsets))
        found = connection.execute(QUERY).fetchnumpy()
    return Pairs(*(np.asarray(found[name], dtype=np.int64) for name in Pairs._fields))


def spark_self_join(
    items: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], session: Any
) -> Pairs:
    """Count pairs in Spark SQL, in a running session."""
    postings = session.createDataFrame(_postings(items, offsets))
    postings.createOrReplaceTempView("postings")
    found = session.sql(QUERY).toArrow()
    return Pairs(*(found[name].to_numpy() for name in Pairs._fields))


def _postings(items: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64]) -> pa.Table:
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return pa.table({"document": document, "item": items.astype(np.int64)})
