"""Document co-occurrence: our kernel against scipy's `X.T @ X` and against SQL self-joins.

    python -m launch.bench.cooccurrence

The kernel counts all documents (50 million tokens; different items, index and pairs are all timed),
the others as many of the same documents as they manage; what is compared is pairs per second. The
counts on those documents are the same. One core.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse

from launch.bench.documents import Documents, draw_documents, head
from launch.bench.timing import medians, report
from mining.engine_settings import EngineSettings, SparkSettings
from mining.kernels.cooccurrence import (
    Block,
    band_cells,
    band_counter,
    bands,
    block_documents,
    index_block,
    unique_items,
)

TARGET, JOIN_TARGET = 60.0, 500.0
Items = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
Upper = npt.NDArray[np.int64] | scipy.sparse.csr_array
Join = Callable[..., tuple[npt.NDArray[np.int64], ...]]


def different_items(documents: Documents, n_items: int) -> Items:
    """Each document's different items; every id is an item."""
    tokens, offsets = documents
    every = np.arange(n_items, dtype=np.int32)
    return unique_items(
        tokens[: offsets[-1]], offsets, np.ones(len(offsets) - 1, dtype=np.bool_), every, n_items
    )


def index_documents(documents: Documents, n_items: int) -> list[Block]:
    """The documents as blocks of the size that the `count` stage takes."""
    tokens, offsets = documents
    step = block_documents(n_items)
    found = []
    for start in range(0, len(offsets) - 1, step):
        part = offsets[start : start + step + 1]
        here = tokens[part[0] : part[-1]], part - part[0]
        found.append(index_block(*different_items(here, n_items), n_items))
    return found


def count_blocks(blocks: list[Block], n_items: int) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """The counts of each band, with its first row; the array is filled again for the next one."""
    memory = [np.empty(band_cells(n_items), dtype=np.uint32) for _ in range(2)]
    for first, last in bands(n_items):
        counter = band_counter()(first, last, n_items, memory[0])
        for block in blocks:
            counter.add(block)
        yield first, counter.counts(memory[1])


def count_pairs_of(items: Items) -> int:
    """The pairs of different items in documents, summed up over the documents."""
    lengths = np.diff(items[1])
    return int((lengths * (lengths - 1) // 2).sum())


def check(
    items: Items, n_items: int, upper: npt.NDArray[np.int64] | scipy.sparse.csr_array
) -> None:
    """Fail unless the kernel counts what `upper` (its entries above the diagonal) says."""
    for first, counts in count_blocks([index_block(*items, n_items)], n_items):
        rows = upper[first : first + len(counts)]
        expected = rows if isinstance(rows, np.ndarray) else rows.toarray()
        above = np.triu(expected[:, first:], 1)
        assert (counts == above).all(), "the two ways count differently"


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=125_000)
    parser.add_argument("--tokens", type=int, default=420, help="mean length of a document")
    parser.add_argument("--scipy_documents", type=int, default=20_000)
    parser.add_argument("--duckdb_documents", type=int, default=1_000, help="0 leaves DuckDB out")
    parser.add_argument("--spark_documents", type=int, default=500, help="0 leaves Spark out")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    n_items = options.items
    documents = draw_documents(options.documents, options.tokens, n_items, seed=0)
    sizes = {"ours": options.documents, "scipy": options.scipy_documents}
    parts = {name: different_items(head(documents, n), n_items) for name, n in sizes.items()}

    def ours() -> None:
        for _ in count_blocks(index_documents(documents, n_items), n_items):
            pass

    def scipys() -> scipy.sparse.csr_array:
        items, offsets = parts["scipy"]
        shape = len(offsets) - 1, n_items
        matrix = scipy.sparse.csr_array((np.ones(len(items), np.int32), items, offsets), shape)
        return (matrix.T @ matrix).tocsr()

    ways: dict[str, Callable[[], object]] = {"ours": ours, "scipy": scipys}
    check(parts["scipy"], n_items, scipys())
    for name, join in _joins(options.duckdb_documents > 0, options.spark_documents > 0).items():
        sizes[name] = getattr(options, f"{name}_documents")
        parts[name] = different_items(head(documents, sizes[name]), n_items)
        i, j, n = join(*parts[name])
        upper = np.zeros((n_items, n_items), dtype=np.int64)
        upper[np.minimum(i, j), np.maximum(i, j)] = n
        check(parts[name], n_items, upper)
        ways[name] = functools.partial(join, *parts[name])
    pairs = {name: count_pairs_of(items) for name, items in parts.items()}
    seconds = medians(ways, options.repeats)
    rates = {name: pairs[name] / seconds[name] for name in ways}
    for name, rate in rates.items():
        print(f"{name} {rate / 1e6:.4g} M pairs/s ({sizes[name]} documents)")
    ratios = {name: rates["ours"] / rates[name] for name in ways if name != "ours"}
    targets = {name: TARGET if name == "scipy" else JOIN_TARGET for name in ratios}
    report(
        "cooccurrence",
        ratios["scipy"],
        TARGET,
        **{f"{name}_ratio": round(ratio, 1) for name, ratio in ratios.items()},
        targets=targets,
        met=all(ratios[name] >= targets[name] for name in ratios),
        items=n_items,
        documents=sizes,
        tokens=int(documents[1][-1]),
        pairs=pairs,
        pairs_per_second=rates,
        seconds=seconds,
    )


def _joins(
    duckdb: bool, spark: bool
) -> dict[str, Callable[..., tuple[npt.NDArray[np.int64], ...]]]:
    """The SQL self-joins that are wanted: (items, offsets) -> arrays i, j and n of the pairs."""
    found: dict[str, Join] = {}
    if duckdb:
        from launch.bench.self_joins import duckdb_self_join

        found["duckdb"] = duckdb_self_join
    if spark:
        from launch.bench.self_joins import spark_self_join
        from mining.spark_session import spark_session

        # In its default of 1 GB the join runs out of memory.
        conf = {"spark.driver.memory": "8g"}
        session = spark_session(EngineSettings("spark", workers=1, spark=SparkSettings(conf=conf)))
        found["spark"] = functools.partial(spark_self_join, session=session)
    return found


if __name__ == "__main__":
    main()
