"""Compares the arms of a mix: `arms.json`, and one row an arm and language in `arms.parquet`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.files import write_text
from mining.common.logs import log
from mining.common.shards import write_table
from mining.mix_select import Pool, Selection, matched_groups
from mining.mix_settings import UNMATCHED_ARMS

TOP_SOURCES = 5
SOURCE = pa.struct([("source", pa.string()), ("tokens", pa.int64())])
ARMS_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("lang", pa.string()),
        ("tokens", pa.int64()),
        ("documents", pa.int64()),
        ("repeats", pa.int64()),
        ("mean_proportion", pa.float64()),
        ("mean_document_proportion", pa.float64()),
        ("median_document_proportion", pa.float64()),
        ("length_q25", pa.float64()),
        ("length_median", pa.float64()),
        ("length_q75", pa.float64()),
        ("pool_share", pa.float64()),
        ("source_distance", pa.float64()),
        ("length_distance", pa.float64()),
        ("match_deviation", pa.float64()),
        ("sources", pa.list_(SOURCE)),
    ]
)
Integers = npt.NDArray[np.int64]


def describe_arms(
    pool: Pool,
    selections: dict[str, Selection],
    planted: npt.NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """What the arms hold in each language, and how far they overlap: see docs/MIXES.md.

    `overlap[a][b]` is the share of a's tokens (without those that stand in every arm) whose
    document is in b too. A `pool_share` is of what may be drawn, as `max_pool_share` is. Where a
    world was `planted` (each document's share, float64 [n]), `planted_share` is of the arm's tokens
    as chosen, so that of broken-pivot is the pivot arm's.
    """
    documents, settings = pool.documents, pool.settings
    names = documents.languages
    weights = np.where(pool.drawable, pool.sizes, 0)
    pool_tokens = np.bincount(documents.lang, weights, len(names)).astype(np.int64)
    groups = {
        "source_distance": documents.source,
        "length_distance": matched_groups(documents, pool.sizes, ("length",)),
    }
    if settings.match:
        groups["match_deviation"] = pool.matched
    arms: dict[str, Any] = {}
    for arm in settings.arms:
        chosen = selections[arm]
        by_lang: dict[str, Any] = {}
        for code in np.unique(documents.lang[chosen.rows[~chosen.always]]):
            entry = _describe(pool, _drawn(pool, chosen, code), int(pool_tokens[code]))
            if "pivot" in settings.arms and arm != "pivot":
                pivot = _drawn(pool, selections["pivot"], code)
                for key, group in groups.items():
                    entry[key] = _distance(group, _drawn(pool, chosen, code), pivot)
            by_lang[names[code]] = entry
        arms[arm] = {
            "tokens": int(chosen.sizes.sum()),
            "budget_tokens": int(chosen.sizes[~chosen.always].sum()),
            "always_tokens": int(chosen.sizes[chosen.always].sum()),
            "documents": len(chosen.rows),
            "languages": by_lang,
        }
        if planted is not None:
            rows, sizes = chosen.rows[~chosen.always], chosen.sizes[~chosen.always]
            arms[arm]["planted_share"] = float(np.average(planted[rows], weights=sizes))
        log.info("mix: %s has %d tokens in %d documents", arm, chosen.sizes.sum(), len(chosen.rows))
        far = {lang: entry.get("match_deviation") or 0.0 for lang, entry in by_lang.items()}
        if arm not in UNMATCHED_ARMS and max(far.values()) > 0:
            listed = ", ".join(f"{lang} {share:.2%}" for lang, share in far.items() if share)
            log.info("mix: %s is not wholly matched with pivot, tokens elsewhere: %s", arm, listed)
    return {"arms": arms, "overlap": _overlap(pool, selections)}


Drawn = tuple[Integers, Integers, npt.NDArray[np.int32]]  # rows, sizes, repeats


def _drawn(pool: Pool, chosen: Selection, code: int) -> Drawn:
    here = ~chosen.always & (pool.documents.lang[chosen.rows] == code)
    return chosen.rows[here], chosen.sizes[here], chosen.repeats[here]


def _describe(pool: Pool, drawn: Drawn, pool_tokens: int) -> dict[str, Any]:
    rows, sizes, repeats = drawn
    documents = pool.documents
    proportion = documents.proportion[rows]
    first = repeats == 0
    by_source = np.bincount(documents.source[rows], sizes, len(documents.sources)).astype(np.int64)
    # Falling by tokens, ties by name: sources are numbered by name.
    largest = np.argsort(-by_source, kind="stable")[:TOP_SOURCES]
    quartiles = np.quantile(sizes, [0.25, 0.5, 0.75])
    return {
        "tokens": int(sizes.sum()),
        "documents": len(rows),
        "repeats": int((~first).sum()),
        "mean_proportion": float(np.average(proportion, weights=sizes)),
        "mean_document_proportion": float(proportion.mean()),
        "median_document_proportion": float(np.median(proportion)),
        **dict(zip(("length_q25", "length_median", "length_q75"), quartiles.tolist(), strict=True)),
        "pool_share": float(sizes[first].sum() / pool_tokens),
        "sources": [
            {"source": documents.sources[k], "tokens": int(by_source[k])}
            for k in largest.tolist()
            if by_source[k]
        ],
    }


def _distance(groups: npt.NDArray[np.int32], drawn: Drawn, other: Drawn) -> float:
    """Share of tokens that stand in other groups than the other draw's: 0 alike, 1 disjoint."""
    if not len(drawn[0]) or not len(other[0]):
        return 1.0
    n = int(groups.max()) + 1
    shares = [
        np.bincount(groups[rows], sizes, n) / sizes.sum() for rows, sizes, _ in (drawn, other)
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _overlap(pool: Pool, selections: dict[str, Selection]) -> dict[str, dict[str, float]]:
    arms = pool.settings.arms
    overlap: dict[str, dict[str, float]] = {a: {} for a in arms}
    for b in arms:
        held = np.zeros(len(pool.documents), dtype=bool)
        held[selections[b].rows] = True
        for a in arms:
            drawn = ~selections[a].always
            rows, sizes = selections[a].rows[drawn], selections[a].sizes[drawn]
            overlap[a][b] = float(sizes[held[rows]].sum() / sizes.sum())
    return overlap


def write_arms(out: Path, report: dict[str, Any]) -> None:
    """Write `arms.parquet`, and the same with its sources in words as `arms.csv`."""
    rows = [
        {"arm": arm, "lang": lang, **entry}
        for arm, described in report["arms"].items()
        for lang, entry in described["languages"].items()
    ]
    write_table(out / "arms.parquet", pa.Table.from_pylist(rows, schema=ARMS_SCHEMA))
    text = io.StringIO()
    writer = csv.DictWriter(text, ARMS_SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        named = [f"{s['source']} {s['tokens'] / row['tokens']:.1%}" for s in row["sources"]]
        writer.writerow({**row, "sources": "; ".join(named)})
    write_text(out / "arms.csv", text.getvalue())
