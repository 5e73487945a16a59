"""The section on the mixes: how much, of what, how rich in pivots, how different."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.chart_style import Palette
from eval.figures_mixes import mix_figure, overlap_figure
from eval.report_data import RunData
from eval.report_figures import FigureWriter
from eval.report_page import Cell, Column, Note, Section, Table
from eval.report_text import count, listing, number, percent, plural
from mining.mix_settings import UNMATCHED_ARMS

SOURCES_NAMED = 3


def mixes_section(data: RunData, palette: Palette, figures: FigureWriter) -> Section:
    """The arms: how much, of what, how rich in pivots, how different from each other."""
    arms = [arm for arm in data.arms if arm in data.mix["arms"]]
    return Section(
        id="mixes",
        title="Mixes",
        reads="Each arm is one set of documents for training. A fair comparison has the same "
        "tokens in total and per language (but for original, which keeps the natural shares) and "
        "differs in the proportion of pivots.",
        limits="Whether the arms differ in anything but source and length: choosing by pivots also "
        "chooses subjects. The larger the overlap, the smaller any effect can be.",
        blocks=(
            _balance(data, arms),
            _arm_table(data, arms),
            _difference_table(data, arms),
            figures.block(
                mix_figure(data.mix, arms, palette),
                "Mean pivot proportion of the documents chosen, weighted by their tokens.",
                "No arm holds a document.",
            ),
            figures.block(
                overlap_figure(data.mix, arms),
                "Share of the row's tokens whose documents stand also in the column's arm; "
                "documents that stand in every arm by rule are left out.",
                "There are not two arms to compare.",
            ),
        ),
    )


def _arm_table(data: RunData, arms: list[str]) -> Table:
    pivots = "pivot proportion"
    columns = (
        Column("arm"), Column("language"), Column("tokens", "num"), Column("documents", "num"),
        Column("of these repeats", "num"), Column("share of the pool", "num"),
        Column("of all tokens", "num", pivots), Column("mean document", "num", pivots),
        Column("median document", "num", pivots),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for arm in arms:
        entry = data.mix["arms"][arm]
        nothing = ("",) * 5
        rows.append((arm, "all", count(entry["tokens"]), count(entry["documents"]), *nothing))
        for lang, part in _languages(data, arm):
            rows.append((
                arm, lang, count(part["tokens"]), count(part["documents"]),
                count(part.get("repeats")), percent(part.get("pool_share")),
                *(percent(part.get(key), 2) for key in (
                    "mean_proportion", "mean_document_proportion", "median_document_proportion",
                )),
            ))  # fmt: skip
        if always := entry.get("always_tokens"):
            rows.append((arm, "in every arm by rule", count(always), "", *nothing))
    return Table("The arms by language.", columns, tuple(rows), tall=len(rows) > 24)


def _difference_table(data: RunData, arms: list[str]) -> Table:
    """What else the arms differ in."""
    length, far = "tokens per document", "tokens elsewhere than in pivot"
    columns = (
        Column("arm"), Column("language"),
        Column("lower quartile", "num", length), Column("median", "num", length),
        Column("upper quartile", "num", length),
        Column("by source", "num", far), Column("by length", "num", far),
        Column("by what is matched", "num", far), Column("largest sources", "words"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for arm in arms:
        for lang, part in _languages(data, arm):
            sources = part.get("sources") or []
            named = [f"{s['source']} {percent(s['tokens'] / part['tokens'], 0)}" for s in sources]
            rows.append((
                arm, lang,
                *(number(part.get(f"length_{key}"), 0) for key in ("q25", "median", "q75")),
                *(percent(part.get(key)) for key in (
                    "source_distance", "length_distance", "match_deviation",
                )),
                named[:SOURCES_NAMED],
            ))  # fmt: skip
    caption = (
        "What else the arms differ in. A share of tokens elsewhere is 0 where an arm has as many "
        "tokens of each source (of each length, in powers of two) as the pivot arm; mix.match "
        "makes it so."
    )
    return Table(caption, columns, tuple(rows), tall=len(rows) > 24)


def _languages(data: RunData, arm: str) -> list[tuple[str, dict[str, Any]]]:
    """What an arm draws in each language, in the report's order."""
    parts = data.mix["arms"][arm]["languages"]
    return [(lang, parts[lang]) for lang in data.languages if lang in parts]


def _balance(data: RunData, arms: list[str]) -> Note:
    entries = data.mix["arms"]
    totals = [entries[arm]["tokens"] for arm in arms]
    even = [arm for arm in arms if arm not in UNMATCHED_ARMS]
    spread = 0.0
    for lang in data.languages:
        tokens = [entries[arm]["languages"].get(lang, {}).get("tokens", 0) for arm in even]
        if tokens and max(tokens):
            spread = max(spread, (max(tokens) - min(tokens)) / max(tokens))
    whole = (max(totals) - min(totals)) / max(1, *totals) if totals else 0.0
    text = (
        f"Total tokens of the {plural(len(arms), 'arm')} differ by {percent(whole, 2)} at most. "
        + (
            f"Per language, {listing(even)} differ by {percent(spread, 2)} at most."
            if len(even) > 1
            else "There are no two arms that must be balanced by language."
        )
    )
    return Note(text, "warn" if max(spread, whole) > 0.01 else "info")


def uplift(data: RunData, candidate: str, baseline: str) -> tuple[float, float] | None:
    """Mean pivot proportion of two arms over the languages that both have (plain mean)."""
    arms = data.mix["arms"]
    if candidate not in arms or baseline not in arms:
        return None
    first, second = arms[candidate]["languages"], arms[baseline]["languages"]
    shared = [lang for lang in first if lang in second]
    if not shared:
        return None

    def mean(entry: dict[str, Any]) -> float:
        return float(np.mean([entry[lang].get("mean_proportion") or 0.0 for lang in shared]))

    return mean(first), mean(second)
