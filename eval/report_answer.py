"""The numbers of the report: arms and their paired differences, behaviours, attribution.

Intervals resample concepts (all directions of one are drawn together) and, where there are several,
the seeds of training. Pure: tables in, numbers out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from eval.stats import (
    Bootstrap,
    Floats,
    mean_over_columns,
    weighted_auc,
    weighted_means,
    weighted_ols,
    weighted_pearson,
)
from mining.common.seeds import generator

Directions = list[tuple[str, str]]
Verdict = Literal["better", "worse", "open", "unknown"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where undefined. `n` observations stand behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Estimates of one measure: over all directions (mean of their means) and per direction."""

    overall: Estimate
    directions: dict[tuple[str, str], Estimate]


@dataclass(frozen=True)
class Cube:
    """Values float64 [seed, concept, direction]; NaN where an item is missing."""

    values: Floats
    seeds: list[int]
    concepts: list[str]
    directions: Directions


def translated(items: pd.DataFrame) -> pd.DataFrame:
    """Items whose source and target are different strings (METHOD section 1)."""
    return items if items.empty else items[items["source"] != items["target"]]


def usable(items: pd.DataFrame) -> pd.DataFrame:
    """The translated items that have a score."""
    kept = translated(items)
    return kept if kept.empty else kept[kept["score"].notna()]


def directions_of(items: pd.DataFrame, languages: list[str]) -> Directions:
    """The directions that stand in the items, in the languages' order."""
    if items.empty:
        return []
    found = set(zip(items["source_lang"], items["target_lang"], strict=True))
    known = [pair for pair in itertools.permutations(languages, 2) if pair in found]
    return known + sorted(found - set(known))


def cube(items: pd.DataFrame, column: str, directions: Directions) -> Cube:
    """One arm's items as a cube of `column`."""
    seeds = sorted(int(seed) for seed in items["seed"].unique())
    concepts = sorted(str(name) for name in items["concept"].unique())
    values = np.full((len(seeds), len(concepts), len(directions)), np.nan)
    places = {pair: i for i, pair in enumerate(directions)}
    pairs = zip(items["source_lang"], items["target_lang"], strict=True)
    third = np.array([places[pair] for pair in pairs], dtype=np.int64)
    first = np.searchsorted(seeds, items["seed"].to_numpy())
    second = np.searchsorted(concepts, items["concept"].astype(str).to_numpy())
    values[first, second, third] = items[column].to_numpy(dtype=np.float64)
    return Cube(values, seeds, concepts, directions)


def paired(candidate: Cube, baseline: Cube) -> Cube:
    """The difference on the seeds and concepts that both have."""
    seeds = sorted(set(candidate.seeds) & set(baseline.seeds))
    concepts = sorted(set(candidate.concepts) & set(baseline.concepts))

    def part(one: Cube) -> Floats:
        rows = np.searchsorted(one.seeds, seeds)
        return one.values[np.ix_(rows, np.searchsorted(one.concepts, concepts))]

    return Cube(part(candidate) - part(baseline), seeds, concepts, candidate.directions)


def estimate(one: Cube, bootstrap: Bootstrap) -> Comparison:
    """Means with intervals. An item's value is its mean over the seeds drawn."""
    n_seeds, n_concepts, n_directions = one.values.shape
    sizes = np.isfinite(one.values).any(axis=0).sum(axis=0)
    if not sizes.sum():
        empty = Estimate(np.nan, np.nan, np.nan, 0)
        return Comparison(empty, dict.fromkeys(one.directions, empty))
    flat = one.values.transpose(1, 0, 2).reshape(n_concepts, n_seeds * n_directions)
    rng = generator(bootstrap.seed, "report", "seeds")

    def means(weights: Floats, seed_weights: Floats) -> Floats:
        by_seed = weighted_means(flat, weights).reshape(len(weights), n_seeds, n_directions)
        present = np.isfinite(by_seed)
        share = seed_weights[:, :, None] * present
        total = (np.where(present, by_seed, 0.0) * share).sum(axis=1)
        mean = np.where(share.sum(axis=1) > 0, total / np.maximum(share.sum(axis=1), 1), np.nan)
        return np.column_stack([mean_over_columns(mean), mean])

    value = means(np.ones((1, n_concepts)), np.ones((1, n_seeds)))[0]
    samples = np.concatenate([
        means(w, rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), len(w)).astype(float))
        for w in bootstrap.weights(one.concepts)
    ])  # fmt: skip
    low, high = _percentiles(samples, bootstrap.confidence)
    made = [
        Estimate(float(v), float(lo), float(hi), int(n))
        for v, lo, hi, n in zip(value, low, high, [sizes.sum(), *sizes], strict=True)
    ]
    return Comparison(made[0], dict(zip(one.directions, made[1:], strict=True)))


