"""The `compare` stage: all evaluated models of a run side by side.

Writes `comparisons.parquet` (COMPARISON_SCHEMA: paired differences with intervals and p-values),
`directions.parquet` (Score of each model and direction), `series.parquet` (measures against the
training step, for checkpoints of one series), `summary.json`, and as PNG and SVG
`figures/heatmap-MODEL` and, where there are series, `figures/series`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from eval.answer_arrays import FORMS, ITEM_KEY, item_measures
from eval.figures_compare import heatmap_figures, series_figure
from eval.paired import contributions, difference, holm, sign_flip_p_values
from eval.report_figures import FigureWriter
from eval.resampling import MEASURES
from eval.settings import CompareSettings
from eval.stats import Bootstrap, Floats, mean_over_columns, weighted_means
from mining.common.files import dump_json, read_json, write_json
from mining.common.logs import log, progress
from mining.common.manifest import read_manifest, require_same
from mining.common.shards import read_columns, write_table
from mining.common.stage import Input, StageInput, begin, settings_dict

RunKey = tuple[str, int]
Grid = Mapping[str, Floats]

COMPARISON_SCHEMA = pa.schema(
    [
        # model: mean over its seeds by item; run: one seed; series: a checkpoint and the one before
        ("level", pa.string()),
        ("model", pa.string()),
        ("reference", pa.string()),
        ("measure", pa.string()),
        ("mean", pa.float64()),
        ("reference_mean", pa.float64()),
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("p", pa.float64()),
        ("p_holm", pa.float64()),  # over the pairs of this level and measure
        ("p_exact", pa.bool_()),
        ("n_items", pa.int64()),
        ("n_concepts", pa.int64()),
    ]
)
MEAN_FIELDS = [
    ("mean", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("n", pa.int64()),
]
DIRECTION_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        *MEAN_FIELDS,
    ]
)
SERIES_SCHEMA = pa.schema(
    [
        ("series", pa.string()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("model", pa.string()),
        ("measure", pa.string()),
        *MEAN_FIELDS,
    ]
)
MAX_ALL_PAIRS = 10


@dataclass(frozen=True)
class Member:
    """A checkpoint's place in a series: after `step` steps of training."""

    series: str
    step: int


