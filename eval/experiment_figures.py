"""Figures of an experiment over seeds: cells by arm, the primary effects, richness of the mixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from eval.chart_style import INK, Palette
from eval.charts import Axis, DotChart, DotPanel, DotSeries, Panel, Series, XYChart
from eval.experiment_stats import Effect, Estimate, SeedValues
from eval.report_text import hover, interval, percent


def cells_figure(
    estimates: Mapping[tuple[str, str], Estimate], arms: Sequence[str], cells: Sequence[str],
    palette: Palette, chance: float,
) -> DotChart:  # fmt: skip
    """Accuracy by cell (rows) and arm (colours) with intervals over seeds."""
    series = []
    for arm in arms:
        found = [estimates[arm, cell] for cell in cells]
        series.append(
            DotSeries(
                arm,
                palette.arms[arm],
                [e.mean for e in found],
                [e.low for e in found],
                [e.high for e in found],
                hover=[
                    hover(
                        ("", f"{arm}, {cell}"),
                        ("accuracy", interval(e.mean, e.low, e.high)),
                        ("seeds", e.n),
                    )
                    for cell, e in zip(cells, found, strict=True)
                ],
            )
        )
    axis = Axis("accuracy among ten", percent=True)
    return DotChart(
        "cells",
        "Accuracy of the arms in each cell of the design",
        tuple(cells),
        (DotPanel("", axis, tuple(series), chance, "chance"),),
    )


def effects_figure(effects: Sequence[Effect]) -> DotChart:
    """The effects on one cell with their intervals, one row a pair of arms."""
    names = [f"{e.arm} minus {e.reference}" for e in effects]
    dots = DotSeries(
        "difference",
        INK,
        [e.estimate.mean for e in effects],
        [e.estimate.low for e in effects],
        [e.estimate.high for e in effects],
        hover=[
            hover(
                ("", name),
                ("difference", interval(e.estimate.mean, e.estimate.low, e.estimate.high)),
                ("seeds above zero", f"{e.n_positive} of {e.estimate.n}"),
            )
            for name, e in zip(names, effects, strict=True)
        ],
    )
    axis = Axis("difference in accuracy", percent=True)
    return DotChart(
        "effects",
        "Differences of the arms on words that only pivots tie together",
        tuple(names),
        (DotPanel("", axis, (dots,), 0.0, "no difference"),),
    )


def seeds_figure(
    values: SeedValues, arms: Sequence[str], cell: str, palette: Palette, chance: float
) -> XYChart:
    """Accuracy of every single run on one cell; `values` as `seed_values` gives them."""
    seeds = sorted(values[arms[0], cell])
    lines = []
    for arm in arms:
        found = [values[arm, cell][seed] for seed in seeds]
        lines.append(
            Series(
                arm,
                palette.arms[arm],
                [float(seed) for seed in seeds],
                found,
                mode="points",
                size=6.5,
                hover=[
                    hover(("", f"{arm}, seed {seed}"), ("accuracy", percent(v)))
                    for seed, v in zip(seeds, found, strict=True)
                ],
            )
        )
    level = Series("chance", "#767b85", [min(seeds) - 0.4, max(seeds) + 0.4], [chance] * 2,
                   dash="dot", width=1.2)  # fmt: skip
    return XYChart(
        "seeds",
        "Accuracy of every run on words that only pivots tie together",
        (Panel("", (level, *lines)),),
        Axis("seed (a world and a training of its own)", whole=True),
        Axis("accuracy among ten", percent=True),
        columns=1,
        panel_height=3.2,
    )


def dose_figures(doses: pd.DataFrame) -> Iterator[XYChart]:
    """The primary effects against the dose, one figure a varied setting."""
    colors = {"random": "#0072b2", "broken-pivot": "#cc79a7"}
    for key, part in doses.groupby("key", sort=False):
        series = []
        for reference, color in colors.items():
            line = part[part["reference"] == reference].sort_values("value")
            x, y, low, high = (
                line[name].astype(float).tolist() for name in ("value", "difference", "low", "high")
            )
            name = f"pivot minus {reference}"
            series.append(Series(name, color, x, y, low=low, high=high))
            # The doses themselves: the line between them is no measurement.
            series.append(Series(name, color, x, y, mode="points", legend=False))
        yield XYChart(
            f"dose-{key}",
            f"Differences in accuracy against {key}",
            (Panel("", tuple(series)),),
            Axis(str(key)),
            Axis("difference in accuracy", percent=True),
            columns=1,
            panel_height=3.0,
        )
