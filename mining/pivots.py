"""The `pivots` stage: the pivot set from the counts, by three definitions (METHOD section 4).

Only edges of positive association count for the strongest links. A pair that never meets has
NPMI -1 in the limit, however little it says: rare items hardly meet anything, and a typical link of
-1 would give every one of them a wide gap. Absent edges therefore count as 0, which is what
independence gives, and so do negative ones, which cannot be weaker than absence.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.errors import InputError
from mining.common.logs import log
from mining.common.manifest import read_manifest
from mining.common.shards import write_table
from mining.common.stage import FilesInput, Input, StageInput, begin, settings_dict
from mining.engine_settings import EngineSettings
from mining.kernels.pivots import NO_LANGUAGE, Links, gaps, second_largest
from mining.pivot_links import Items, edge_threshold, read_items, read_links
from mining.scripts import script_kind
from mining.settings import PivotsSettings
from mining.stability import Half, count_halves

# Multiples of the threshold for which the size of the set is reported.
FACTORS = (0.0, 0.25, 0.5, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Candidates:
    """The definition's statistic (float64 [K]) and which items may be pivots (bool [K])."""

    statistic: npt.NDArray[np.float64]
    allowed: npt.NDArray[np.bool_]

    def above(self, threshold: float) -> npt.NDArray[np.bool_]:
        """The pivots (bool [K]) at a threshold."""
        return self.allowed & (self.statistic >= threshold)


