"""Figures of an experiment over seeds: cells by arm, the primary effects, richness of the mixes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


def effects_figure(effects: Sequence[Effect], alt: str) -> DotChart:
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
        alt,
        tuple(names),
        (DotPanel("", axis, (dots,), 0.0, "no difference"),),
    )


def seeds_figure(
    values: SeedValues, arms: Sequence[str], cell: str, palette: Palette, chance: float, alt: str
) -> XYChart:
    """Accuracy of every single run on one cell; `values` as `seed_values` gives them."""
    seeds = sorted({seed for arm in arms for seed in values.get((arm, cell), {})})
    lines = []
    for arm in arms:
        found = [values.get((arm, cell), {}).get(seed, math.nan) for seed in seeds]
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
        alt,
        (Panel("", (level, *lines)),),
        Axis("seed", whole=True),
        Axis("accuracy among ten", percent=True),
        columns=1,
        panel_height=3.2,
    )
