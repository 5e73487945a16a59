"""The numbers of the report: arms and their paired differences, behaviours, attribution.

Intervals resample concepts (all directions of one are drawn together) and, where there are several,
the seeds of training. Pure: tables in, numbers out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from eval.attribution import Observations, auc_table, correlation_table, fit_table
from eval.stats import (
    Bootstrap,
    Floats,
    mean_over_columns,
    percentiles,
    weighted_means,
    weighted_ols,
)
from mining.common.seeds import generator

Directions = list[tuple[str, str]]
Verdict = Literal["better", "worse", "open", "unknown"]
LAYER_MASSES = ("p_source", "p_pivot", "p_target")


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


@dataclass(frozen=True)
class LayerCurves:
    """One arm's and one class's mean probabilities over `layers`, by column of LAYER_MASSES.

    Of `n` items. The bounds are NaN where there is one concept only.
    """

    n: int
    layers: list[int]
    masses: dict[str, list[Estimate]]


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
    sizes = np.isfinite(one.values).any(axis=0).sum(axis=0)
    if not sizes.sum():
        empty = Estimate(np.nan, np.nan, np.nan, 0)
        return Comparison(empty, dict.fromkeys(one.directions, empty))
    found = _resampled(one.values, one.concepts, bootstrap)
    made = [
        Estimate(float(v), float(lo), float(hi), int(n))
        for v, lo, hi, n in zip(*found, [sizes.sum(), *sizes], strict=True)
    ]
    return Comparison(made[0], dict(zip(one.directions, made[1:], strict=True)))


def layer_curves(layers: pd.DataFrame, bootstrap: Bootstrap) -> LayerCurves:
    """The curves of the items in `layers`, the rows of one arm and one class.

    A concept's value is the mean over its directions, as these are not independent.
    """
    seeds, concepts, numbers = (sorted(layers[k].unique()) for k in ("seed", "concept", "layer"))
    every = pd.MultiIndex.from_product([seeds, concepts, numbers])
    means = layers.groupby(["seed", "concept", "layer"])[list(LAYER_MASSES)].mean().reindex(every)
    shape = (len(seeds), len(concepts), len(numbers) * len(LAYER_MASSES))
    values = means.to_numpy(dtype=np.float64).reshape(shape)
    value, low, high = (found[1:] for found in _resampled(values, concepts, bootstrap))
    if len(concepts) == 1:
        low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    n = int((layers["layer"] == numbers[0]).sum())
    made = [
        Estimate(float(v), float(lo), float(hi), n)
        for v, lo, hi in zip(value, low, high, strict=True)
    ]
    masses = {name: made[k :: len(LAYER_MASSES)] for k, name in enumerate(LAYER_MASSES)}
    return LayerCurves(n, [int(layer) for layer in numbers], masses)


def _resampled(
    values: Floats, concepts: Sequence[str], bootstrap: Bootstrap
) -> tuple[Floats, Floats, Floats]:
    """Value, low and high, each [1 + k], of the means of values float64 [seed, concept, k].

    First the mean over the columns' means, then each column's: over the concepts, then over the
    seeds. Both are resampled.
    """
    n_seeds, n_concepts, n_columns = values.shape
    flat = values.transpose(1, 0, 2).reshape(n_concepts, n_seeds * n_columns)
    rng = generator(bootstrap.seed, "report", "seeds")

    def means(weights: Floats, seed_weights: Floats) -> Floats:
        by_seed = weighted_means(flat, weights).reshape(len(weights), n_seeds, n_columns)
        present = np.isfinite(by_seed)
        share = seed_weights[:, :, None] * present
        total = (np.where(present, by_seed, 0.0) * share).sum(axis=1)
        mean = np.where(share.sum(axis=1) > 0, total / np.maximum(share.sum(axis=1), 1), np.nan)
        return np.column_stack([mean_over_columns(mean), mean])

    value = means(np.ones((1, n_concepts)), np.ones((1, n_seeds)))[0]
    samples = np.concatenate([
        means(w, rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), len(w)).astype(float))
        for w in bootstrap.weights(concepts)
    ])  # fmt: skip
    return value, *percentiles(samples, bootstrap.confidence)


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
    data: Observations, predictor: str, directions: Directions, bootstrap: Bootstrap
) -> Comparison:
    """AUC of a log frequency for direct against pivot behaviour: per direction, and their mean."""
    table = auc_table(data, predictor, bootstrap)
    found = {name: _estimate(record) for name, record in table["directions"].items()}
    empty = Estimate(np.nan, np.nan, np.nan, 0)
    by_direction = {pair: found.get("-".join(pair), empty) for pair in directions}
    return Comparison(_estimate(table["mean"]), by_direction)


def correlation(data: Observations, predictor: str, bootstrap: Bootstrap) -> Estimate:
    """Pearson's r of a log frequency and the score, over the classified items of all directions."""
    table = correlation_table(data, predictor, bootstrap, parts=("classified",), ranks=False)
    return _estimate(table["classified"]["pearson"])


def two_variable_fit(data: Observations, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Score ~ direct * log(1 + pair frequency) + pivot * contribution + constant, and R2."""
    columns = {"direct": data.log_freq["pair"], "pivot": data.pivot_contribution}
    table = fit_table(data, columns, bootstrap)
    names = {"direct": "direct", "pivot": "pivot", "constant": "intercept", "R2": "r2"}
    return {shown: _estimate(table[name]) for shown, name in names.items()}


def _estimate(record: Mapping[str, Any]) -> Estimate:
    value, low, high = (
        np.nan if record[key] is None else float(record[key]) for key in ("value", "low", "high")
    )
    return Estimate(value, low, high, int(record["n"]))


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
