"""Figures of the mixes: how rich in pivots the arms are, and how far they overlap."""

from __future__ import annotations

import math
from typing import Any

from eval.chart_style import Palette
from eval.charts import Axis, DotChart, DotPanel, DotSeries, MatrixChart, MatrixPanel
from eval.report_text import count, hover, percent


def mix_figure(mix: dict[str, Any], arms: list[str], palette: Palette) -> DotChart | None:
    """Mean pivot proportion of each arm's documents, by language."""
    shown = [arm for arm in arms if arm in mix["arms"]]
    languages = [
        lang for lang in palette.languages
        if any(lang in mix["arms"][arm]["languages"] for arm in shown)
    ]  # fmt: skip
    if not languages:
        return None
    series = []
    for arm in shown:
        parts = [mix["arms"][arm]["languages"].get(lang, {}) for lang in languages]
        values = [_value(part.get("mean_proportion")) for part in parts]
        texts = [
            hover(
                ("", f"{arm}, {lang}"),
                ("mean proportion", percent(value)),
                ("tokens", count(part.get("tokens"))),
                ("share of the pool", percent(part.get("pool_share"))),
            )
            for lang, value, part in zip(languages, values, parts, strict=True)
        ]
        series.append(DotSeries(arm, palette.arms[arm], values, hover=texts))
    axis = Axis("mean pivot proportion of the tokens chosen", percent=True)
    return DotChart(
        name="mixes",
        alt="Mean pivot proportion of the arms by language",
        rows=tuple(languages),
        panels=(DotPanel("", axis, tuple(series)),),
    )


def _value(found: float | None) -> float:
    # Not `found or NaN`: a mix without any pivot has a mean of 0.
    return math.nan if found is None else float(found)


def overlap_figure(mix: dict[str, Any], arms: list[str]) -> MatrixChart | None:
    """Share of one arm's tokens that also stand in another."""
    overlap = mix.get("overlap") or {}
    shown = [arm for arm in arms if arm in overlap]
    if len(shown) < 2:
        return None
    values = [[float(overlap[a].get(b, math.nan)) for b in shown] for a in shown]
    texts = [
        [
            hover(("", f"{percent(v)} of {a}"), ("also stands in", b))
            for b, v in zip(shown, row, strict=True)
        ]
        for a, row in zip(shown, values, strict=True)
    ]
    return MatrixChart(
        name="overlap",
        alt="Overlap of the arms' documents",
        rows=tuple(shown),
        columns=tuple(shown),
        row_label="of the tokens of",
        column_label="stand also in",
        panels=(MatrixPanel("", values, [[percent(v, 0) for v in row] for row in values], texts),),
        limits=(0.0, 1.0),
        beside=1,
    )
