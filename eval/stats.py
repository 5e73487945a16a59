"""Statistics with intervals: means, correlations, AUC and least squares under one bootstrap.

Every statistic is a function of integer weights: W float64 [n_samples, n] says how often each of
the n observations stands in each sample. With one row of ones it is the plain statistic; with rows
drawn by cluster (all observations of a concept are drawn together, since they are not independent)
it is the bootstrap. Where the observations are of several trained models, these are drawn too, and
the weights multiplied (A. Owen, The pigeonhole bootstrap, 2007). Undefined values (one class only,
a constant, too few observations) are NaN inside and null with a reason in records, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.seeds import generator

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

CHUNK_VALUES = 4_000_000
MIN_DEFINED_SHARE = 0.5
MAX_CONDITION = 1e10
RELATIVE_ZERO = 1e-12


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval; None where undefined, and `reason` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None

    def record(self, key: str = "value") -> dict[str, Any]:
        """JSON value: {key, low, high, n} and the reason where there is one."""
        record: dict[str, Any] = {key: self.value, "low": self.low, "high": self.high, "n": self.n}
        return record | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of samples, level, and the seed of the draws."""

    samples: int
    confidence: float
    seed: int

    def weights(
        self, clusters: Sequence[str], models: Sequence[int] | None = None
    ) -> Iterator[Floats]:
        """Weights [chunk, n] of the samples: clusters are drawn with replacement, by name order.

        `models` [n] says which trained model (its seed) each observation is of; None is one model.
        """
        names, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        seeds, places = np.unique(models or [0] * len(codes), return_inverse=True)
        rng, seed_rng = generator(self.seed, "bootstrap"), generator(self.seed, "bootstrap seeds")
        chunk = max(1, CHUNK_VALUES // max(1, len(codes)))
        for begin in range(0, self.samples, chunk):
            size = (min(chunk, self.samples - begin), len(names))
            drawn = rng.integers(0, len(names), size=size)
            offsets = np.arange(size[0])[:, None] * len(names)
            counts = np.bincount((drawn + offsets).ravel(), minlength=size[0] * size[1])
            found = counts.reshape(size)[:, codes].astype(np.float64)
            if len(seeds) > 1:
                shares = np.full(len(seeds), 1 / len(seeds))
                found *= seed_rng.multinomial(len(seeds), shares, size[0])[:, places]
            yield found

    def run(
        self, statistic: Statistic, clusters: Sequence[str], models: Sequence[int] | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """The statistic's value, low and high, each [k]; NaN where undefined.

        Percentile intervals over the samples in which it is defined, if these are at least half.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            value = statistic(np.ones((1, len(clusters))))[0]
            samples = np.concatenate([statistic(w) for w in self.weights(clusters, models)])
        low, high = percentiles(samples, self.confidence)
        missing = ~np.isfinite(value)
        low[missing] = high[missing] = np.nan
        return value, low, high

    def intervals(
        self,
        statistic: Statistic,
        clusters: Sequence[str],
        n: int | None = None,
        models: Sequence[int] | None = None,
    ) -> list[Interval]:
        """The statistic's k values as Intervals without reasons; `n` defaults to observations."""
        if len(clusters) == 0:
            return []
        size = len(clusters) if n is None else n
        return [
            Interval(_finite(v), _finite(lo), _finite(hi), size)
            for v, lo, hi in zip(*self.run(statistic, clusters, models), strict=True)
        ]


def percentiles(samples: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Low and high [k] of a statistic's `samples` [n_samples, k].

    Over the samples in which it is defined, if these are at least half; NaN otherwise.
    """
    tail = (1 - confidence) / 2
    low, high = np.full(samples.shape[1], np.nan), np.full(samples.shape[1], np.nan)
    for k in range(samples.shape[1]):
        defined = samples[np.isfinite(samples[:, k]), k]
        if len(defined) and len(defined) >= MIN_DEFINED_SHARE * len(samples):
            low[k], high[k] = np.quantile(defined, [tail, 1 - tail])
    return low, high


def undefined(n: int, reason: str) -> Interval:
    """An Interval without value."""
    return Interval(None, None, None, n, reason)


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Means [n_samples, k] of the columns of `values` [n, k]; NaN entries are left out."""
    present = np.isfinite(values)
    totals = weights @ np.where(present, values, 0.0)
    counts = weights @ present.astype(np.float64)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def mean_over_columns(columns: Floats) -> Floats:
    """Mean [n_samples, 1] over the columns that are defined in a sample."""
    present = np.isfinite(columns)
    counts = present.sum(axis=1, keepdims=True)
    totals = np.where(present, columns, 0.0).sum(axis=1, keepdims=True)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def weighted_pearson(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's r [n_samples] of `x` and `y`, each [n], or [n_samples, n] if by sample."""
    total = weights.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True) / total
    dy = y - (weights * y).sum(axis=1, keepdims=True) / total
    xx, yy = (weights * dx * dx).sum(axis=1), (weights * dy * dy).sum(axis=1)
    xy = (weights * dx * dy).sum(axis=1)
    # A constant's variance is rounding noise: compare it with the values' own size.
    flat_x = xx <= RELATIVE_ZERO * (weights * x * x).sum(axis=1)
    flat_y = yy <= RELATIVE_ZERO * (weights * y * y).sum(axis=1)
    flat = flat_x | flat_y
    r = np.clip(xy / np.sqrt(np.where(flat, 1.0, xx * yy)), -1, 1)
    return np.where(flat, np.nan, r)


def weighted_midranks(x: Floats, weights: Floats) -> Floats:
    """Ranks [n_samples, n] in each sample, 1-based, ties at their mean rank."""
    values, codes = np.unique(x, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(values)))
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(totals, axis=1) - totals + (totals + 1) / 2
    return ranks[:, codes]


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's rho [n_samples]: Pearson's r of the ranks in each sample."""
    return weighted_pearson(weighted_midranks(x, weights), weighted_midranks(y, weights), weights)


def weighted_auc(positive: npt.NDArray[np.bool_], x: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve [n_samples] of `x` for `positive` [n]; a tie counts one half."""
    if not positive.any() or positive.all():
        return np.full(len(weights), np.nan)
    n_positive = weights @ positive.astype(np.float64)
    n_negative = weights.sum(axis=1) - n_positive
    ranks = weighted_midranks(x, weights)
    rank_sum = (weights * ranks * positive).sum(axis=1)
    pairs = n_positive * n_negative
    wins = rank_sum - n_positive * (n_positive + 1) / 2
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def weighted_ols(predictors: Floats, y: Floats, weights: Floats) -> Floats:
    """Least squares y ~ predictors [n, p] + constant: [n_samples, p + 2].

    Columns: the p slopes, the constant, R2. NaN where the predictors are collinear or constant in
    the sample, or y is constant.
    """
    centre, scale = predictors.mean(axis=0), predictors.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.column_stack([(predictors - centre) / scale, np.ones(len(y))])
    width = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(y), -1)
    normal = (weights @ products).reshape(-1, width, width)
    moments = weights @ (design * y[:, None])
    result = np.full((len(weights), width + 1), np.nan)
    solvable = np.linalg.cond(normal) < MAX_CONDITION
    if solvable.any():
        beta = np.linalg.solve(normal[solvable], moments[solvable][:, :, None])[:, :, 0]
        w = weights[solvable]
        residual = (w * (y - beta @ design.T) ** 2).sum(axis=1)
        mean = (w @ y / w.sum(axis=1))[:, None]
        spread = (w * (y - mean) ** 2).sum(axis=1)
        flat = spread <= RELATIVE_ZERO * (w @ (y * y))
        slopes = beta[:, :-1] / scale
        constant = beta[:, -1] - slopes @ centre
        r2 = 1 - residual / np.where(flat, 1.0, spread)
        rows = np.column_stack([slopes, constant, r2])
        rows[flat] = np.nan
        result[solvable] = rows
    return result


def roc_curve(positive: npt.NDArray[np.bool_], x: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates, from (0, 0) to (1, 1), one point per distinct value of `x`.

    Both classes must be there.
    """
    values, codes = np.unique(-x, return_inverse=True)
    hits = np.bincount(codes, weights=positive, minlength=len(values)).cumsum()
    alarms = np.bincount(codes, weights=~positive, minlength=len(values)).cumsum()
    zero = np.zeros(1)
    return (
        np.concatenate([zero, alarms / alarms[-1]]),
        np.concatenate([zero, hits / hits[-1]]),
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