def run_compare(
    settings: CompareSettings,
    out: Path,
    evaluations: Mapping[RunKey, Path],
    members: Mapping[RunKey, Member],
    seed: int,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Compare the finished evaluations, (model, seed) -> folder, in this order, into `out`.

    `members` says which of them are checkpoints of a series, `pairs` which models (model,
    reference) to compare: all, or all with the baseline, where it is None. Raises MismatchError
    where they are of different tasks.
    """
    names = {key: f"{key[0]}/{key[1]}" for key in evaluations}
    inputs: dict[str, Input] = {
        names[key]: StageInput(folder, "evaluate") for key, folder in evaluations.items()
    }
    series = {names[key]: [member.series, member.step] for key, member in members.items()}
    record = {**settings_dict(settings), "seed": seed, "series": series}
    if pairs is not None:
        record["pairs"] = [list(pair) for pair in pairs]
    run = begin("compare", out, record, inputs)
    if run is None:
        return
    require_same("task", {str(folder): _task_digest(folder) for folder in evaluations.values()})
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    summaries = {key: read_json(folder / "summary.json") for key, folder in evaluations.items()}
    rows = compare_models(_read_grids(evaluations), members, settings, bootstrap, pairs)
    directions = [
        {"model": model, "seed": number, "source_lang": source, "target_lang": target, **record}
        for (model, number), summary in summaries.items()
        for (source, target), record in _directions(summary)
    ]
    steps = [
        {"series": member.series, "seed": key[1], "step": member.step, "model": key[0],
         "measure": measure, **summaries[key][measure]}
        for key, member in sorted(members.items(), key=lambda m: (m[1].series, m[0][1], m[1].step))
        for measure in MEASURES
    ]  # fmt: skip
    tables = {
        "comparisons": pa.Table.from_pylist(rows, schema=COMPARISON_SCHEMA),
        "directions": pa.Table.from_pylist(directions, schema=DIRECTION_SCHEMA),
        "series": pa.Table.from_pylist(steps, schema=SERIES_SCHEMA),
    }
    for name, table in tables.items():
        write_table(out / f"{name}.parquet", table)
    figures = FigureWriter(out / "figures")
    with progress("compare: heatmaps", len(summaries), "models") as ticker:
        for chart in heatmap_figures(tables["directions"].to_pandas()):
            figures.figure(chart, "")
            ticker.advance()
    if (line := series_figure(tables["series"].to_pandas())) is not None:
        figures.figure(line, "")
        log.info("compare: Score against step is drawn in %s", out / "figures" / "series.png")
    write_json(out / "summary.json", _summary(rows, summaries, members, settings))
    log.info("compare: %d models, %d comparisons", len(summaries), len(rows))
    run.finish({"models": len(summaries), "comparisons": len(rows), "figures": len(figures.names)})


def compare_models(
    grids: Mapping[RunKey, Grid],
    members: Mapping[RunKey, Member],
    settings: CompareSettings,
    bootstrap: Bootstrap,
    chosen: Sequence[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Rows of COMPARISON_SCHEMA from measure -> float64 [concepts, directions] of every run.

    Pairs of models with the seeds of each averaged by item; of single runs too, where a model has
    several seeds; and the checkpoints of each series one after the other. A series stands among
    the models by its last checkpoint, unless a model bears its name. `chosen` are the pairs of
    models where these are not all.
    """
    labels = compared_labels(grids, members)
    seeds = {label: [seed for name, seed in grids if name == label] for label in labels}
    baseline = settings.baseline if settings.baseline in labels else labels[0]
    models = {label: _mean_grid([grids[(label, s)] for s in seeds[label]]) for label in labels}
    pairs = _pairs(labels, baseline) if chosen is None else list(chosen)
    rows = _level("model", models, pairs, settings.permutations, bootstrap)
    runs = {f"{label}/{seed}": grid for (label, seed), grid in grids.items()}
    keys = [key for key in grids if key[0] in labels]
    if len(keys) > len(labels):
        if chosen is not None:
            pairs = [
                (f"{model}/{seed}", f"{reference}/{seed}")
                for model, reference in chosen
                for seed in seeds[model]
                if seed in seeds[reference]
            ]
        elif len(keys) <= MAX_ALL_PAIRS:
            names = [f"{label}/{seed}" for label, seed in keys]
            pairs = _pairs(names, f"{baseline}/{seeds[baseline][0]}")
        else:  # each against the baseline of the same seed
            pairs = [
                (f"{label}/{seed}", f"{baseline}/{seed}")
                for label, seed in keys
                if label != baseline and seed in seeds[baseline]
            ]
        rows += _level("run", runs, pairs, settings.permutations, bootstrap)
    ordered = sorted(members, key=lambda key: (members[key].series, key[1], members[key].step))
    pairs = [
        (f"{later[0]}/{later[1]}", f"{earlier[0]}/{earlier[1]}")
        for earlier, later in itertools.pairwise(ordered)
        if (members[earlier].series, earlier[1]) == (members[later].series, later[1])
    ]
    return rows + _level("series", runs, pairs, settings.permutations, bootstrap)


def compared_labels(keys: Iterable[RunKey], members: Mapping[RunKey, Member]) -> list[str]:
    """The models that are set side by side, in their order."""
    labels = list(dict.fromkeys(label for label, _ in keys))
    place = {label: member for (label, _), member in members.items()}
    last: dict[str, str] = {}
    for label in sorted(place, key=lambda label: place[label].step):
        last[place[label].series] = label
    return [
        label
        for label in labels
        if label not in place
        or (last[place[label].series] == label and place[label].series not in labels)
    ]


def _pairs(names: Sequence[str], baseline: str) -> list[tuple[str, str]]:
    """(model, reference): all pairs if there are few models, else each with the baseline."""
    ordered = [baseline, *(name for name in names if name != baseline)]
    if len(ordered) > MAX_ALL_PAIRS:
        return [(name, baseline) for name in ordered[1:]]
    return [(later, earlier) for earlier, later in itertools.combinations(ordered, 2)]


def _level(
    level: str,
    grids: Mapping[str, Grid],
    pairs: Sequence[tuple[str, str]],
    permutations: int,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    measures = next(iter(grids.values())) if pairs else {}
    with progress(f"compare: {level}", len(measures) * len(pairs), "comparisons") as ticker:
        for measure in measures:
            values = [(grids[a][measure], grids[b][measure]) for a, b in pairs]
            parts = np.column_stack([contributions(*two) for two in values])
            p, exact = sign_flip_p_values(parts, permutations, bootstrap.seed)
            found = []
            for two in values:
                found.append(difference(*two, bootstrap))
                ticker.advance()
            p[[one.n_items == 0 for one in found]] = np.nan
            for k, (adjusted, one) in enumerate(zip(holm(p), found, strict=True)):
                means = [_common_mean(*two) for two in (values[k], values[k][::-1])]
                rows.append({
                    "level": level, "model": pairs[k][0], "reference": pairs[k][1],
                    "measure": measure, "mean": means[0], "reference_mean": means[1],
                    "difference": one.interval.value, "low": one.interval.low,
                    "high": one.interval.high, "p": _finite(p[k]), "p_holm": _finite(adjusted),
                    "p_exact": bool(exact[k]), "n_items": one.n_items,
                    "n_concepts": one.n_concepts,
                })  # fmt: skip
    return rows


def _common_mean(values: Floats, other: Floats) -> float | None:
    """The mean of `values` over the items that both have."""
    common = np.where(np.isfinite(other), values, np.nan)
    means = weighted_means(common, np.ones((1, len(common))))
    return _finite(float(mean_over_columns(means)[0, 0]))


def _mean_grid(grids: Sequence[Grid]) -> Grid:
    """The mean over seeds of the items that all of them have."""
    return {name: np.mean([grid[name] for grid in grids], axis=0) for name in grids[0]}


def _read_grids(evaluations: Mapping[RunKey, Path]) -> dict[RunKey, Grid]:
    """Measure -> values of every run on the concepts and directions of all."""
    tables = {key: read_columns(path / "items.parquet") for key, path in evaluations.items()}
    frames = {key: table.select(ITEM_KEY).to_pandas() for key, table in tables.items()}
    everything = pd.concat(list(frames.values())).drop_duplicates()
    concepts = pd.Index(sorted(everything["concept"].unique()))
    langs = ["source_lang", "target_lang"]
    directions = pd.MultiIndex.from_frame(everything[langs].drop_duplicates().sort_values(langs))
    # Only what all have can be compared.
    forms = [
        form
        for form, prefix in FORMS.items()
        if all(table[f"{prefix}rank"].null_count < table.num_rows for table in tables.values())
    ] or ["source"]
    grids: dict[RunKey, Grid] = {}
    for key, table in tables.items():
        row = concepts.get_indexer(pd.Index(frames[key]["concept"]))
        column = directions.get_indexer(pd.MultiIndex.from_frame(frames[key][langs]))
        grid = {}
        for form in forms:
            for name, values in zip(MEASURES, item_measures(table, form, "tokens"), strict=True):
                grid[FORMS[form] + name] = np.full((len(concepts), len(directions)), np.nan)
                grid[FORMS[form] + name][row, column] = values
        grids[key] = grid
    return grids


def _directions(summary: Mapping[str, Any]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    found = []
    for name, record in summary["directions"].items():
        source, target = name.split("-", 1)
        found.append(((source, target), record["score"]))
    return found


def _summary(
    rows: Sequence[Mapping[str, Any]],
    summaries: Mapping[RunKey, Mapping[str, Any]],
    members: Mapping[RunKey, Member],
    settings: CompareSettings,
) -> dict[str, Any]:
    """`models`: their measures; `comparisons`: the rows of comparisons.parquet."""
    models = []
    for key, summary in summaries.items():
        record = {"model": key[0], "seed": key[1], "n_items": summary["n_items"]}
        record |= {measure: summary[measure] for measure in MEASURES}
        if key in members:
            record |= {"series": members[key].series, "step": members[key].step}
        models.append(record)
    return {"models": models, "comparisons": list(rows), "confidence": settings.confidence}


def _task_digest(folder: Path) -> str:
    task = read_manifest(folder, "evaluate").inputs["task"]
    return hashlib.sha256(dump_json(task).encode()).hexdigest()[:12]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
