"""At which depth the source, the pivots and the target are strongest, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.paired import sign_flip_p_values
from eval.stats import Bootstrap, Floats, undefined, weighted_means

PERMUTATIONS = 10_000
ORDER = (("p_source", "p_pivot"), ("p_pivot", "p_target"), ("p_source", "p_target"))


def peak_depths(values: Floats, layers: Floats) -> Floats:
    """The layer at which each item's curve [n, depth] is highest, the first of equals; NaN without.

    In units of `layers` [depth].
    """
    known = np.isfinite(values).all(axis=1)
    found = np.full(len(values), np.nan)
    found[known] = layers[values[known].argmax(axis=1)]
    return found


def peak_table(
    curves: Mapping[str, Floats], layers: Floats, concepts: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Mean depth of the peaks of source, pivot and target, and tests of their order.

    Depths are shares of the number of layers (1 is the last block). For each pair of curves in
    ORDER: the mean of later minus earlier over the items that have both, its interval (concepts are
    drawn), the share of items in which the first peaks earlier, and the two-sided p-value of a test
    that flips the signs of all of a concept's differences together. `curves` are float64 [n, depth]
    over the blocks only.
    """
    share = layers / layers.max()
    depths = {name: peak_depths(values, share) for name, values in curves.items()}
    table: dict[str, Any] = {"depth": {}, "order": {}}
    for name, found in depths.items():
        table["depth"][name] = _mean(found, concepts, bootstrap)
    for first, second in ORDER:
        gap = depths[second] - depths[first]
        record = _mean(gap, concepts, bootstrap)
        known = np.isfinite(gap)
        record["first_earlier"] = float((gap[known] > 0).mean()) if known.any() else None
        record["same_layer"] = float((gap[known] == 0).mean()) if known.any() else None
        record["p"] = None
        if known.any():
            names, codes = np.unique(np.asarray(concepts)[known], return_inverse=True)
            sums = np.zeros((len(names), 1))
            np.add.at(sums[:, 0], codes, gap[known])
            p_values, _ = sign_flip_p_values(sums, PERMUTATIONS, bootstrap.seed)
            record["p"] = float(p_values[0])
        table["order"][f"{first} before {second}"] = record
    return table


def _mean(values: Floats, concepts: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    known = np.isfinite(values)
    if not known.any():
        return undefined(0, "no item has the curve").record()
    chosen = values[known][:, None]
    names = [concepts[i] for i in np.flatnonzero(known).tolist()]
    return bootstrap.intervals(lambda w: weighted_means(chosen, w), names)[0].record()
