"""What corpus counts have to do with behaviour and score (METHOD section 2, Attribution). Pure.

Frequencies enter as log(1 + n), so that pairs that never meet rank below those that meet once.
Observations of one concept are drawn together by the bootstrap, and so are those of one trained
model where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.behaviour import BEHAVIOURS, DIRECT, PIVOT
from eval.stats import (
    Bootstrap,
    Floats,
    Interval,
    Statistic,
    mean_over_columns,
    roc_curve,
    undefined,
    weighted_auc,
    weighted_ols,
    weighted_pearson,
    weighted_spearman,
)

PREDICTORS = ("pair", "source", "target")
PARTS = ("all", "classified", *BEHAVIOURS)
MIN_CORRELATION = 3
MIN_FIT = 4
SINGLE_CLASS = "only one of the two behaviours occurs"


@dataclass(frozen=True)
class Observations:
    """Items as columns, all of one length n.

    `log_freq[p]` float64 [n] for each of PREDICTORS; `score` is NaN where an item has none;
    `pivot_contribution` is the sum over the pair's pivots of log(1 + path). `model` is the seed of
    the trained model; None where all are of one.
    """

    concept: Sequence[str]
    direction: Sequence[str]
    behaviour: Sequence[str]
    score: Floats
    log_freq: Mapping[str, Floats]
    pivot_contribution: Floats
    model: Sequence[int] | None = None

    def where(self, mask: npt.NDArray[np.bool_]) -> Observations:
        """The observations at which `mask` [n] is true."""
        rows = np.flatnonzero(mask).tolist()
        return Observations(
            concept=[self.concept[i] for i in rows],
            direction=[self.direction[i] for i in rows],
            behaviour=[self.behaviour[i] for i in rows],
            score=self.score[rows],
            log_freq={name: values[rows] for name, values in self.log_freq.items()},
            pivot_contribution=self.pivot_contribution[rows],
            model=None if self.model is None else [self.model[i] for i in rows],
        )

    def classified(self) -> Observations:
        """Those with direct or pivot behaviour."""
        return self.where(np.isin(np.asarray(self.behaviour, dtype=str), [DIRECT, PIVOT]))

    def scored(self) -> Observations:
        """Those with a score."""
        return self.where(np.isfinite(self.score))

    def intervals(self, statistic: Statistic, bootstrap: Bootstrap) -> list[Interval]:
        """The statistic's values, with the concepts and the trained models resampled."""
        return bootstrap.intervals(statistic, self.concept, models=self.model)

    def __len__(self) -> int:
        return len(self.concept)


def auc_table(observations: Observations, predictor: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """AUC of a log frequency for direct (positive) against pivot: by direction, and the mean.

    The mean takes the directions in which both behaviours occur.
    """
    data = observations.classified()
    directions = list(dict.fromkeys(observations.direction))
    names = np.asarray(data.direction, dtype=str)
    positive = np.asarray(data.behaviour, dtype=str) == DIRECT
    x = data.log_freq[predictor]
    members = [np.flatnonzero(names == name) for name in directions]

    def by_direction(weights: Floats) -> Floats:
        columns = np.column_stack([weighted_auc(positive[m], x[m], weights[:, m]) for m in members])
        return np.column_stack([mean_over_columns(columns), columns])

    found = data.intervals(by_direction, bootstrap)
    if not found:
        found = [undefined(0, "no item has direct or pivot behaviour")] * (1 + len(directions))
    table: dict[str, Any] = {"directions": {}}
    n_defined = 0
    for name, interval in zip(directions, found[1:], strict=True):
        n_direct = int((positive & (names == name)).sum())
        n_pivot = int((~positive & (names == name)).sum())
        n_defined += interval.value is not None
        record = explained(interval, SINGLE_CLASS).record()
        table["directions"][name] = record | {
            "n": n_direct + n_pivot,
            "n_direct": n_direct,
            "n_pivot": n_pivot,
        }
    mean = explained(found[0], f"{SINGLE_CLASS} in every direction").record()
    table["mean"] = mean | {"n": len(data), "n_directions": n_defined}
    return table


def roc_points(observations: Observations, predictor: str) -> list[dict[str, Any]]:
    """Rows (direction, fpr, tpr) of the ROC curves of the directions with both behaviours."""
    data = observations.classified()
    names = np.asarray(data.direction, dtype=str)
    rows = []
    for name in dict.fromkeys(data.direction):
        part = data.where(names == name)
        positive = np.asarray(part.behaviour, dtype=str) == DIRECT
        if positive.all() or not positive.any():
            continue
        fpr, tpr = roc_curve(positive, part.log_freq[predictor])
        rows += [
            {"direction": name, "fpr": float(f), "tpr": float(t)}
            for f, t in zip(fpr, tpr, strict=True)
        ]
    return rows


def correlation_table(
    observations: Observations,
    predictor: str,
    bootstrap: Bootstrap,
    parts: Sequence[str] = PARTS,
    ranks: bool = True,
) -> dict[str, Any]:
    """Pearson and, with `ranks`, Spearman of a log frequency with Score, for each of `parts`.

    Parts are all items, the classified ones (direct or pivot) and each behaviour.
    """
    scored = observations.scored()
    kinds = np.asarray(scored.behaviour, dtype=str)
    members = {"all": np.full(len(kinds), True), "classified": np.isin(kinds, [DIRECT, PIVOT])}
    statistics = {"pearson": weighted_pearson}
    if ranks:
        statistics["spearman"] = weighted_spearman
    table = {}
    for name in parts:
        part = scored.where(members.get(name, kinds == name))
        x, y = part.log_freq[predictor], part.score

        def every(weights: Floats, x: Floats = x, y: Floats = y) -> Floats:
            return np.column_stack([statistic(x, y, weights) for statistic in statistics.values()])

        if len(part) < MIN_CORRELATION:
            reason = f"fewer than {MIN_CORRELATION} items"
            found = [undefined(len(part), reason)] * len(statistics)
        else:
            found = part.intervals(every, bootstrap)
        reason = "the frequency or the score is the same for all items"
        records = [explained(interval, reason).record() for interval in found]
        table[name] = {"n": len(part), **dict(zip(statistics, records, strict=True))}
    return table


def fit_table(
    observations: Observations, columns: Mapping[str, Floats], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Least squares Score ~ sum of k x column + intercept, with R2; `columns` are [n] each.

    Over the classified items that have a score.
    """
    kinds = np.asarray(observations.behaviour, dtype=str)
    rows = np.isin(kinds, [DIRECT, PIVOT]) & np.isfinite(observations.score)
    part = observations.where(rows)
    names = [*columns, "intercept", "r2"]
    if len(part) < MIN_FIT:
        found = [undefined(len(part), f"fewer than {MIN_FIT} items")] * len(names)
    else:
        design = np.column_stack([values[rows] for values in columns.values()])
        found = part.intervals(lambda w: weighted_ols(design, part.score, w), bootstrap)
    reason = "a predictor or the score is constant, or the predictors are collinear"
    fitted = {k: explained(v, reason).record() for k, v in zip(names, found, strict=True)}
    return {"n": len(part), **fitted}


def explained(interval: Interval, reason: str) -> Interval:
    """The interval, with a reason where it or its bounds are undefined."""
    if interval.reason is not None:
        return interval
    if interval.value is None:
        return undefined(interval.n, reason)
    if interval.low is None:
        why = "no interval: undefined in most bootstrap samples"
        return Interval(interval.value, None, None, interval.n, why)
    return interval
