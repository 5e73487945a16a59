"""Tables of an experiment over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from eval.experiment_stats import Effect, Estimate, SeedValues, estimate, seed_values
from eval.report_page import Cell, Column, Table
from eval.report_text import NONE, count, number, percent, points, signed

Estimates = Mapping[tuple[str, str, str], Estimate]


def bounds(e: Estimate) -> str:
    """The ends of an interval, in percentage points."""
    return "none" if e.n < 2 else f"{points(e.low)} to {points(e.high)}"


def shown(e: Estimate, as_percent: bool) -> str:
    """A mean with its interval where there is one."""
    write = percent if as_percent else number
    if e.n < 2:
        return write(e.mean)
    return f"{write(e.mean)} [{write(e.low)}, {write(e.high)}]"


def estimate_cells(
    cells: pd.DataFrame, measures: Sequence[str], arms: Sequence[str], order: Sequence[str],
    confidence: float,
) -> Estimates:  # fmt: skip
    """Mean and interval over seeds by (measure, arm, cell); of no seed where the arm lacks it."""
    found = {}
    for measure in measures:
        values = seed_values(cells, measure)
        for arm in arms:
            for cell in order:
                by_seed = values.get((arm, cell), {})
                found[measure, arm, cell] = estimate(list(by_seed.values()), confidence)
    return found


def cell_table(
    estimates: Estimates, arms: Sequence[str], meanings: Mapping[str, str], measure: str, share: str
) -> Table:
    """One measure by cell, with what the cell's words are, and arm."""
    name = "Accuracy among ten" if measure == "accuracy" else "Score"
    rows: list[tuple[Cell, ...]] = [
        (
            cell,
            meaning,
            *(shown(estimates[measure, arm, cell], measure == "accuracy") for arm in arms),
        )
        for cell, meaning in meanings.items()
    ]
    columns = (Column("cell"), Column("its words"), *(Column(arm, "num") for arm in arms))
    return Table(f"{name}, mean over seeds with {share} interval.", columns, tuple(rows))


def direction_table(
    cells: pd.DataFrame, arms: Sequence[str], cell: str, confidence: float, share: str
) -> Table:
    """Accuracy in a cell by direction and arm."""
    part = cells[cells["cell"] == cell]
    rows: list[tuple[Cell, ...]] = []
    for (source, target), own in part.groupby(["source_lang", "target_lang"], sort=False):
        values = (own.loc[own["arm"] == arm, "accuracy"].dropna().to_numpy() for arm in arms)
        rows.append(
            (f"{source} to {target}", *(shown(estimate(v, confidence), True) for v in values))
        )
    columns = (Column("direction"), *(Column(arm, "num") for arm in arms))
    caption = f"Accuracy in {cell} by direction, mean over seeds with {share} interval."
    return Table(caption, columns, tuple(rows), tall=len(rows) > 12)


def effect_table(effects: Sequence[Effect], primary: Sequence[Effect], share: str) -> Table:
    """All paired differences."""
    rows: list[tuple[Cell, ...]] = [
        (
            f"{e.arm} minus {e.reference}", e.cell, e.measure, "primary" if e in primary else "",
            shown(e.estimate, e.measure == "accuracy"), number(e.d, 2), number(e.p),
            f"{e.n_positive} of {e.estimate.n}",
            NONE if e.seeds_needed is None else count(e.seeds_needed),
        )
        for e in effects
    ]  # fmt: skip
    labels = ("difference", "d", "p", "seeds above zero", "seeds needed")
    columns = (
        Column("arms"), Column("cell"), Column("measure"), Column("endpoint"),
        *(Column(label, "num") for label in labels),
    )  # fmt: skip
    caption = (
        f"Paired differences over seeds with {share} intervals; d is the mean over the standard "
        "deviation of the differences, p of the paired t-test and not corrected, as all but the "
        "primary endpoints are descriptive. Seeds needed: to find an effect of that size with the "
        "set power, at the level of the intervals."
    )
    return Table(caption, columns, tuple(rows), tall=True)


def seed_table(
    values: SeedValues, seeds: Sequence[int], arms: Sequence[str], effects: Sequence[Effect]
) -> Table:
    """Accuracy by seed and arm in the effects' cell, and the effects by seed."""
    cell = effects[0].cell
    rows: list[tuple[Cell, ...]] = []
    for seed in seeds:
        hit = {arm: values.get((arm, cell), {}).get(seed) for arm in arms}
        gaps = []
        for e in effects:
            mine, other = hit[e.arm], hit[e.reference]
            gaps.append(None if mine is None or other is None else 100 * (mine - other))
        rows.append((str(seed), *map(percent, hit.values()), *(signed(gap) for gap in gaps)))
    columns = (
        Column("seed"),
        *(Column(arm, "num", "accuracy") for arm in arms),
        *(Column(f"{e.arm} − {e.reference}", "num", "difference, points") for e in effects),
    )
    return Table(f"Cell {cell} by seed.", columns, tuple(rows))
