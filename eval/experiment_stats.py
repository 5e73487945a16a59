"""The numbers of an experiment over seeds: cells, paired effects, and how many seeds it would take.

A seed is a world and a training of its own, so the seeds are what is drawn: every interval here is
of Student's t over one value a seed, and effects are paired within the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from eval.experiment_power import MAX_SEEDS, seeds_needed
from eval.stats import Floats
from mining.common.errors import InputError
from mining.common.shards import read_columns

MEASURES = ("accuracy", "score")

Verdict = Literal["better", "worse", "open"]
SeedValues = Mapping[tuple[str, str], Mapping[int, float]]


@dataclass(frozen=True)
class SeedRun:
    """The folder of one seed's finished chain and its seed."""

    root: Path
    seed: int

    def folders(self, stage: str, arms: Sequence[str]) -> dict[tuple[str, int], Path]:
        """The folders of a stage that is run for each arm."""
        return {(arm, self.seed): self.root / stage / arm / str(self.seed) for arm in arms}


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its interval (NaN with fewer than two, the mean without any)."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


@dataclass(frozen=True)
class Effect:
    """A paired difference of two arms on one cell and measure.

    `d` is the mean over the standard deviation of the differences (Cohen's d_z), `p` the two-sided
    p-value of the paired t-test, `seeds_needed` the least number of seeds with which an effect of
    this size would be found with a probability of 0.8; None beyond MAX_SEEDS.
    """

    arm: str
    reference: str
    cell: str
    measure: str
    estimate: Estimate
    d: float
    p: float
    n_positive: int
    seeds_needed: int | None

    def verdict(self) -> Verdict:
        """Whether the interval lies above zero, below it, or holds it; open where it is none.

        Seeds that are all alike, which few items can make them, leave no spread to judge by.
        """
        if not self.estimate.sd > 0:
            return "open"
        if self.estimate.low > 0:
            return "better"
        return "worse" if self.estimate.high < 0 else "open"

    def record(self) -> dict[str, Any]:
        """One row of effects.parquet; undefined values are null."""
        row = {
            "arm": self.arm,
            "reference": self.reference,
            "cell": self.cell,
            "measure": self.measure,
            "difference": self.estimate.mean,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "sd": self.estimate.sd,
            "n_seeds": self.estimate.n,
            "n_positive": self.n_positive,
            "d": self.d,
            "p": self.p,
            "seeds_needed": self.seeds_needed,
        }
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }


def read_cells(folders: Mapping[tuple[str, int], Path]) -> pd.DataFrame:
    """Accuracy and Score by arm, seed, cell and direction, from `evaluate` folders.

    Columns: arm, seed, cell, source_lang, target_lang, n, accuracy, score. A cell is the group of
    a concept in the task's table. Raises InputError where the items have no groups.
    """
    frames: list[pd.DataFrame] = []
    columns = ["group", "source_lang", "target_lang", "correct", "score"]
    for (arm, seed), folder in folders.items():
        items = read_columns(folder / "items.parquet", columns=columns).to_pandas()
        if items["group"].isna().any():
            raise InputError(f"{folder}: items without a group; an experiment compares cells")
        items = items[items["correct"].notna()].astype({"correct": float})
        keys = ["group", "source_lang", "target_lang"]
        found = items.groupby(keys, as_index=False).agg(
            n=("correct", "size"), accuracy=("correct", "mean"), score=("score", "mean")
        )
        found.insert(0, "arm", arm)
        found.insert(1, "seed", seed)
        frames.append(found.rename(columns={"group": "cell"}))
    return pd.concat(frames, ignore_index=True)


