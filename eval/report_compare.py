"""The part of the translation section that sets models side by side, from the compare stage."""

from __future__ import annotations

import math

import pandas as pd

from eval.figures_compare import heatmap, heatmap_panels, series_figure
from eval.report_answer import Estimate
from eval.report_data import Compared, records
from eval.report_figures import FigureWriter
from eval.report_models import difference_text, points_text
from eval.report_page import Block, Cell, Column, Table
from eval.report_text import count, number

MAX_HEATMAPS = 12
TALL_ROWS = 12
LEVELS = {
    "model": "Each pair of models (of several seeds, the mean by item): ",
    "run": "Each pair of single training runs: ",
    "series": "Each checkpoint of a series and the one before it: ",
}
METHOD = (
    "differences on the items that both have, with intervals over concepts. p is of a paired "
    "permutation test (the signs of whole concepts are flipped), corrected for the number of pairs "
    "after Holm; the plain ones are in comparisons.parquet of the stage compare."
)


def comparison_blocks(
    compared: Compared, figures: FigureWriter, heatmaps: bool = False
) -> list[Block]:
    """Tables of paired differences, heatmaps of the single runs, Score against step.

    With one seed a model the heatmaps are left out unless they are asked for: a run's report shows
    the same values in the matrices of its arms.
    """
    blocks: list[Block] = [
        _table(LEVELS[level] + METHOD, compared.comparisons[compared.comparisons["level"] == level])
        for level in LEVELS
        if len(compared.comparisons) and (compared.comparisons["level"] == level).any()
    ]
    directions = compared.directions
    if len(directions):
        checkpoints = set(compared.series["model"])
        directions = directions[~directions["model"].isin(checkpoints)]
    if len(directions) and (heatmaps or directions["seed"].nunique() > 1):
        panels = heatmap_panels(directions)[:MAX_HEATMAPS]
        chart = heatmap("heatmaps", "Translation score by direction and run", panels, directions)
        caption = "Mean Score with its interval by direction and training run, on one scale."
        blocks.append(figures.figure(chart, caption))
    if len(compared.series) and (line := series_figure(compared.series)) is not None:
        caption = (
            "Mean Score of checkpoints against the step of training; bands are intervals over "
            "concepts and draws of examples."
        )
        blocks.append(figures.figure(line, caption))
    return blocks


def _table(caption: str, rows: pd.DataFrame) -> Table:
    columns = [Column("difference"), Column("items", "num")]
    for name in ("Score", "accuracy, points", "mean reciprocal rank"):
        columns += [Column(label, "num", name) for label in ("difference", "p")]
    cells: list[tuple[Cell, ...]] = []
    for (model, reference), part in rows.groupby(["model", "reference"], sort=False):
        found = {row["measure"]: row for row in records(part)}
        line = [f"{model} minus {reference}", count(found["score"]["n_items"])]
        for measure, show in (
            ("score", difference_text), ("accuracy", points_text), ("mrr", difference_text)
        ):  # fmt: skip
            line += [show(_estimate(found[measure])), number(found[measure]["p_holm"])]
        cells.append(tuple(line))
    return Table(caption, tuple(columns), tuple(cells), tall=len(cells) > TALL_ROWS)


def _estimate(row: dict[str, float]) -> Estimate:
    value, low, high = (
        math.nan if row[key] is None else float(row[key]) for key in ("difference", "low", "high")
    )
    return Estimate(value, low, high, int(row["n_items"]))
