"""What each stage shows in Weights & Biases: scalars, tables, curves and figures of its folder.

Tables hold what a person looks at, some dozens of rows; documents are quoted in a few words only.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from eval.resampling import MEASURES
from launch.pipeline import Plan
from mining.common.files import read_json
from mining.common.manifest import Manifest
from mining.common.shards import read_columns

TOP_PIVOTS = 50
PIVOTS_WITH_CONTEXTS = 10
# Pivots stand in many documents, so the first shards show them.
CONTEXT_SHARDS = 4
EXAMPLES = 25
QUARANTINE_EXAMPLES = 100
MAX_FIGURES = 40
MAX_SCALARS = 1000
# Parts of summary.json with a number for every class of words, or a table of its own.
DETAILS = ("all", "by", "groups", "curves", "peaks", "comparisons", "models", "sensitivity")


@dataclass(frozen=True)
class Rows:
    """A table: each row has a value for each column."""

    columns: list[str]
    rows: list[list[Any]]


def scalars(stage: str, folder: Path, manifest: Manifest) -> dict[str, float]:
    """The manifest's counts, and the measures of summary.json, by their path.

    An evaluation's measures are `score/all`, `score/en-fr` and so on, each with `_low` and `_high`.
    """
    found = {f"counts/{name}": value for name, value in numbers(manifest.counts).items()}
    path = folder / "summary.json"
    if path.is_file():
        summary = read_json(path)
        if stage == "evaluate":
            found |= _measures(summary)
        else:
            shown = numbers(summary, skip=DETAILS)
            found |= {f"{stage}/{name}": value for name, value in shown.items()}
    return dict(itertools.islice(found.items(), MAX_SCALARS))


def numbers(value: Any, prefix: str = "", skip: Sequence[str] = ()) -> dict[str, float]:
    """The finite numbers of nested dictionaries by their path, such as `auc/pair/mean/value`."""
    if isinstance(value, Mapping):
        found: dict[str, float] = {}
        for key, part in value.items():
            if key not in skip:
                found |= numbers(part, f"{prefix}/{key}" if prefix else str(key))
        return found
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return {}
    return {prefix: value}


def _measures(summary: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {"score/n_items": summary["n_items"]}
    parts = {"all": summary, **summary["directions"]}
    for (name, part), measure in itertools.product(parts.items(), MEASURES):
        record = part.get(measure) or {}
        for key, ending in (("mean", ""), ("low", "_low"), ("high", "_high")):
            if record.get(key) is not None:
                # One section a measure in W&B: score/, accuracy/, mrr/.
                found[f"{measure}/{name}{ending}"] = record[key]
    return found


def curves(stage: str, folder: Path) -> Iterator[dict[str, float]]:
    """A trace's curves, one record a layer: `layers/CLASS/p_pivot` and so on against `layer`."""
    if stage != "trace":
        return
    found = read_json(folder / "summary.json")["curves"]
    for place, layer in enumerate(found["all"]["layers"]):
        record: dict[str, float] = {"layer": layer}
        for name, part in found.items():
            for curve, values in part.items():
                value = values["mean"][place] if isinstance(values, Mapping) else None
                if value is not None:
                    record[f"layers/{name}/{curve}"] = value
        yield record


def figures(folder: Path) -> list[Path]:
    """The PNG files of a stage's figures."""
    return sorted((folder / "figures").glob("*.png"))[:MAX_FIGURES]


def tables(stage: str, folder: Path, manifest: Manifest, plan: Plan) -> dict[str, Rows]:
    """The stage's tables by name."""
    if stage == "tokenize":
        return _quarantine(folder, manifest)
    if stage == "pivots":
        return {"pivots": _pivots(folder, manifest, plan)}
    if stage == "mix":
        return {"arms": _arms(folder)}
    if stage == "evaluate":
        return _examples(folder)
    if stage == "compare":
        table = read_columns(folder / "comparisons.parquet")
        return {"comparisons": _rows(table.to_pylist(), table.column_names)}
    return {}