def seed_values(cells: pd.DataFrame, measure: str) -> SeedValues:
    """The mean over the directions, by arm and cell and, within, by seed."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    means = cells.groupby(["arm", "cell", "seed"], sort=False)[measure].mean().reset_index()
    for row in means.to_dict("records"):
        if math.isfinite(row[measure]):
            found.setdefault((row["arm"], row["cell"]), {})[row["seed"]] = row[measure]
    return found


def estimate(values: Sequence[float] | Floats, confidence: float) -> Estimate:
    """Mean and t-interval of one value a seed."""
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean()) if len(array) else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, n)
    # Equal values have no spread; their computed mean would give them one of 1e-17.
    sd = 0.0 if np.ptp(array) == 0 else float(array.std(ddof=1))
    margin = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(mean, mean - margin, mean + margin, sd, n)


def differences(
    cells: pd.DataFrame, arm: str, reference: str, cell: str, measure: str
) -> dict[int, float]:
    """`arm` minus `reference` by seed, of the seeds that have this cell in both."""
    values = seed_values(cells, measure)
    mine, others = values.get((arm, cell), {}), values.get((reference, cell), {})
    # Means over directions of the same accuracies differ by 1e-17.
    return {seed: round(mine[seed] - others[seed], 12) for seed in sorted(mine) if seed in others}


def effect(
    cells: pd.DataFrame, arm: str, reference: str, cell: str, measure: str, confidence: float,
    power: float,
) -> Effect:  # fmt: skip
    """`arm` minus `reference`, paired over the seeds that have this cell in both."""
    by_seed = differences(cells, arm, reference, cell, measure)
    gaps = np.asarray(list(by_seed.values()), dtype=np.float64)
    found = estimate(gaps, confidence)
    d = found.mean / found.sd if found.sd > 0 else math.nan
    p = float(2 * stats.t.sf(abs(d) * math.sqrt(found.n), found.n - 1)) if found.n > 1 else math.nan
    positive = int((gaps > 0).sum())
    needed = seeds_needed(d, power, 1 - confidence)
    return Effect(arm, reference, cell, measure, found, d, p, positive, needed)


def conclude(
    over_random: Effect, over_broken: Effect | None, control: Effect | None,
    over_twice: Effect | None = None, broken_gain: Effect | None = None,
) -> tuple[Verdict, str]:  # fmt: skip
    """The verdict and one plain sentence, from the primary effects and the negative control.

    Both primary effects have to hold for the claim, so neither needs a correction for the other.
    `over_twice`: pivot minus random with twice the budget; `broken_gain`: broken-pivot minus
    random, which tells whether the tie does all of the work.
    """
    gain = in_points(over_random.estimate)
    if over_random.estimate.n == 0:
        return "open", (
            f"Nothing to compare: no seed has {over_random.cell} in both {over_random.arm} and "
            f"{over_random.reference}."
        )
    if over_random.estimate.n < 2:
        return "open", (
            f"One seed shows nothing yet: on held-out words that only pivots tie together the "
            f"{over_random.arm} mix differs from {over_random.reference} by {gain}."
        )
    first = over_random.verdict()
    if first == "worse":
        text = (
            f"The reverse of the claim: at equal budget the {over_random.arm} mix translates "
            f"held-out words that only pivots tie together worse than {over_random.reference}: a "
            f"difference of {gain}"
        )
        return "worse", text + "."
    if first == "open":
        more = over_random.seeds_needed
        need = f"about {more} seeds" if more else f"more than {MAX_SEEDS} seeds, if any,"
        return "open", (
            f"No effect shown: on held-out words that only pivots tie together the "
            f"{over_random.arm} mix differs from {over_random.reference} by {gain}, "
            f"{why_open(over_random.estimate)}; an effect of the size seen would take {need} to "
            "show."
        )
    text = (
        f"At equal budget the {over_random.arm} mix raises the accuracy among ten on held-out "
        f"words that only pivots tie together by {gain} over {over_random.reference}"
    )
    if over_broken is None:
        text += "; no control with broken pivots was run, so that the tie does it is not shown"
    elif over_broken.verdict() == "better":
        text += (
            f", and by {in_points(over_broken.estimate)} over the same documents with the pivots' "
            "cross-lingual tie broken: the tie does "
        )
        if broken_gain is not None and broken_gain.verdict() == "better":
            share = over_broken.estimate.mean / over_random.estimate.mean
            text += f"{share:.0%} of it, the broken mix gains {in_points(broken_gain.estimate)}"
        else:
            text += "the work, not something that comes with it"
    else:
        text += (
            "; over the same documents with the pivots' cross-lingual tie broken the difference "
            f"is {in_points(over_broken.estimate)}: that the tie does the work is not shown"
        )
    if control is not None and control.verdict() == "better":
        text += f"; words without pivots gain too, by {in_points(control.estimate)}"
    if over_twice is not None:
        stays = "stays below it" if over_twice.verdict() == "better" else "is not shown to be below"
        text += f"; random with twice the budget {stays} ({in_points(over_twice.estimate)})"
    return (
        "better" if over_broken is not None and over_broken.verdict() == "better" else "open",
        text + ".",
    )


def why_open(e: Estimate) -> str:
    """Why several seeds show nothing."""
    return "an interval that holds zero" if e.sd > 0 else "alike in all seeds, without any spread"


def in_points(e: Estimate) -> str:
    """A difference of shares in percentage points, with its interval and seeds."""
    seeds = f"{e.n} seeds" if e.n > 1 else "one seed, no interval"
    if e.n < 2:
        return f"{100 * e.mean:.1f} points ({seeds})"
    return f"{100 * e.mean:.1f} points [{100 * e.low:.1f}, {100 * e.high:.1f}] ({seeds})"
