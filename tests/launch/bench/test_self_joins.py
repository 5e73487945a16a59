"""The benchmarks' self-join in DuckDB (Spark's: tests/mining/test_spark.py, in its session)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.bench.self_joins import duckdb_self_join
from mining.kernels.cooccurrence import index_block, pair_counts


@settings(max_examples=15)
@given(st.lists(st.sets(st.integers(0, 9)), max_size=12))
def test_duckdb_counts_like_the_kernel(documents: list[set[int]]) -> None:
    items = np.array([item for document in documents for item in document], dtype=np.uint32)
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    expected = pair_counts([index_block(items, offsets, 10)], 0, 10, 10)
    found = duckdb_self_join(items, offsets)
    assert np.array_equal(np.stack(found[:2]), np.stack(np.nonzero(expected)))
    assert np.array_equal(found.n, expected[found.i, found.j])
