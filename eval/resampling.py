"""The bootstrap of the word-translation measures, over concepts and over draws of examples.

A sample draws concepts with replacement (a concept comes with all its directions, since these are
not independent) and, for each direction, draws of examples with replacement. What a model makes of
a sample is computed anew from log P of every candidate in the draws of the sample:
log P(y | w) = mean over the resampled draws. With one draw this is the bootstrap over concepts.
Resampling both at once is mildly conservative (A. Owen, The pigeonhole bootstrap, 2007).

Draws that stand twice in a sample average out less than different ones, so that the measures, which
are not linear in log P, come out lower or higher in every sample alike. With thousands of items
that shift is wider than the interval; so what draws add to an item is taken about its own mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.stats import Bootstrap, Floats, mean_over_columns
from mining.common.seeds import generator

Ints = npt.NDArray[np.int64]

MEASURES = ("score", "accuracy", "mrr")
LOWEST = (-1.0, 0.0, 0.0)  # the highest is 1
CHUNK_VALUES = 2_000_000
# log P of a candidate that an item does not have: P = 0, but finite, as 0 * -inf is not a number.
ABSENT = -1e30


@dataclass(frozen=True)
class Items:
    """Which items there are, n of them: names of their concepts and directions, and their parts.

    `concepts` and `directions` are codes int64 [n] into the sorted names; `parts` float64
    [n, n_parts] says by 0 or 1 which parts (all, nouns, ...) an item belongs to.
    """

    concept_names: Sequence[str]
    concepts: Ints
    direction_names: Sequence[str]
    directions: Ints
    parts: Floats


def draw_patterns(bootstrap: Bootstrap, n_draws: int, direction: str) -> tuple[Floats, Ints]:
    """How much each draw counts in each sample, the same patterns only once.

    Returns shares float64 [n_patterns, n_draws] that add up to 1, and for each sample the number of
    its pattern. There are few (126 for five draws), so that each is computed only once.
    """
    rng = generator(bootstrap.seed, "draws", direction)
    drawn = rng.multinomial(n_draws, np.full(n_draws, 1 / n_draws), size=bootstrap.samples)
    patterns, which = np.unique(drawn, axis=0, return_inverse=True)
    return patterns / n_draws, which.reshape(-1)


def choice_values(log_likelihoods: Floats, n_wrong: Floats, shares: Floats) -> Floats:
    """MEASURES of every item under every pattern of draws: float64 [3, n_patterns, n].

    `log_likelihoods` float64 [n_candidates, n_draws, n], candidate 0 the right one, ABSENT where an
    item has fewer; `n_wrong` [n] counts the wrong ones, at least 1.
    """
    n_candidates, _, n = log_likelihoods.shape
    found = np.empty((len(MEASURES), len(shares), n))
    size = max(1, CHUNK_VALUES // max(1, n_candidates * n))
    for begin in range(0, len(shares), size):
        rows = slice(begin, begin + size)
        # One product for each candidate: equal candidates stay equal to the last bit.
        mean = np.matmul(shares[rows], log_likelihoods)
        rank = 1 + (mean[1:] >= mean[0]).sum(axis=0)
        np.exp(mean, out=mean)
        found[0, rows] = mean[0] - mean[1:].sum(axis=0) / n_wrong
        found[1, rows] = rank == 1
        found[2, rows] = 1 / rank
    return found


def centred_values(log_likelihoods: Floats, n_wrong: Floats, shares: Floats, which: Ints) -> Floats:
    """`choice_values`, moved so that an item's mean over the samples is its value with all draws.

    Pattern `which[s]` is that of sample s.
    """
    n_draws = log_likelihoods.shape[1]
    plain = choice_values(log_likelihoods, n_wrong, np.full((1, n_draws), 1 / n_draws))
    found = choice_values(log_likelihoods, n_wrong, shares)
    frequency = np.bincount(which, minlength=len(shares)) / len(which)
    found += plain - (frequency @ found)[:, None]
    return found


def resampled_means(
    items: Items, log_likelihoods: Floats, n_wrong: Floats, bootstrap: Bootstrap
) -> Floats:
    """MEASURES of every sample by direction and part: float64 [3, samples, directions, parts].

    `log_likelihoods` float64 [n_candidates, n_draws, n] as in `choice_values`; items with `n_wrong`
    0 are left out. NaN where a sample holds no item of a part in a direction.
    """
    n_directions, n_parts = len(items.direction_names), items.parts.shape[1]
    result = np.full((len(MEASURES), bootstrap.samples, n_directions, n_parts), np.nan)
    begin = 0
    for weights in bootstrap.weights(items.concept_names):
        end = begin + len(weights)
        for k, name in enumerate(items.direction_names):
            rows = np.flatnonzero((items.directions == k) & (n_wrong > 0))
            if not len(rows):
                continue
            here = log_likelihoods[:, :, rows]
            shares, which = draw_patterns(bootstrap, here.shape[1], name)
            values = centred_values(here, n_wrong[rows], shares, which)
            drawn, parts = weights[:, items.concepts[rows]], items.parts[rows]
            counts = drawn @ parts
            for m in range(len(MEASURES)):
                totals = (drawn * values[m, which[begin:end]]) @ parts
                means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
                result[m, begin:end, k] = np.clip(means, LOWEST[m], 1)
        begin = end
    return result


def means_by_part(items: Items, values: Floats) -> tuple[Floats, Ints]:
    """Means [3, directions, parts] of item values float64 [3, n], NaN left out, and their counts.

    Counts int64 [directions, parts] are of the items that have a value.
    """
    present = np.isfinite(values[0])
    shape = (len(items.direction_names), items.parts.shape[1])
    means = np.full((len(values), *shape), np.nan)
    counts = np.zeros(shape, dtype=np.int64)
    for k in range(shape[0]):
        rows = present & (items.directions == k)
        counts[k] = items.parts[rows].sum(axis=0)
        totals = values[:, rows] @ items.parts[rows]
        means[:, k] = np.where(counts[k] > 0, totals / np.maximum(counts[k], 1), np.nan)
    return means, counts


def over_directions(means: Floats) -> Floats:
    """The mean over directions: [samples, directions, parts] to [samples, parts]."""
    samples, directions, parts = means.shape
    flat = means.transpose(0, 2, 1).reshape(samples * parts, directions)
    return mean_over_columns(flat).reshape(samples, parts)
