"""What the items of an evaluation say in sum: means by direction and concept group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.stats import Bootstrap, Floats, mean_over_columns, undefined, weighted_means


def summarise(table: pa.Table, bootstrap: Bootstrap, target_form: bool) -> dict[str, Any]:
    """Means with intervals: all directions (mean of their means), each one, each concept group.

    Concepts are drawn with all their directions, so the interval of the mean over directions
    allows for their being the same concepts.
    """
    frame = table.to_pydict()
    scored = [i for i, score in enumerate(frame["score"]) if score is not None]
    n_distractors = [frame["n_distractors"][i] for i in scored]
    summary: dict[str, Any] = {
        "n_items": len(scored),
        "n_identical": sum(frame["identical"]),
        "n_without_distractors": table.num_rows - len(scored) - sum(frame["identical"]),
        "confidence": bootstrap.confidence,
        "chance": float(np.mean([1 / (1 + n) for n in n_distractors])) if scored else None,
    }
    measures = {"score": "score", "accuracy": "correct"}
    if target_form:
        measures |= {"target_score": "target_score", "target_accuracy": "target_correct"}
    everything, directions = _aggregate(frame, scored, measures, bootstrap)
    summary |= everything | {"directions": directions, "groups": {}}
    for group in sorted({frame["group"][i] for i in scored} - {""}):
        members = [i for i in scored if frame["group"][i] == group]
        overall, by_direction = _aggregate(frame, members, measures, bootstrap)
        summary["groups"][group] = {"n": len(members), **overall, "directions": by_direction}
    return summary


def _aggregate(
    frame: dict[str, list[Any]],
    rows: Sequence[int],
    measures: Mapping[str, str],
    bootstrap: Bootstrap,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Each measure over `rows`: the mean over directions, and by direction."""
    names = [f"{frame['source_lang'][i]}-{frame['target_lang'][i]}" for i in rows]
    directions = list(dict.fromkeys(names))
    concepts = sorted({frame["concept"][i] for i in rows})
    place = {concept: k for k, concept in enumerate(concepts)}
    overall: dict[str, Any] = {}
    by_direction: dict[str, dict[str, Any]] = {
        name: {"n": names.count(name)} for name in directions
    }
    for measure, column in measures.items():
        values = np.full((len(concepts), len(directions)), np.nan)
        for i, name in zip(rows, names, strict=True):
            value = frame[column][i]
            if value is not None:
                values[place[frame["concept"][i]], directions.index(name)] = value

        def means(weights: Floats, values: Floats = values) -> Floats:
            columns = weighted_means(values, weights)
            return np.column_stack([mean_over_columns(columns), columns])

        found = bootstrap.intervals(means, concepts) or [undefined(0, "no item was scored")]
        overall[measure] = found[0].record("mean")
        overall[measure]["n"] = int(np.isfinite(values).sum())
        for name, interval in zip(directions, found[1:], strict=True):
            record = interval.record("mean")
            del record["n"]
            by_direction[name][measure] = record
    return overall, by_direction