def seed_means(one: Cube) -> dict[int, float]:
    """Each seed's mean over the directions' means."""
    means = {}
    for seed, values in zip(one.seeds, one.values, strict=True):
        by_direction = weighted_means(values, np.ones((1, len(values))))
        means[seed] = float(mean_over_columns(by_direction)[0, 0])
    return means


def chance(items: pd.DataFrame) -> float:
    """Accuracy of a blind choice: the mean of 1 / (distractors + 1)."""
    return (
        float((1.0 / (items["n_distractors"].astype(float) + 1)).mean()) if len(items) else np.nan
    )


def auc_by_direction(
    items: pd.DataFrame, x: str, directions: Directions, bootstrap: Bootstrap
) -> Comparison:
    """AUC of column `x` for direct against pivot behaviour: per direction, and their mean."""
    classed = items[items["behaviour"].isin(["direct", "pivot"]) & items[x].notna()]
    empty = Estimate(np.nan, np.nan, np.nan, len(classed))
    if classed.empty:
        return Comparison(empty, dict.fromkeys(directions, empty))
    masks = [
        ((classed["source_lang"] == a) & (classed["target_lang"] == b)).to_numpy()
        for a, b in directions
    ]
    positive = (classed["behaviour"] == "direct").to_numpy()
    values = classed[x].to_numpy(dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        columns = [_auc(positive[mask], values[mask], weights[:, mask]) for mask in masks]
        table = np.column_stack(columns)
        return np.column_stack([mean_over_columns(table), table])

    value, low, high = bootstrap.run(statistic, list(classed["concept"].astype(str)))
    sizes = [len(classed), *(int(mask.sum()) for mask in masks)]
    made = [
        Estimate(float(v), float(lo), float(hi), n)
        for v, lo, hi, n in zip(value, low, high, sizes, strict=True)
    ]
    return Comparison(made[0], dict(zip(directions, made[1:], strict=True)))


def correlation(items: pd.DataFrame, x: str, bootstrap: Bootstrap) -> Estimate:
    """Pearson's r of column `x` and the score, over the items of all directions."""
    known = items[items[x].notna() & items["score"].notna()]
    if len(known) < 3:
        return Estimate(np.nan, np.nan, np.nan, len(known))
    values = known[x].to_numpy(dtype=np.float64)[None]
    score = known["score"].to_numpy(dtype=np.float64)[None]
    value, low, high = bootstrap.run(
        lambda w: weighted_pearson(values, score, w)[:, None], list(known["concept"].astype(str))
    )
    return Estimate(float(value[0]), float(low[0]), float(high[0]), len(known))


def two_variable_fit(
    items: pd.DataFrame, contribution: str, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Score ~ direct * log(1 + pair frequency) + pivot * contribution + constant, and R2."""
    known = items[items[contribution].notna() & items["score"].notna()]
    names = ("direct", "pivot", "constant", "R2")
    if len(known) < 4:
        return dict.fromkeys(names, Estimate(np.nan, np.nan, np.nan, len(known)))
    predictors = np.column_stack([
        known["log_pair"].to_numpy(dtype=np.float64),
        known[contribution].to_numpy(dtype=np.float64),
    ])  # fmt: skip
    score = known["score"].to_numpy(dtype=np.float64)
    value, low, high = bootstrap.run(
        lambda w: weighted_ols(predictors, score, w), list(known["concept"].astype(str))
    )
    return {
        name: Estimate(float(v), float(lo), float(hi), len(known))
        for name, v, lo, hi in zip(names, value, low, high, strict=True)
    }


def line_fit(x: Floats, y: Floats) -> tuple[float, float] | None:
    """Slope and constant of y on x; None where x is constant."""
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    row = weighted_ols(x[:, None], y, np.ones((1, len(y))))[0]
    return (float(row[0]), float(row[1])) if np.isfinite(row[:2]).all() else None


def verdict(difference: Estimate) -> Verdict:
    """`better`, `worse`, `open` (the interval holds zero) or `unknown` (no number)."""
    if not np.isfinite([difference.value, difference.low, difference.high]).all():
        return "unknown"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "open"


def _auc(positive: npt.NDArray[np.bool_], values: Floats, weights: Floats) -> Floats:
    if not positive.any() or positive.all():
        return np.full(len(weights), np.nan)
    return weighted_auc(positive, values, weights)


def _percentiles(samples: Floats, confidence: float) -> tuple[Any, Any]:
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        defined = np.isfinite(samples).mean(axis=0) >= 0.5
        low, high = np.full(samples.shape[1], np.nan), np.full(samples.shape[1], np.nan)
        if defined.any():
            low[defined], high[defined] = np.nanquantile(
                samples[:, defined], [tail, 1 - tail], axis=0
            )
    return low, high
