"""How much of Score and behaviour corpus counts tell, beyond the frequencies of the words. Pure.

Partial correlations hold the source's and the target's own frequency fixed; calibration shows what
each band of joint frequency comes with; and the score of a direction is predicted from the corpus
alone, by a fit to the other directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.attribution import Observations, explained
from eval.behaviour import DIRECT, PIVOT
from eval.stats import (
    MAX_CONDITION,
    RELATIVE_ZERO,
    Bootstrap,
    Floats,
    mean_over_columns,
    undefined,
    weighted_means,
    weighted_midranks,
    weighted_ols,
    weighted_pearson,
)

CONTROLS = ("source", "target")
MIN_PARTIAL = 5
DEGENERATE = "a column is constant, or the columns are collinear"


def weighted_partial(columns: Sequence[Floats], weights: Floats) -> Floats:
    """Partial correlation [n_samples] of the first two columns, the others held fixed.

    Columns are [n], or [n_samples, n] if by sample (ranks). From the inverse of the correlation
    matrix; NaN where a column is constant in the sample or the columns are collinear.
    """
    total = weights.sum(axis=1, keepdims=True)
    centred = [c - (weights * c).sum(axis=1, keepdims=True) / total for c in columns]
    k = len(columns)
    covariance = np.empty((len(weights), k, k))
    for i in range(k):
        for j in range(i, k):
            product = (weights * centred[i] * centred[j]).sum(axis=1)
            covariance[:, i, j] = covariance[:, j, i] = product
    variance = covariance[:, range(k), range(k)]
    sizes = np.column_stack([(weights * c * c).sum(axis=1) for c in columns])
    varied = (variance > RELATIVE_ZERO * sizes).all(axis=1)
    found = np.full(len(weights), np.nan)
    if varied.any():
        scale = np.sqrt(variance[varied])
        correlation = covariance[varied] / (scale[:, :, None] * scale[:, None, :])
        regular = np.linalg.cond(correlation) < MAX_CONDITION
        rows = np.flatnonzero(varied)[regular]
        inverse = np.linalg.inv(correlation[regular])
        r = -inverse[:, 0, 1] / np.sqrt(inverse[:, 0, 0] * inverse[:, 1, 1])
        found[rows] = np.clip(r, -1, 1)
    return found


def partial_table(observations: Observations, bootstrap: Bootstrap) -> dict[str, Any]:
    """Partial correlation of log pair frequency with Score, and with being direct.

    CONTROLS, the log frequencies of source and target, are held fixed; Pearson and, of the ranks,
    Spearman. Over the classified items (with a score, for Score).
    """
    data = observations.classified()
    direct = (np.asarray(data.behaviour, dtype=str) == DIRECT).astype(np.float64)
    scored = np.isfinite(data.score)
    outcomes = {"score": (scored, data.score), "direct": (np.full(len(data), True), direct)}
    table = {}
    for name, (rows, values) in outcomes.items():
        part = data.where(rows)
        columns = [part.log_freq["pair"], values[rows], *(part.log_freq[c] for c in CONTROLS)]

        def both(weights: Floats, columns: list[Floats] = columns) -> Floats:
            ranks = [weighted_midranks(column, weights) for column in columns]
            return np.column_stack(
                [weighted_partial(columns, weights), weighted_partial(ranks, weights)]
            )

        if len(part) < MIN_PARTIAL:
            found = [undefined(len(part), f"fewer than {MIN_PARTIAL} items")] * 2
        else:
            found = part.intervals(both, bootstrap)
        records = [explained(interval, DEGENERATE).record() for interval in found]
        table[name] = {"n": len(part), **dict(zip(("pearson", "spearman"), records, strict=True))}
    return table


def calibration_table(
    observations: Observations, edges: Sequence[int], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Share of direct items, and mean Score, by band of joint document frequency.

    Bands begin at 0 and at each of `edges`. The share is of the classified items, the mean of the
    classified ones that have a score.
    """
    data = observations.classified()
    counts = np.rint(np.expm1(data.log_freq["pair"]))
    direct = (np.asarray(data.behaviour, dtype=str) == DIRECT).astype(np.float64)
    rows = []
    for low, high in zip((0, *edges), (*edges, None), strict=True):
        members = (counts >= low) & (counts < (np.inf if high is None else high))
        part = data.where(members)
        values = np.column_stack([direct[members], part.score])

        def means(weights: Floats, values: Floats = values) -> Floats:
            return weighted_means(values, weights)

        found = part.intervals(means, bootstrap) or [undefined(0, "no item in the band")] * 2
        shown = [explained(interval, "no item has a score").record() for interval in found]
        rows.append(
            {"from": low, "below": high, "n": len(part), "direct": shown[0], "score": shown[1]}
        )
    return rows


def held_out_table(
    observations: Observations, columns: Mapping[str, Floats], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Score of each direction, predicted from `columns` by a fit to all other directions.

    `r2` is 1 - (squared error) / (squared error of the other directions' mean score): 0 is no
    better than that mean, and below 0 worse; `pearson` is of the prediction with the score. With
    intervals in which every sample fits anew. Over the classified items that have a score.
    """
    kinds = np.asarray(observations.behaviour, dtype=str)
    rows = np.isin(kinds, [DIRECT, PIVOT]) & np.isfinite(observations.score)
    part = observations.where(rows)
    directions = list(dict.fromkeys(part.direction))
    design = np.column_stack([values[rows] for values in columns.values()])
    y, names = part.score, np.asarray(part.direction, dtype=str)
    result: dict[str, Any] = {"n": len(part), "columns": list(columns), "directions": {}}
    if len(directions) < 2:
        reason = "fewer than two directions have classified items with a score"
        return result | {"r2": undefined(len(part), reason).record(), "pearson": None}

    def by_direction(weights: Floats) -> Floats:
        r2, r = np.full((2, len(weights), len(directions)), np.nan)
        for k, name in enumerate(directions):
            inside = names == name
            r2[:, k], r[:, k] = _held_out(design, y, weights, inside)
        return np.column_stack([mean_over_columns(r2), mean_over_columns(r), r2, r])

    found = [
        explained(interval, "the fit or the direction's scores are degenerate").record()
        for interval in part.intervals(by_direction, bootstrap)
    ]
    n = len(directions)
    for k, name in enumerate(directions):
        size = int((names == name).sum())
        result["directions"][name] = {"n": size, "r2": found[2 + k], "pearson": found[2 + n + k]}
    return result | {"r2": found[0], "pearson": found[1]}


def _held_out(design: Floats, y: Floats, weights: Floats, inside: Any) -> tuple[Floats, Floats]:
    """R2 and Pearson's r [n_samples] on the rows `inside` of a fit to the others."""
    train = weights * ~inside
    fit = weighted_ols(design, y, train)
    beta, constant = fit[:, : design.shape[1]], fit[:, design.shape[1]]
    w = weights[:, inside]
    predicted = beta @ design[inside].T + constant[:, None]
    base = (train @ y / train.sum(axis=1))[:, None]
    error = (w * (y[inside] - predicted) ** 2).sum(axis=1)
    spread = (w * (y[inside] - base) ** 2).sum(axis=1)
    r2 = np.where(spread > 0, 1 - error / np.where(spread > 0, spread, 1.0), np.nan)
    usable = np.where(np.isfinite(predicted), predicted, 0.0)
    r = weighted_pearson(usable, y[inside], w)
    return r2, np.where(np.isfinite(predicted).all(axis=1), r, np.nan)
