"""Figures of the trace through the layers and of its tie to corpus counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from eval.chart_style import BEHAVIOUR_COLORS, INK, MASS_COLORS, Palette
from eval.charts import (
    Axis,
    BarChart,
    BarPanel,
    DotChart,
    DotPanel,
    DotSeries,
    Marker,
    Panel,
    Series,
    Stack,
    XYChart,
)
from eval.figures_corpus import thin
from eval.report_answer import Comparison, Directions, LayerCurves, line_fit
from eval.report_data import ITEM_KEY, records
from eval.report_text import count, hover, interval, number, percent, plural, signed
from eval.stats import Floats, roc_curve

BEHAVIOURS = ("direct", "pivot", "none")
BEHAVIOUR_MARKERS: dict[str, Marker] = {"direct": "circle", "pivot": "diamond", "none": "square"}


def layers_figure(curves: Mapping[str, Mapping[str, LayerCurves]]) -> XYChart | None:
    """Mean probability of source, pivot and target tokens over the layers, by arm and behaviour."""
    panels = []
    highest = 0.0
    shown = [b for b in ("direct", "pivot") if any(b in found for found in curves.values())]
    for arm, by_class in curves.items():
        for behaviour in shown:
            found = by_class.get(behaviour)
            if found is None:
                panels.append(Panel(f"{arm}: {behaviour}", (), note="no items"))
                continue
            series = [_mass(found, name) for name in MASS_COLORS]
            highest = max(highest, *(max(s.high or s.y) for s in series))
            note = plural(found.n, "item")
            panels.append(Panel(f"{arm}: {behaviour}", tuple(series), note=note))
    if not any(panel.series for panel in panels):
        return None
    return XYChart(
        name="layers",
        alt="Probability of source, pivot and target tokens over the layers",
        panels=tuple(panels),
        x=Axis("layer", whole=True),
        y=Axis("probability under the lens", limits=(0, min(1.02, 1.06 * highest + 1e-6))),
        columns=2,
        panel_height=1.9,
    )


def _mass(curves: LayerCurves, name: str) -> Series:
    column = {"source": "p_source", "pivots": "p_pivot", "target": "p_target"}[name]
    found = curves.masses[column]
    # One concept has no spread: its curve has no band, not one of no width.
    banded = all(math.isfinite(e.low) for e in found)
    texts = [
        hover(("", f"{name}, layer {layer}"), ("probability", interval(e.value, e.low, e.high, 4)))
        for layer, e in zip(curves.layers, found, strict=True)
    ]
    return Series(
        name=name,
        color=MASS_COLORS[name],
        x=[float(layer) for layer in curves.layers],
        y=[e.value for e in found],
        low=[e.low for e in found] if banded else None,
        high=[e.high for e in found] if banded else None,
        dash="dash" if name == "source" else "solid",
        hover=texts,
    )


def classes_figure(
    traces: pd.DataFrame, arms: list[str], directions: Directions
) -> BarChart | None:
    """Share of the behaviour classes per direction and over all, one panel an arm."""
    shown = [arm for arm in arms if (traces["arm"] == arm).any()]
    if not shown:
        return None
    rows = ["all", *(f"{a} \u2192 {b}" for a, b in directions)]
    panels = []
    for arm in shown:
        part = traces[traces["arm"] == arm]
        subsets = [part, *(_direction(part, pair) for pair in directions)]
        stacks = []
        for name in BEHAVIOURS:
            counts = [int((subset["behaviour"] == name).sum()) for subset in subsets]
            values = [c / max(1, len(s)) for c, s in zip(counts, subsets, strict=True)]
            texts = [
                hover(
                    ("", f"{arm}, {row}: {name}"),
                    ("share", percent(v)),
                    ("items", f"{c} of {len(s)}"),
                )
                for row, v, c, s in zip(rows, values, counts, subsets, strict=True)
            ]
            stacks.append(Stack(name, BEHAVIOUR_COLORS[name], values, texts))
        panels.append(BarPanel(arm, tuple(stacks)))
    return BarChart(
        name="classes",
        alt="Share of direct and pivot behaviour by direction and arm",
        rows=tuple(rows),
        panels=tuple(panels),
        axis=Axis("share of the items", percent=True, limits=(0, 1)),
    )


def scatter_figure(items: pd.DataFrame, arms: list[str], max_points: int) -> XYChart | None:
    """Joint document frequency of a pair against its score, by behaviour, with a fitted line."""
    panels = []
    shown_arms = [arm for arm in arms if (items["arm"] == arm).any()]
    limit = max(1, max_points // max(1, len(shown_arms)))
    for arm in shown_arms:
        part = items[(items["arm"] == arm) & items["score"].notna()]
        if part.empty:
            continue
        shown = thin(part.assign(x=part["log_pair"].astype(float)), limit, *ITEM_KEY)
        # As in every other statistic, items whose words share a token are set aside.
        classed = part[part["behaviour"].isin(["direct", "pivot"])]
        x = classed["log_pair"].to_numpy(dtype=np.float64)
        y = classed["score"].to_numpy(dtype=np.float64)
        series = []
        for name in ("none", "direct", "pivot"):
            points = shown[shown["behaviour"] == name]
            if len(points):
                series.append(_points(points, name))
        fit = line_fit(x, y)
        note = "no line: too few items or one frequency"
        if fit is not None:
            ends = [float(x.min()), float(x.max())]
            line = [fit[0] * v + fit[1] for v in ends]
            series.append(Series("fitted line", INK, ends, line, width=1.4))
            note = f"slope {signed(fit[0])}"
        panels.append(Panel(arm, tuple(series), note=f"{note}, {plural(len(part), 'item')}"))
    if not panels:
        return None
    return XYChart(
        name="scatter",
        alt="Joint document frequency against translation score",
        panels=tuple(panels),
        x=Axis("log(1 + documents with both words)"),
        y=Axis("Score"),
        columns=2,
        panel_height=2.5,
    )


def _points(points: pd.DataFrame, name: str) -> Series:
    texts = [
        hover(
            ("", f"{row['source']} \u2192 {row['target']}"),
            ("direction", f"{row['source_lang']} to {row['target_lang']}"),
            ("documents with both", count(round(math.expm1(row["log_pair"])))),
            ("Score", number(row["score"])),
            ("behaviour", name),
        )
        for row in records(points)
    ]
    return Series(
        name=name,
        color=BEHAVIOUR_COLORS[name],
        x=points["x"].tolist(),
        y=points["score"].astype(float).tolist(),
        mode="points",
        marker=BEHAVIOUR_MARKERS[name],
        size=3.6,
        opacity=0.55,
        hover=texts,
    )


def roc_figure(
    items: pd.DataFrame, arms: list[str], directions: Directions, aucs: Mapping[str, Comparison]
) -> XYChart | None:
    """ROC of log(1 + pair frequency) for direct against pivot: directions thin, their mean bold."""
    panels = []
    grid = np.linspace(0, 1, 51)
    for arm in arms:
        part = items[(items["arm"] == arm) & items["behaviour"].isin(["direct", "pivot"])]
        series, curves = [], []
        for pair in directions:
            curve = _roc(_direction(part, pair))
            if curve is not None:
                name = f"{pair[0]} \u2192 {pair[1]}"
                value = aucs[arm].directions[pair]
                text = hover(("", name), ("AUC", interval(value.value, value.low, value.high, 2)),
                             ("items", value.n))  # fmt: skip
                curves.append(np.interp(grid, *curve))
                series.append(
                    Series("one direction", "#9aa3b2", curve[0].tolist(), curve[1].tolist(),
                           width=0.9, opacity=0.75, hover=[text] * len(curve[0]))
                )  # fmt: skip
        if not curves:
            continue
        mean = np.mean(curves, axis=0)
        overall = aucs[arm].overall
        series.append(
            Series("mean of the directions", "#d1495b", [0.0, *grid.tolist()],
                   [0.0, *mean.tolist()], width=2.4)
        )  # fmt: skip
        note = f"mean AUC {interval(overall.value, overall.low, overall.high, 2)}"
        panels.append(Panel(arm, tuple(series), note=note, diagonal=True))
    if not panels:
        return None
    return XYChart(
        name="roc",
        alt="ROC of joint document frequency for direct against pivot behaviour",
        panels=tuple(panels),
        x=Axis("share of pivot items taken for direct", limits=(-0.01, 1.01)),
        y=Axis("share of direct items found", limits=(-0.01, 1.01)),
        columns=2,
        panel_height=2.9,
    )


def auc_figure(aucs: Mapping[str, Mapping[str, Comparison]], palette: Palette) -> DotChart | None:
    """Mean AUC with interval per arm: {predictor: {arm: comparison}}."""
    if not any(math.isfinite(c.overall.value) for found in aucs.values() for c in found.values()):
        return None
    predictors = list(aucs)
    arms = list(dict.fromkeys(arm for found in aucs.values() for arm in found))
    series = []
    for arm in arms:
        found = [aucs[name][arm].overall for name in predictors]
        texts = [
            hover(
                ("", f"{arm}: {name}"), ("AUC", interval(e.value, e.low, e.high, 2)), ("items", e.n)
            )
            for name, e in zip(predictors, found, strict=True)
        ]
        series.append(
            DotSeries(arm, palette.arms[arm], [e.value for e in found], [e.low for e in found],
                      [e.high for e in found], hover=texts)
        )  # fmt: skip
    return DotChart(
        name="auc",
        alt="AUC of three frequencies as predictors of behaviour",
        rows=tuple(predictors),
        panels=(DotPanel("", Axis("AUC, mean over directions"), tuple(series), 0.5, "chance"),),
    )


def _direction(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    return frame[(frame["source_lang"] == pair[0]) & (frame["target_lang"] == pair[1])]


def _roc(part: pd.DataFrame) -> tuple[Floats, Floats] | None:
    positive = (part["behaviour"] == "direct").to_numpy()
    if not positive.any() or positive.all():
        return None
    return roc_curve(positive, part["log_pair"].to_numpy(dtype=np.float64))