def _rows(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Rows:
    return Rows(list(columns), [[record.get(name) for name in columns] for record in records])


def _quarantine(folder: Path, manifest: Manifest) -> dict[str, Rows]:
    """Why records were set aside, and the first ones: where they stand, never what they hold."""
    reasons = [
        [what, reason, n]
        for what in ("quarantined", "dropped")
        for reason, n in sorted(manifest.counts[what].items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    lines = (
        json.loads(line)
        for path in sorted((folder / "quarantine").glob("*.jsonl"))
        for line in path.open(encoding="utf-8")
    )
    first = list(itertools.islice(lines, QUARANTINE_EXAMPLES))
    return {
        "quarantine_reasons": Rows(["what", "reason", "records"], reasons),
        "quarantine": _rows(first, ("file", "line", "reason", "detail", "bytes", "sha256")),
    }


def _pivots(folder: Path, manifest: Manifest, plan: Plan) -> Rows:
    """The strongest pivots with their neighbours; the first of them also in some documents."""
    table = read_columns(folder / "pivots.parquet")
    chosen = table.filter(table["is_pivot"]).sort_by(
        [("statistic", "descending"), ("id", "ascending")]
    )
    languages = manifest.counts["languages"]
    rows = chosen.slice(0, TOP_PIVOTS).to_pylist()
    for row in rows:
        row["text"] = row["text"].strip()
        for lang in languages:
            row[f"neighbours_{lang}"] = ", ".join(row[f"neighbours_{lang}"] or ())
    for row, quoted in zip(rows, _contexts(rows[:PIVOTS_WITH_CONTEXTS], plan), strict=False):
        row["contexts"] = quoted
    names = ("text", "doc_freq", "degree", "statistic")
    near = (f"neighbours_{lang}" for lang in languages)
    return _rows(rows, (*names, *near, "contexts"))


def _contexts(rows: Sequence[Mapping[str, Any]], plan: Plan) -> Iterator[str]:
    from mining.inspect import Folders, Inspector

    stages = ("tokenizer", "tokenize", "count", "pivots", "words", "score")
    inspector = Inspector(Folders(**{stage: plan.folder(stage) for stage in stages}))
    for row in rows:
        found = inspector.documents.contexts(
            row["item"], row["id"], inspector.languages, 1, CONTEXT_SHARDS
        )
        yield "\n".join(
            f"{one['lang']}: {one['before']}\u00ab{one['text']}\u00bb{one['after']}"
            for one in found
        )


def _arms(folder: Path) -> Rows:
    arms = read_json(folder / "arms.json")["arms"]
    records = [
        {"arm": arm, "lang": lang, **numbers(values)}
        for arm, entry in arms.items()
        for lang, values in entry["languages"].items()
    ]
    columns = dict.fromkeys(name for record in records for name in record)
    return _rows(records, tuple(columns))


def _examples(folder: Path) -> dict[str, Rows]:
    """The highest scores among right answers and the lowest among wrong ones, one a concept."""
    columns = (
        "concept", "source_lang", "target_lang", "source", "target", "score", "p_gold", "rank",
        "n_distractors",
    )  # fmt: skip
    table = read_columns(folder / "items.parquet", columns=[*columns, "correct"])
    table = table.filter(pc.is_valid(table["score"]))
    found = {}
    for name, correct, order in (("right", True, "descending"), ("wrong", False, "ascending")):
        keys = [("score", order), *((key, "ascending") for key in columns[:3])]
        part = table.filter(pc.equal(table["correct"], correct)).sort_by(keys)
        once = {row["concept"]: row for row in reversed(part.to_pylist())}
        rows = sorted(once.values(), key=lambda row: -row["score"] if correct else row["score"])
        found[f"translations_{name}"] = _rows(rows[:EXAMPLES], columns)
    return found
