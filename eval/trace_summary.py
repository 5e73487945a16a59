"""What the traces say in sum: shares of the behaviours, curves over the layers, their peaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.behaviour import BEHAVIOURS
from eval.peaks import peak_table
from eval.stats import Bootstrap, weighted_means
from eval.thresholds import sensitivity, top_tokens

PEAKING = ("p_source", "p_pivot", "p_target")
CURVES = (*PEAKING, "p_answer", "entropy")


def behaviour_shares(behaviours: Sequence[str]) -> dict[str, float]:
    """Share of each class among the items; 0 for all where there is no item."""
    total = max(1, len(behaviours))
    return {name: behaviours.count(name) / total for name in BEHAVIOURS}


def summarise(
    items: pa.Table,
    layers: pa.Table,
    languages: Sequence[str],
    thresholds: Sequence[float],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Counts and shares by direction and in all, by both rules, and the curves of each class.

    `curves[class]` has `n`, `layers` and, for each of CURVES and each language's word and
    vocabulary, lists `mean`, `low`, `high` over the layers (null where there is nothing to
    average); the class "all" takes every item. `peaks[class]` says how deep the curves peak, and in
    which order; `sensitivity` how the classes depend on thresholds. Concepts are drawn with all
    their directions.
    """
    frame = items.to_pydict()
    pairs = list(zip(frame["source_lang"], frame["target_lang"], strict=True))
    names = [f"{source}-{target}" for source, target in pairs]
    directions = {}
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        directions[name] = _counts([frame["behaviour"][i] for i in rows])
        for rule in ("winner", "any"):
            column = frame[f"behaviour_{rule}"]
            directions[name][rule] = _counts([column[i] for i in rows])
    summary: dict[str, Any] = _counts(frame["behaviour"])
    for rule in ("winner", "any"):
        summary[rule] = _counts(frame[f"behaviour_{rule}"])
    summary["sensitivity"] = sensitivity(top_tokens(items, layers), thresholds)
    summary["directions"] = directions
    summary["confidence"] = bootstrap.confidence
    # Layers stand in the items' order, the same number for each item.
    n_items = items.num_rows
    numbers = layers.column("layer").to_numpy()
    depth = len(numbers) // n_items
    spoken = [f"p_{kind}_{lang}" for kind in ("word", "vocabulary") for lang in languages]
    curves = {curve: _column(layers, curve).reshape(n_items, depth) for curve in (*CURVES, *spoken)}
    blocks = numbers[:depth] >= 1
    behaviour = np.array(frame["behaviour"])
    concepts = np.array(frame["concept"])
    summary["curves"], summary["peaks"] = {}, {}
    for name in ("all", *BEHAVIOURS):
        chosen = np.ones(n_items, dtype=bool) if name == "all" else behaviour == name
        drawn = concepts[chosen].tolist()
        entry: dict[str, Any] = {"n": int(chosen.sum()), "layers": numbers[:depth].tolist()}
        for curve, values in curves.items():
            entry[curve] = _curve(values[chosen], drawn, bootstrap)
        summary["curves"][name] = entry
        summary["peaks"][name] = peak_table(
            {curve: curves[curve][chosen][:, blocks] for curve in PEAKING},
            numbers[:depth][blocks].astype(np.float64),
            drawn,
            bootstrap,
        )
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
    # What is null becomes NaN.
    found: np.ndarray[Any, np.dtype[np.float64]] = table.column(name).to_numpy()
    return found
