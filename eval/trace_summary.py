"""What the traces say in sum: shares of the behaviours, mean curves over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.behaviour import BEHAVIOURS
from eval.stats import Bootstrap, weighted_means

CURVES = ("p_source", "p_pivot", "p_target")


def behaviour_shares(behaviours: Sequence[str]) -> dict[str, float]:
    """Share of each class among the items; 0 for all where there is no item."""
    total = max(1, len(behaviours))
    return {name: behaviours.count(name) / total for name in BEHAVIOURS}


def summarise(items: pa.Table, layers: pa.Table, bootstrap: Bootstrap) -> dict[str, Any]:
    """Counts and shares by direction and in all, by both rules, and the curves of each class.

    `curves[class]` has `n`, `layers` and, for the summed probability of source, pivot and target
    tokens, lists `mean`, `low`, `high` over the layers (null where there is nothing to average);
    the class "all" takes every item. Concepts are drawn with all their directions.
    """
    frame = items.to_pydict()
    pairs = list(zip(frame["source_lang"], frame["target_lang"], strict=True))
    names = [f"{source}-{target}" for source, target in pairs]
    directions = {}
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        directions[name] = _counts([frame["behaviour"][i] for i in rows])
        directions[name]["any"] = _counts([frame["behaviour_any"][i] for i in rows])
    summary: dict[str, Any] = _counts(frame["behaviour"])
    summary["any"] = _counts(frame["behaviour_any"])
    summary["directions"] = directions
    summary["confidence"] = bootstrap.confidence
    # Layers stand in the items' order, the same number for each item.
    n_items = items.num_rows
    numbers = layers.column("layer").to_numpy()
    depth = len(numbers) // n_items
    curves = {curve: _column(layers, curve).reshape(n_items, depth) for curve in CURVES}
    behaviour = np.array(frame["behaviour"])
    concepts = np.array(frame["concept"])
    summary["curves"] = {}
    for name in ("all", *BEHAVIOURS):
        chosen = np.ones(n_items, dtype=bool) if name == "all" else behaviour == name
        entry: dict[str, Any] = {"n": int(chosen.sum()), "layers": numbers[:depth].tolist()}
        for curve, values in curves.items():
            entry[curve] = _curve(values[chosen], concepts[chosen].tolist(), bootstrap)
        summary["curves"][name] = entry
    return summary


def _curve(
    values: np.ndarray[Any, np.dtype[np.float64]], clusters: list[str], bootstrap: Bootstrap
) -> dict[str, list[float | None]]:
    if not clusters:
        return {key: [None] * values.shape[1] for key in ("mean", "low", "high")}
    found = bootstrap.intervals(lambda weights: weighted_means(values, weights), clusters)
    return {
        "mean": [interval.value for interval in found],
        "low": [interval.low for interval in found],
        "high": [interval.high for interval in found],
    }


def _counts(behaviours: Sequence[str]) -> dict[str, Any]:
    counts = {name: behaviours.count(name) for name in BEHAVIOURS}
    return {"n": len(behaviours), "counts": counts, "shares": behaviour_shares(behaviours)}


def _column(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(
        [np.nan if value is None else value for value in table.column(name).to_pylist()],
        dtype=np.float64,
    )
