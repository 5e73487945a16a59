"""Paired comparison of two models on the same items: difference, interval, p-value.

Items of one concept are not independent, so concepts are what is drawn (bootstrap) and what is
flipped (permutation test): under the null hypothesis that two models are alike, exchanging their
answers for a concept changes nothing, so the sign of its differences is a coin's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.stats import (
    Bootstrap,
    Floats,
    Interval,
    mean_over_columns,
    undefined,
    weighted_means,
)
from mining.common.seeds import generator

CHUNK_VALUES = 4_000_000
# Sums that differ by rounding only count as equal.
RELATIVE_TIE = 1e-9


@dataclass(frozen=True)
class Difference:
    """The mean difference over `n_items` items of `n_concepts` concepts."""

    interval: Interval
    n_items: int
    n_concepts: int


def difference(values: Floats, reference: Floats, bootstrap: Bootstrap) -> Difference:
    """Mean of `values` minus `reference`, each float64 [concepts, directions], NaN: no item.

    Over the items that both have: the mean over directions of the directions' means.
    """
    gap = values - reference
    rows = np.flatnonzero(np.isfinite(gap).any(axis=1))
    n_items = int(np.isfinite(gap).sum())
    if not n_items:
        return Difference(undefined(0, "no item in common"), 0, 0)
    names = [f"{row:09d}" for row in rows]
    found = bootstrap.intervals(
        lambda weights: mean_over_columns(weighted_means(gap[rows], weights)), names, n_items
    )
    return Difference(found[0], n_items, len(rows))


def contributions(values: Floats, reference: Floats) -> Floats:
    """What each concept adds to `difference`: float64 [concepts], whose sum it is."""
    gap = values - reference
    present = np.isfinite(gap)
    counts = present.sum(axis=0)
    share = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0) / max(1, (counts > 0).sum())
    found: Floats = np.where(present, gap, 0.0) @ share
    return found


def sign_flip_p_values(
    parts: Floats, permutations: int, seed: int
) -> tuple[Floats, Sequence[bool]]:
    """Two-sided p-values [k] of sums over `parts` float64 [concepts, k], and which are exact.

    Exact over all sign vectors where these are at most `permutations`; else from that many random
    ones, (b + 1) / (n + 1) (Phipson and Smyth, 2010), the same for all columns.
    """
    sizes = (parts != 0).sum(axis=0)
    exact = [2 ** int(size) <= permutations for size in sizes]
    total = np.abs(parts.sum(axis=0))
    least = total - RELATIVE_TIE * np.abs(parts).sum(axis=0)
    p = np.ones(parts.shape[1])
    for k in np.flatnonzero(exact):
        column = parts[parts[:, k] != 0, k]
        numbers = np.arange(2 ** len(column))[:, None]
        signs = 1.0 - 2.0 * (numbers >> np.arange(len(column)) & 1)
        p[k] = (np.abs(signs @ column) >= least[k]).mean()
    drawn = np.flatnonzero(np.logical_not(exact))
    if len(drawn):
        rng = generator(seed, "sign flips")
        beyond = np.zeros(len(drawn))
        chunk = max(1, CHUNK_VALUES // len(parts))
        for begin in range(0, permutations, chunk):
            size = (min(chunk, permutations - begin), len(parts))
            signs = 1.0 - 2.0 * rng.integers(0, 2, size=size, dtype=np.int8)
            beyond += (np.abs(signs @ parts[:, drawn]) >= least[drawn]).sum(axis=0)
        p[drawn] = (beyond + 1) / (permutations + 1)
    return p, exact


def holm(p_values: Floats) -> Floats:
    """p-values [m] corrected for being m (Holm, 1979); NaN are left out and stay."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1.0)
    return adjusted