def run_pivots(
    settings: PivotsSettings,
    out: Path,
    count: Path,
    tokens: Path | None = None,
    engine: EngineSettings | None = None,
) -> None:
    """Choose the pivots among the items of a `count` folder.

    Writes `pivots.parquet`; its `statistic` is the number that the definition compares with its
    threshold: the degree, the second-largest reach, or the second-largest gap over the languages.
    `thresholds.parquet` says how the set changes with it. `tokens`, the `tokenize` folder that was
    counted, is needed for `stability` only.
    """
    inputs: dict[str, Input] = {"count": StageInput(count, "count")}
    if settings.exclude is not None:
        inputs["exclude"] = FilesInput.folder(Path(settings.exclude))
    if settings.stability:
        if tokens is None:
            raise InputError("pivots: stability needs the folder of the tokenize stage")
        inputs["tokens"] = StageInput(tokens, "tokenize")
    run = begin("pivots", out, settings_dict(settings), inputs)
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
    excluded = read_exclusions(settings.exclude, items)
    engine = engine or EngineSettings()
    # Other engines' workers are not on this machine.
    n_threads = engine.worker_count() if engine.kind == "local" else 1
    edge = edge_threshold(count, items, counts["documents"], settings, n_threads)
    links = read_links(count, items, counts["documents"], settings, edge, n_threads)
    gap = gaps(links.strongest, settings.rank)
    whole = find_candidates(items, links, excluded, settings)
    threshold = choose_threshold(whole, settings)
    is_pivot = whole.above(threshold)
    halves: list[Candidates] = []
    stability: dict[str, Any] = {}
    if tokens is not None and settings.stability:
        # Half the documents hold half as many of everything that is counted in documents.
        scale = 0.5 if settings.statistic == "count" else 1.0
        of_half = dataclasses.replace(settings, min_doc_freq=math.ceil(settings.min_doc_freq / 2))
        found = count_halves(
            count, tokens, items, of_half, edge * scale, run.work / "halves", engine
        )
        halves = [find_candidates(half.items, half.links, excluded, of_half) for half in found]
        scale = scale if settings.definition == "specificity" else 1.0
        stability = _stability(halves, found, threshold * scale)
        log.info("pivots: Jaccard of the two halves' sets %.3f", stability["jaccard"] or math.nan)
    else:
        scale = 1.0
    write_table(
        out / "pivots.parquet", _table(items, links, gap, whole, is_pivot, excluded, settings)
    )
    write_table(out / "thresholds.parquet", _thresholds(whole, halves, threshold, scale))
    n_pivots = int(is_pivot.sum())
    without = int((items.language == NO_LANGUAGE).sum())
    log.info("pivots: %d of %d items by %s", n_pivots, len(is_pivot), settings.definition)
    run.finish(
        {
            "items": len(is_pivot),
            "pivots": n_pivots,
            "definition": settings.definition,
            "threshold": threshold,
            "edge_threshold": edge,
            "candidates": int(whole.allowed.sum()),
            "excluded": int(excluded.sum()),
            "scripts": script_shares(items.table.column("text").to_pylist(), is_pivot),
            "stability": stability or None,
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


def read_exclusions(path: str | None, items: Items) -> npt.NDArray[np.bool_]:
    """The items (bool [K]) that a file names, one a line; lines that name no item are logged."""
    texts = [str(text).strip() for text in items.table.column("text").to_pylist()]
    if path is None:
        return np.zeros(len(texts), dtype=np.bool_)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    named = {line.strip() for line in lines if line.strip()}
    if unknown := sorted(named - set(texts)):
        shown = ", ".join(unknown[:5])
        log.warning("pivots: %d lines of %s are no items, such as %s", len(unknown), path, shown)
    return np.array([text in named for text in texts], dtype=np.bool_)


def find_candidates(
    items: Items, links: Links, excluded: npt.NDArray[np.bool_], settings: PivotsSettings
) -> Candidates:
    """The statistic of each item by the definition, and whether it may be a pivot at all."""
    allowed = (items.doc_freq >= np.uint64(settings.min_doc_freq)) & ~excluded
    if settings.require_letters:
        allowed &= items.has_letter
    if settings.definition == "degree":
        return Candidates(links.degree.astype(np.float64), allowed)
    # With one language there is no second-largest value, and min_gap may be 0.
    allowed &= (items.language == NO_LANGUAGE) & (len(items.languages) > 1)
    if settings.definition == "breadth":
        return Candidates(second_largest(links.reach.astype(np.float64)), allowed)
    return Candidates(second_largest(gaps(links.strongest, settings.rank)), allowed)


def choose_threshold(candidates: Candidates, settings: PivotsSettings) -> float:
    """The least statistic of a pivot: as set, or that of the last item of the top share."""
    if settings.top_share is None:
        return {
            "degree": float(settings.min_degree + 1),
            "breadth": float(settings.min_reach),
            "specificity": settings.min_gap,
        }[settings.definition]
    falling = np.sort(candidates.statistic[candidates.allowed])[::-1]
    # Items without any link are no pivots, however large the share.
    n_wanted = min(math.ceil(settings.top_share * len(falling)), int((falling > 0).sum()))
    return float(falling[n_wanted - 1]) if n_wanted else 1.0


def script_shares(
    texts: list[str], is_pivot: npt.NDArray[np.bool_]
) -> dict[str, dict[str, float | int]]:
    """By kind of script: how many items and pivots, and the share of all pivots."""
    kinds = [script_kind(text) for text in texts]
    pivots = Counter(kind for kind, chosen in zip(kinds, is_pivot, strict=True) if chosen)
    return {
        kind: {"items": n, "pivots": pivots[kind], "share": pivots[kind] / max(1, pivots.total())}
        for kind, n in sorted(Counter(kinds).items())
    }


def jaccard(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float | None:
    """Size of the intersection of two sets (bool [K]) over that of their union; None if empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else None


def _stability(halves: list[Candidates], found: list[Half], threshold: float) -> dict[str, Any]:
    sets = [half.above(threshold) for half in halves]
    return {
        "jaccard": jaccard(*sets),
        "pivots": [int(chosen.sum()) for chosen in sets],
        "documents": [half.n_documents for half in found],
    }


def _thresholds(
    whole: Candidates, halves: list[Candidates], threshold: float, scale: float
) -> pa.Table:
    """The size of the set, and the halves' agreement, at multiples of the threshold.

    `scale` turns a threshold of all documents into one of a half.
    """
    # A threshold of 0 has no multiples; the median of what is there takes its place.
    positive = whole.statistic[whole.allowed & (whole.statistic > 0)]
    base = threshold or (float(np.median(positive)) if len(positive) else 0.0)
    grid = [base * factor for factor in FACTORS]
    agreed = [
        jaccard(*(half.above(t * scale) for half in halves)) if halves else None for t in grid
    ]
    return pa.table(
        {
            "threshold": pa.array(grid, pa.float64()),
            "pivots": pa.array([int(whole.above(t).sum()) for t in grid], pa.int64()),
            "jaccard": pa.array(agreed, pa.float64()),
        }
    )


def _table(
    items: Items,
    links: Links,
    gap: npt.NDArray[np.float64],
    whole: Candidates,
    is_pivot: npt.NDArray[np.bool_],
    excluded: npt.NDArray[np.bool_],
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
    columns["statistic"] = pa.array(whole.statistic)
    columns["excluded"] = pa.array(excluded)
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
