"""The `pivots` stage: the pivot set from the counts, by three definitions (METHOD section 4).

Only edges of positive association count for the strongest links. A pair that never meets has
NPMI -1 in the limit, however little it says: rare items hardly meet anything, and a typical link of
-1 would give every one of them a wide gap. Absent edges therefore count as 0, which is what
independence gives, and so do negative ones, which cannot be weaker than absence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.errors import InputError
from mining.common.logs import log, progress
from mining.common.shards import write_table
from mining.common.stage import StageInput, begin, read_manifest, settings_dict
from mining.kernels.pivots import (
    NO_LANGUAGE,
    Links,
    add_links,
    empty_links,
    gaps,
    item_languages,
    second_largest,
)
from mining.settings import PivotsSettings

PAIRS_PER_BATCH = 1 << 20


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


def run_pivots(settings: PivotsSettings, out: Path, count: Path) -> None:
    """Choose the pivots among the items of a `count` folder; writes `pivots.parquet`.

    `statistic` is the number that the definition compares with its threshold: the degree, the
    second-largest reach, or the second-largest gap over the languages.
    """
    run = begin("pivots", out, settings_dict(settings), {"count": StageInput(count, "count")})
    if run is None:
        return
    counts = read_manifest(count, "count").counts
    if counts.get("context") == "window":
        raise InputError(
            f"{count}: holds counts of windows, but pivots are chosen by documents; count again "
            "with count.context document or sequence"
        )
    items = read_items(count, counts["languages"], settings.language_share)
    if len(items.languages) < 2 and settings.definition != "degree":
        log.warning(
            "pivots: the corpus has one language (%s), so '%s' finds no pivot; degree works on one",
            *items.languages,
            settings.definition,
        )
    links = read_links(count, items, counts["documents"], settings)
    gap = gaps(links.strongest, settings.rank)
    statistic, is_pivot = choose_pivots(items, links, gap, settings)
    write_table(out / "pivots.parquet", _table(items, links, gap, statistic, is_pivot, settings))
    n_pivots = int(is_pivot.sum())
    without = int((items.language == NO_LANGUAGE).sum())
    log.info("pivots: %d of %d items by %s", n_pivots, len(is_pivot), settings.definition)
    run.finish(
        {
            "items": len(is_pivot),
            "pivots": n_pivots,
            "definition": settings.definition,
            "languages": list(items.languages),
            "unit": counts["unit"],
            "fingerprint": counts["fingerprint"],
            "items_without_language": without,
            "items_by_language": {
                lang: int((items.language == code).sum())
                for code, lang in enumerate(items.languages)
            },
        }
    )


def read_items(count: Path, languages: Sequence[str], language_share: float) -> Items:
    """The items of a `count` folder, each with its language if one holds that share of it."""
    table = pq.read_table(count / "items.parquet")
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


def read_links(count: Path, items: Items, n_documents: int, settings: PivotsSettings) -> Links:
    """Stream the pairs of a `count` folder through the kernel, a million at a time."""
    files = sorted((count / "pairs").glob("*.parquet"))
    if not files:
        raise InputError(f"{count / 'pairs'}: holds no pairs; run `pivots count` again")
    n_strongest = max(settings.rank + 1, settings.neighbours)
    links = empty_links(len(items.doc_freq), len(items.languages), n_strongest)
    doc_freq = items.doc_freq.astype(np.float64)
    total = sum(pq.read_metadata(path).num_rows for path in files)
    with progress("pivots", total, "pairs") as ticker:
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=PAIRS_PER_BATCH):
                    # Copies, because Arrow's memory is read-only and kernels are compiled for one
                    # kind of array.
                    i, j, n = (batch.column(name).to_numpy().copy() for name in ("i", "j", "n"))
                    add_links(
                        i, j, n, doc_freq, items.language, float(n_documents),
                        settings.edge_npmi, *links,
                    )  # fmt: skip
                    ticker.advance(len(batch))
    return links


def choose_pivots(
    items: Items, links: Links, gap: npt.NDArray[np.float64], settings: PivotsSettings
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The definition's statistic (float64 [K]) and whether each item is a pivot (bool [K])."""
    allowed = items.doc_freq >= np.uint64(settings.min_doc_freq)
    if settings.require_letters:
        allowed &= items.has_letter
    if settings.definition == "degree":
        degree = links.degree.astype(np.float64)
        return degree, allowed & (links.degree > settings.min_degree)
    allowed &= items.language == NO_LANGUAGE
    if settings.definition == "breadth":
        reach = second_largest(links.reach.astype(np.float64))
        return reach, allowed & (reach >= settings.min_reach)
    second = second_largest(gap)
    # With one language there is no second-largest gap, and min_gap may be 0.
    return second, allowed & (second >= settings.min_gap) & (len(items.languages) > 1)


def _table(
    items: Items,
    links: Links,
    gap: npt.NDArray[np.float64],
    statistic: npt.NDArray[np.float64],
    is_pivot: npt.NDArray[np.bool_],
    settings: PivotsSettings,
) -> pa.Table:
    names = pa.array(items.languages, pa.string())
    language = pa.array(items.language, mask=items.language == NO_LANGUAGE)
    columns: dict[str, pa.Array] = {
        name: items.table.column(name) for name in ("item", "id", "text", "tokens", "doc_freq")
    }
    columns["lang"] = names.take(language)
    columns["degree"] = pa.array(links.degree)
    for code, lang in enumerate(items.languages):
        columns[f"reach_{lang}"] = pa.array(links.reach[:, code])
    for code, lang in enumerate(items.languages):
        columns[f"gap_{lang}"] = pa.array(gap[:, code])
    columns["statistic"] = pa.array(statistic)
    columns["is_pivot"] = pa.array(is_pivot)
    texts = items.table.column("text").combine_chunks()
    for code, lang in enumerate(items.languages):
        nearest = links.neighbours[:, code, : settings.neighbours]
        columns[f"neighbours_{lang}"] = _texts(texts, nearest)
    return pa.table(columns)


def _texts(texts: pa.Array, items: npt.NDArray[np.int64]) -> pa.ListArray:
    """Lists of the texts of items (int64 [K, m]); -1 marks an empty place at a list's end."""
    present = items >= 0
    ends = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), texts.take(pa.array(items[present])))
