"""Figures of the corpus, the pivots, the documents' proportions and the mixes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from eval.chart_style import CATEGORY_COLORS, OTHER_COLOR
from eval.charts import (
    Axis,
    BarChart,
    BarPanel,
    Panel,
    Series,
    Stack,
    XYChart,
)
from eval.report_data import records
from eval.report_text import count, hover, number, percent, visible
from mining.common.seeds import hash64
from mining.scripts import script_kind

MAX_SOURCES = len(CATEGORY_COLORS)
LABELLED = 14
HISTOGRAM_BARS = 24
MIN_SHARE = 0.004


def corpus_figure(by_source: pd.DataFrame, languages: list[str]) -> BarChart:
    """Tokens by language, in colours of the sources. Columns: lang, source, documents, tokens."""
    totals = by_source.groupby("source")["tokens"].sum()
    ranked = sorted(totals.index, key=lambda name: (-totals[name], name))
    shown = ranked[:MAX_SOURCES] if len(ranked) > MAX_SOURCES + 1 else ranked[: MAX_SOURCES + 1]
    stacks = []
    for k, source in enumerate(shown):
        rows = by_source[by_source["source"] == source].set_index("lang")
        color = CATEGORY_COLORS[k] if k < MAX_SOURCES else OTHER_COLOR
        stacks.append(_source_stack(str(source), color, rows, languages))
    rest = by_source[~by_source["source"].isin(shown)]
    if len(rest):
        rows = rest.groupby("lang")[["documents", "tokens"]].sum()
        name = f"{rest['source'].nunique()} other sources"
        stacks.append(_source_stack(name, OTHER_COLOR, rows, languages))
    return BarChart(
        name="corpus",
        alt="Tokens of the corpus by language and source",
        rows=tuple(languages),
        panels=(BarPanel("", tuple(stacks)),),
        axis=Axis("tokens"),
    )


def _source_stack(name: str, color: str, rows: pd.DataFrame, languages: list[str]) -> Stack:
    tokens = [float(rows["tokens"].get(lang, 0)) for lang in languages]
    documents = [float(rows["documents"].get(lang, 0)) for lang in languages]
    texts = [
        hover(("", f"{lang}: {name}"), ("tokens", count(t)), ("documents", count(d)))
        for lang, t, d in zip(languages, tokens, documents, strict=True)
    ]
    return Stack(name, color, tokens, texts)


def pivots_figure(items: pd.DataFrame, languages: list[str], max_points: int) -> XYChart | None:
    """Document frequency and statistic of the items, pivots in colour, the strongest named.

    Columns of pivots.parquet. None where no item has a statistic.
    """
    known = items[np.isfinite(items["statistic"].astype(float)) & (items["doc_freq"] > 0)]
    if known.empty:
        return None
    chosen = known["is_pivot"].astype(bool)
    pivots = known[chosen].sort_values(["statistic", "id"], ascending=[False, True])
    others = known[~chosen].sort_values(["statistic", "id"], ascending=[False, True])
    series = []
    for name, frame, color, opacity, size in (
        ("other items", others, "#9aa3b2", 0.45, 3.2),
        ("pivots", pivots, "#d1495b", 0.8, 4.2),
    ):
        shown = thin(frame, max_points // 2, "id")
        labels = {i: str(t).strip() for i, t in enumerate(shown["text"][:LABELLED])}
        series.append(
            Series(
                name=name,
                color=color,
                x=shown["doc_freq"].astype(float).tolist(),
                y=shown["statistic"].astype(float).tolist(),
                mode="points",
                opacity=opacity,
                size=size,
                hover=[_pivot_hover(row, languages) for row in records(shown)],
                labels=labels if name == "pivots" else None,
            )
        )
    return XYChart(
        name="pivots",
        alt="Document frequency of the items against the pivot statistic",
        panels=(Panel("", tuple(s for s in series if s.x)),),
        x=Axis("documents that hold the item", log=True),
        y=Axis("statistic"),
        columns=1,
        panel_height=4.0,
    )


def _pivot_hover(row: dict[str, Any], languages: list[str]) -> str:
    lines = [
        ("", str(row["text"]).strip() or repr(row["text"])),
        ("documents", count(row["doc_freq"])),
        ("statistic", number(row["statistic"])),
    ]
    for lang in languages:
        near = neighbours(row, lang)
        if near and row["is_pivot"]:
            lines.append((f"near in {lang}", ", ".join(word.strip() for word in near[:3])))
    return hover(*lines)


def neighbours(row: dict[str, Any], lang: str) -> list[str]:
    """The names of an item's strongest neighbours in a language; empty where there are none."""
    value = row.get(f"neighbours_{lang}")
    return [] if value is None or isinstance(value, float) else [str(word) for word in value]


def scripts_figure(items: pd.DataFrame) -> BarChart | None:
    """Share of the kinds of script among the pivots and among all items."""
    pivots = items[items["is_pivot"].astype(bool)]
    if items.empty:
        return None
    kinds = items["text"].astype(str).map(script_kind)
    shares = {"all items": kinds.value_counts(normalize=True)}
    if len(pivots):
        shares = {"pivots": kinds[pivots.index].value_counts(normalize=True), **shares}
    present = {k for share in shares.values() for k, v in share.items() if v >= MIN_SHARE}
    ranked = sorted(present, key=lambda k: (-max(s.get(k, 0.0) for s in shares.values()), k))
    counts = {"all items": len(items), "pivots": len(pivots)}
    stacks = []
    for i, kind in enumerate(ranked[: MAX_SOURCES + 1]):
        values = [float(share.get(kind, 0.0)) for share in shares.values()]
        texts = [
            hover(("", f"{kind}, {name}"), ("share", percent(v)), ("of", count(counts[name])))
            for name, v in zip(shares, values, strict=True)
        ]
        color = CATEGORY_COLORS[i] if i < MAX_SOURCES else OTHER_COLOR
        stacks.append(Stack(str(kind), color, values, texts))
    return BarChart(
        name="scripts",
        alt="Kinds of script among the pivots and among all items",
        rows=tuple(shares),
        panels=(BarPanel("", tuple(stacks)),),
        axis=Axis("share of the items", percent=True, limits=(0, 1)),
    )


def thin(frame: pd.DataFrame, limit: int, *columns: str) -> pd.DataFrame:
    """At most `limit` rows: the first twentieth part, and of the rest a draw by hash; in order."""
    if len(frame) <= limit:
        return frame
    head = limit // 20
    rest = frame.iloc[head:]
    keys = [
        hash64("thin", *map(visible, row)) for row in rest[list(columns)].itertuples(index=False)
    ]
    chosen = np.sort(np.argsort(keys, kind="stable")[: limit - head])
    return pd.concat([frame.iloc[:head], rest.iloc[chosen]])
