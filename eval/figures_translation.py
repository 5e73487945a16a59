"""Figures of the word-translation task: arms, their differences, directions, concept groups."""

from __future__ import annotations

import math
from collections.abc import Mapping

from eval.chart_style import Palette
from eval.charts import (
    Axis,
    DotChart,
    DotPanel,
    DotSeries,
    MatrixChart,
    MatrixPanel,
)
from eval.report_answer import Comparison, Estimate
from eval.report_text import hover, interval, largest, number, percent

NAN = math.nan


def difference_figure(
    differences: Mapping[str, Comparison], baseline: str, palette: Palette
) -> DotChart | None:
    """Each arm's score minus the baseline's, paired by item, over all directions."""
    shown = {arm: c.overall for arm, c in differences.items() if math.isfinite(c.overall.value)}
    if not shown:
        return None
    arms = list(shown)
    series = _dots("difference", "#1f2937", [shown[arm] for arm in arms], arms)
    axis = Axis(f"Score minus that of {baseline}, same words and seeds")
    return DotChart(
        name="differences",
        alt=f"Difference of the arms' scores to {baseline}",
        rows=tuple(arms),
        panels=(DotPanel("", axis, (series,), 0.0, "no difference"),),
        row_colors=tuple(palette.arms[arm] for arm in arms),
    )


def arms_figure(
    scores: Mapping[str, Comparison],
    accuracies: Mapping[str, Comparison],
    chance: float,
    palette: Palette,
) -> DotChart | None:
    """Score and accuracy of every arm with intervals, and what a blind choice would reach."""
    arms = list(scores)
    if not arms:
        return None
    score = _dots("score", "#1f2937", [scores[arm].overall for arm in arms], arms)
    hits = _dots("accuracy", "#1f2937", [accuracies[arm].overall for arm in arms], arms)
    return DotChart(
        name="arms",
        alt="Translation score and accuracy of the arms",
        rows=tuple(arms),
        panels=(
            DotPanel("Score", Axis("mean Score"), (score,), 0.0, "no preference"),
            DotPanel("Accuracy", Axis("share right", percent=True), (hits,), chance, "chance"),
        ),
        row_colors=tuple(palette.arms[arm] for arm in arms),
    )


def matrix_figure(
    scores: Mapping[str, Comparison],
    accuracies: Mapping[str, Comparison],
    languages: list[str],
) -> MatrixChart | None:
    """Score of every direction, one matrix an arm."""
    used = [
        lang
        for lang in languages
        if any(lang in pair for c in scores.values() for pair in c.directions)
    ]
    known = [
        e.value for c in scores.values() for e in c.directions.values() if math.isfinite(e.value)
    ]
    if not known:
        return None
    scale = largest(*known)
    panels = []
    for arm, comparison in scores.items():
        values = [[NAN] * len(used) for _ in used]
        text = [[""] * len(used) for _ in used]
        hovers = [[""] * len(used) for _ in used]
        for (source, target), found in comparison.directions.items():
            i, j = used.index(source), used.index(target)
            values[i][j] = found.value
            text[i][j] = number(found.value, 2 if max(known) >= 0.1 else 3, scale)
            hit = accuracies[arm].directions[(source, target)]
            hovers[i][j] = hover(
                ("", f"{arm}: {source} to {target}"),
                ("Score", interval(found.value, found.low, found.high)),
                ("accuracy", f"{percent(hit.value)} [{percent(hit.low)}, {percent(hit.high)}]"),
                ("items", found.n),
            )
        panels.append(MatrixPanel(arm, values, text, hovers))
    top = max(map(abs, known)) or 1e-3
    return MatrixChart(
        name="directions",
        alt="Translation score by direction and arm",
        rows=tuple(used),
        columns=tuple(used),
        row_label="from",
        column_label="to",
        panels=tuple(panels),
        limits=(-top, top),
        diverging=True,
        beside=2,
    )


def groups_figure(
    groups: Mapping[str, Mapping[str, Comparison]], palette: Palette
) -> DotChart | None:
    """Score by group of concepts: {group: {arm: comparison}}."""
    if not groups:
        return None
    names = list(groups)
    arms = list(dict.fromkeys(arm for found in groups.values() for arm in found))
    empty = Estimate(NAN, NAN, NAN, 0)
    series = []
    for arm in arms:
        found = [groups[name][arm].overall if arm in groups[name] else empty for name in names]
        series.append(_dots(arm, palette.arms[arm], found, [f"{arm}, {name}" for name in names]))
    return DotChart(
        name="groups",
        alt="Translation score by group of concepts",
        rows=tuple(names),
        panels=(DotPanel("", Axis("mean Score"), tuple(series), 0.0, ""),),
    )


def _dots(name: str, color: str, found: list[Estimate], labels: list[str]) -> DotSeries:
    texts = [
        hover(("", label), (name, interval(e.value, e.low, e.high)), ("items", e.n))
        for label, e in zip(labels, found, strict=True)
    ]
    return DotSeries(
        name=name,
        color=color,
        values=[e.value for e in found],
        low=[e.low for e in found],
        high=[e.high for e in found],
        hover=texts,
    )
