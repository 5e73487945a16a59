"""Reads a `count` folder for the pivots: items, their languages, and the links between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.logs import progress
from mining.common.shards import open_table, read_columns
from mining.kernels.pivots import (
    COUNT_BINS,
    NPMI_BINS,
    Links,
    add_histogram,
    add_links,
    empty_links,
    item_languages,
    merge_links,
)
from mining.settings import PivotsSettings
from mining.threads import run_in_threads

PAIRS_PER_BATCH = 1 << 20
MAX_LINKS_BYTES = 1 << 30  # of all threads together
Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Items:
    """The table of items and, in the order of `languages`, their document frequencies by language.

    `doc_freq` uint64 [K], `by_language` uint64 [K, L], `language` int64 [K] as `item_languages`
    gives it, `has_letter` bool [K].
    """

    table: pa.Table
    languages: tuple[str, ...]
    doc_freq: npt.NDArray[np.uint64]
    by_language: npt.NDArray[np.uint64]
    language: npt.NDArray[np.int64]
    has_letter: npt.NDArray[np.bool_]


def read_items(count: Path, languages: Sequence[str], language_share: float) -> Items:
    """The items of a `count` folder, each with its language if one holds that share of it."""
    table = read_columns(count / "items.parquet")
    doc_freq = table.column("doc_freq").to_numpy()
    by_language = np.stack([table.column(f"doc_freq_{lang}").to_numpy() for lang in languages], 1)
    return Items(
        table=table,
        languages=tuple(languages),
        doc_freq=doc_freq,
        by_language=by_language,
        language=item_languages(doc_freq, by_language, language_share),
        has_letter=table.column("has_letter").to_numpy(),
    )


def n_strongest(settings: PivotsSettings) -> int:
    """How many of the strongest links the definitions and the table need."""
    return max(settings.rank + 1, settings.neighbours)


def read_links(
    count: Path,
    items: Items,
    n_documents: int,
    settings: PivotsSettings,
    edge: float,
    n_threads: int = 1,
) -> Links:
    """Stream a `count` folder's pairs through the kernel; an edge is at least `edge` strong."""
    n_items, n_languages, most = len(items.doc_freq), len(items.languages), n_strongest(settings)
    n_bytes = 16 * n_items * n_languages * (most + 1)
    n_threads = max(1, min(n_threads, MAX_LINKS_BYTES // n_bytes))
    # Links of each thread's own, which are added up in the end.
    free = [empty_links(n_items, n_languages, most) for _ in range(n_threads)]
    doc_freq = items.doc_freq.astype(np.float64)

    def add(i: Numbers, j: Numbers, n: Numbers) -> None:
        links = free.pop()
        add_links(
            i, j, n, doc_freq, items.language, float(n_documents), edge,
            settings.statistic == "count", *links,
        )  # fmt: skip
        free.append(links)

    _for_pairs(count, "pivots", add, n_threads)
    for links in free[1:]:
        merge_links(free[0], links)
    return free[0]


def edge_threshold(
    count: Path, items: Items, n_documents: int, settings: PivotsSettings, n_threads: int = 1
) -> float:
    """The statistic from which on a pair is an edge: as set, or a quantile over all pairs.

    The quantile is that of the pairs that meet at all, to 1/32768 of an NPMI or to one document; it
    costs a second pass over the pairs.
    """
    by_count = settings.statistic == "count"
    if settings.edge_quantile is None:
        return float(settings.edge_count) if by_count else settings.edge_npmi
    n_bins = COUNT_BINS if by_count else NPMI_BINS
    free = [np.zeros(n_bins, dtype=np.int64) for _ in range(n_threads)]
    doc_freq = items.doc_freq.astype(np.float64)

    def add(i: Numbers, j: Numbers, n: Numbers) -> None:
        histogram = free.pop()
        add_histogram(i, j, n, doc_freq, float(n_documents), by_count, histogram)
        free.append(histogram)

    _for_pairs(count, "pivots: quantile", add, n_threads)
    below = np.cumsum(sum(free))
    place = int(np.searchsorted(below, settings.edge_quantile * below[-1], side="right"))
    place = min(place, n_bins - 1)
    return float(place) if by_count else 2 * place / NPMI_BINS - 1


def _for_pairs(
    count: Path, title: str, take: Callable[[Numbers, Numbers, Numbers], None], n_threads: int
) -> None:
    """Call `take` with the columns i, j, n of the pairs, a million at a time, in threads."""
    files = sorted((count / "pairs").glob("*.parquet"))
    total = sum(pq.read_metadata(path).num_rows for path in files)
    with progress(title, total, "pairs") as ticker:

        def read(number: int) -> None:
            with open_table(files[number]) as file:
                for batch in file.iter_batches(batch_size=PAIRS_PER_BATCH):
                    take(*(batch.column(name).to_numpy() for name in ("i", "j", "n")))
                    ticker.advance(len(batch))

        run_in_threads(read, range(len(files)), min(n_threads, len(files)))
