"""Figures of several models: a heatmap of directions for each, and Score against training step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pandas as pd

from eval.chart_style import make_palette
from eval.charts import Axis, MatrixChart, MatrixPanel, Panel, Series, XYChart
from eval.report_data import records
from eval.report_text import count, hover, interval, number

NAN = math.nan
LOG_FROM = 100.0  # steps that span more than two decades stand on a logarithmic axis


def heatmap_figures(directions: pd.DataFrame) -> Iterator[MatrixChart]:
    """A figure for each run of `directions` (compare.DIRECTION_SCHEMA), all on one scale."""
    names = run_names(directions)
    panels = dict(zip(names, heatmap_panels(directions), strict=True))
    for name, panel in panels.items():
        plain = re.sub(r"[^\w.@-]+", "-", name)
        yield heatmap(f"heatmap-{plain}", f"Score by direction of {name}", [panel], directions)


def run_names(directions: pd.DataFrame) -> list[str]:
    """The runs, as `model`, or `model/seed` where the model has several."""
    runs = directions[["model", "seed"]].drop_duplicates()
    several = runs["model"].duplicated(keep=False)
    return [
        f"{model}/{seed}" if many else str(model)
        for model, seed, many in zip(runs["model"], runs["seed"], several, strict=True)
    ]


def heatmap_panels(directions: pd.DataFrame) -> list[MatrixPanel]:
    """A matrix for each run, source languages as rows; cells hold value and interval."""
    langs = _languages(directions)
    scale = _largest(directions)
    panels = []
    groups = directions.groupby(["model", "seed"], sort=False)
    for name, (_, part) in zip(run_names(directions), groups, strict=True):
        values = [[NAN] * len(langs) for _ in langs]
        text = [[""] * len(langs) for _ in langs]
        hovers = [[""] * len(langs) for _ in langs]
        for row in records(part):
            source, target = row["source_lang"], row["target_lang"]
            i, j = langs.index(source), langs.index(target)
            mean, low, high = row["mean"], row["low"], row["high"]
            values[i][j] = mean
            bounds = f"[{number(low, scale=scale)}, {number(high, scale=scale)}]"
            text[i][j] = f"{number(mean, scale=scale)}\n{bounds}"
            hovers[i][j] = hover(
                ("", f"{name}: {source} to {target}"),
                ("Score", interval(mean, low, high)),
                ("items", count(row["n"])),
            )
        panels.append(MatrixPanel(name, values, text, hovers))
    return panels


def heatmap(
    name: str, alt: str, panels: list[MatrixPanel], directions: pd.DataFrame
) -> MatrixChart:
    """Panels of `heatmap_panels` on the scale of all of `directions`, symmetric about zero."""
    langs = tuple(_languages(directions))
    top = _largest(directions) or 1e-3
    return MatrixChart(
        name=name,
        alt=alt,
        rows=langs,
        columns=langs,
        row_label="from",
        column_label="to",
        panels=tuple(panels),
        limits=(-top, top),
        diverging=True,
    )


def series_figure(series: pd.DataFrame) -> XYChart | None:
    """Score against step with a band, one line a series (and seed); None without any series."""
    scores = series[(series["measure"] == "score") & series["mean"].notna()]
    if scores.empty:
        return None
    names = [str(name) for name in dict.fromkeys(scores["series"])]
    seeds = {name: sorted(set(scores.loc[scores["series"] == name, "seed"])) for name in names}
    colors = make_palette(names, ()).arms
    lines = []
    for name in names:
        for seed in seeds[name]:
            part = scores[(scores["series"] == name) & (scores["seed"] == seed)]
            part = part.sort_values("step")
            shown = f"{name}/{seed}" if len(seeds[name]) > 1 else name
            lines.append(_line(shown, colors[name], part, dashed=seed != seeds[name][0]))
            lines.append(_points(shown, colors[name], part))
    steps = scores["step"]
    wide = steps.min() > 0 and steps.max() / steps.min() > LOG_FROM
    return XYChart(
        name="series",
        alt="Translation score against training step",
        panels=(Panel("", tuple(lines)),),
        x=Axis("training step", log=bool(wide)),
        y=Axis("mean Score"),
        columns=1,
        panel_height=3.2,
    )


def _line(name: str, color: str, part: pd.DataFrame, dashed: bool) -> Series:
    return Series(
        name=name,
        color=color,
        x=part["step"].astype(float).tolist(),
        y=part["mean"].tolist(),
        low=part["low"].tolist(),
        high=part["high"].tolist(),
        dash="dash" if dashed else "solid",
        hover=[
            hover(
                ("", f"{name}, step {count(row['step'])}"),
                ("Score", interval(row["mean"], row["low"], row["high"])),
                ("items", count(row["n"])),
            )
            for row in records(part)
        ],
    )


def _points(name: str, color: str, part: pd.DataFrame) -> Series:
    """The checkpoints themselves: the line between them is no measurement."""
    return Series(
        name=name,
        color=color,
        x=part["step"].astype(float).tolist(),
        y=part["mean"].tolist(),
        mode="points",
        legend=False,
    )


def _languages(directions: pd.DataFrame) -> list[str]:
    pairs = zip(directions["source_lang"], directions["target_lang"], strict=True)
    return list(dict.fromkeys(str(lang) for pair in pairs for lang in pair))


def _largest(directions: pd.DataFrame) -> float:
    """The largest absolute Score."""
    return float(directions["mean"].abs().max()) if len(directions) else 0.0
