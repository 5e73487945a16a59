"""The `attribute` stage: behaviours and scores against corpus counts (METHOD section 2).

Writes `items.parquet` (trace, evaluation and counts joined), `roc.parquet` and `summary.json`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.attribution import (
    PREDICTORS,
    Observations,
    auc_table,
    correlation_table,
    fit_table,
    roc_points,
)
from eval.behaviour import BEHAVIOURS
from eval.prediction import calibration_table, held_out_table, partial_table
from eval.settings import AttributeSettings
from eval.stats import Bootstrap, Floats
from eval.thresholds import classes_at, top_tokens
from mining.common.errors import InputError, MismatchError
from mining.common.files import read_json, write_json
from mining.common.logs import log, progress
from mining.common.manifest import read_manifest
from mining.common.shards import read_columns, write_table
from mining.common.stage import StageInput, begin, settings_dict

Key = tuple[str, str, str]
KEYS = ("concept", "source_lang", "target_lang")
ITEM_SCHEMA = pa.schema(
    [
        *((key, pa.string()) for key in KEYS),
        ("source", pa.string()),
        ("target", pa.string()),
        ("behaviour", pa.string()),
        ("score", pa.float64()),
        ("correct", pa.bool_()),
        ("log_pair", pa.float64()),
        ("log_source", pa.float64()),
        ("log_target", pa.float64()),
        ("pivot_contribution", pa.float64()),
    ]
)
ROC_SCHEMA = pa.schema([("direction", pa.string()), ("fpr", pa.float64()), ("tpr", pa.float64())])


def run_attribute(
    settings: AttributeSettings, out: Path, trace: Path, evaluate: Path, words: Path, seed: int
) -> None:
    """Join the folders of trace, evaluate and words, and write the statistics into `out`.

    Raises MismatchError where trace and evaluate are of different models or tasks.
    """
    inputs = {
        "trace": StageInput(trace, "trace"),
        "evaluate": StageInput(evaluate, "evaluate"),
        "words": StageInput(words, "words"),
    }
    run = begin("attribute", out, {**settings_dict(settings), "seed": seed}, inputs)
    if run is None:
        return
    _check_same_origin(trace, evaluate)
    rows = join_items(settings, trace, evaluate, words)
    if not rows:
        raise InputError(f"{trace}: none of its items has counts in {words}")
    write_table(run.out / "items.parquet", pa.Table.from_pylist(rows, schema=ITEM_SCHEMA))
    data = observations(rows)
    roc = pa.Table.from_pylist(roc_points(data, "pair"), schema=ROC_SCHEMA)
    write_table(run.out / "roc.parquet", roc)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    evaluated = read_json(evaluate / "summary.json")
    summary = {key: evaluated[key] for key in ("model", "arm", "seed")}
    summary |= {"rule": settings.rule, **summarise(data, settings.bands, bootstrap)}
    summary["thresholds"] = auc_by_threshold(trace, rows, bootstrap)
    write_json(run.out / "summary.json", summary)
    auc = summary["auc"]["pair"]["mean"]
    told = auc["reason"] if auc["value"] is None else format(auc["value"], ".3f")
    log.info("attribute: AUC of pair frequency for direct behaviour: %s", told)
    traced = pq.read_metadata(trace / "items.parquet").num_rows
    run.finish({"items": len(rows), "without_counts": traced - len(rows)})


def summarise(data: Observations, bands: Sequence[int], bootstrap: Bootstrap) -> dict[str, Any]:
    """All statistics: AUC and correlations of each frequency, fits, partial correlations, bands.

    `held_out` predicts the score of each direction from the corpus alone.
    """
    direct = data.log_freq["pair"]
    pivots = data.pivot_contribution
    both = {"direct": direct, "pivot_contribution": pivots}
    parts: dict[str, Callable[[], Any]] = {
        "auc": lambda: {name: auc_table(data, name, bootstrap) for name in PREDICTORS},
        "correlation": lambda: {
            name: correlation_table(data, name, bootstrap) for name in PREDICTORS
        },
        "line": lambda: fit_table(data, {"direct": direct}, bootstrap),
        "fit": lambda: fit_table(data, both, bootstrap),
        "partial": lambda: partial_table(data, bootstrap),
        "calibration": lambda: calibration_table(data, bands, bootstrap),
        "held_out": lambda: held_out_table(data, {**data.log_freq, "pivots": pivots}, bootstrap),
    }
    found: dict[str, Any] = {
        "n_items": len(data),
        "n_scored": len(data.scored()),
        "behaviours": {name: list(data.behaviour).count(name) for name in BEHAVIOURS},
        "confidence": bootstrap.confidence,
    }
    with progress("attribute", len(parts), "statistics") as ticker:
        for name, part in parts.items():
            found[name] = part()
            ticker.advance()
    return found


def auc_by_threshold(
    trace: Path, rows: Sequence[Mapping[str, Any]], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """The mean AUC of pair frequency under either rule, at each of the trace's thresholds.

    Under the rule winner, a threshold leaves out the items whose winning token is less probable.
    """
    items = read_columns(trace / "items.parquet")
    layers = read_columns(trace / "layers.parquet", columns=["layer", "top_word", "top_probs"])
    top = top_tokens(items, layers)
    keys = list(zip(*(items.column(name).to_pylist() for name in KEYS), strict=True))
    thresholds = read_manifest(trace, "trace").settings["thresholds"]
    found = []
    cuts = [("winner", 0.0), *itertools.product(("winner", "any"), thresholds)]
    with progress("attribute: thresholds", len(cuts), "thresholds") as ticker:
        for rule, cut in cuts:
            kinds = dict(zip(keys, classes_at(top, rule, cut).tolist(), strict=True))
            known = [{**row, "behaviour": kinds[_key(row)]} for row in rows if kinds[_key(row)]]
            record: dict[str, Any] = {"rule": rule, "threshold": cut, "n": len(known)}
            if known:
                record["auc"] = auc_table(observations(known), "pair", bootstrap)["mean"]
            found.append(record)
            ticker.advance()
    return found


def join_items(
    settings: AttributeSettings, trace: Path, evaluate: Path, words: Path
) -> list[dict[str, Any]]:
    """Rows of ITEM_SCHEMA: traced items whose pair has counts; score is null where unscored."""
    column = "behaviour" if settings.rule == "trace" else f"behaviour_{settings.rule}"
    columns = [*KEYS, "source", "target", column]
    traced = read_columns(trace / "items.parquet", columns=columns).to_pylist()
    scores = _by_key(evaluate / "items.parquet", ["score", "correct"])
    counts = ["source_doc_freq", "target_doc_freq", "pair_doc_freq"]
    frequency = _by_key(words / "pairs.parquet", counts)
    contribution = pivot_contributions(words, settings.pivots)
    rows = []
    for item in traced:
        key = (item["concept"], item["source_lang"], item["target_lang"])
        if key not in frequency:
            continue
        found = frequency[key]
        rows.append(
            {
                **{name: item[name] for name in (*KEYS, "source", "target")},
                "behaviour": item[column],
                "score": scores.get(key, {}).get("score"),
                "correct": scores.get(key, {}).get("correct"),
                "log_pair": float(np.log1p(found["pair_doc_freq"])),
                "log_source": float(np.log1p(found["source_doc_freq"])),
                "log_target": float(np.log1p(found["target_doc_freq"])),
                "pivot_contribution": contribution.get(key, 0.0),
            }
        )
    return rows


def pivot_contributions(words: Path, limit: int | None) -> dict[Key, float]:
    """Sum of log(1 + path) over each pair's pivots, the `limit` strongest (METHOD section 2)."""
    columns = [*KEYS, "rank", "path"]
    data = read_columns(words / "pair_pivots.parquet", columns=columns).sort_by("rank").to_pydict()
    taken: dict[Key, int] = {}
    result: dict[Key, float] = {}
    keys = zip(*(data[name] for name in KEYS), strict=True)
    for key, path in zip(keys, data["path"], strict=True):
        taken[key] = taken.get(key, 0) + 1
        if limit is None or taken[key] <= limit:
            result[key] = result.get(key, 0.0) + float(np.log1p(path))
    return result


def observations(
    rows: Sequence[Mapping[str, Any]], models: Sequence[int] | None = None
) -> Observations:
    """The joined rows as columns; `models` are the seeds of training where there are several."""
    return Observations(
        concept=[row["concept"] for row in rows],
        direction=[f"{row['source_lang']}-{row['target_lang']}" for row in rows],
        behaviour=[row["behaviour"] for row in rows],
        score=_floats([row["score"] for row in rows]),
        log_freq={name: _floats([row[f"log_{name}"] for row in rows]) for name in PREDICTORS},
        pivot_contribution=_floats([row["pivot_contribution"] for row in rows]),
        model=models,
    )


def _check_same_origin(trace: Path, evaluate: Path) -> None:
    first, second = read_manifest(trace, "trace"), read_manifest(evaluate, "evaluate")
    for name in ("model", "task"):
        if first.inputs[name] != second.inputs[name]:
            raise MismatchError(
                f"{trace} and {evaluate} were made with different inputs ({name}): "
                f"{first.inputs[name]} and {second.inputs[name]}. Run both on the same {name}"
            )


def _key(row: Mapping[str, Any]) -> Key:
    return row["concept"], row["source_lang"], row["target_lang"]


def _by_key(path: Path, columns: list[str]) -> dict[Key, dict[str, Any]]:
    rows = read_columns(path, columns=[*KEYS, *columns]).to_pylist()
    return {(row["concept"], row["source_lang"], row["target_lang"]): row for row in rows}


def _floats(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
