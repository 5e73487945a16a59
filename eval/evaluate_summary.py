"""What the items of an evaluation say in sum: `summary.json`, measures with intervals.

    n_items, n_identical, n_without_distractors, confidence, chance
    all            PART: all scored items
    by             {DIMENSION: {VALUE: PART}}, DIMENSION one of direction (en-fr), pos, class,
                   group, frequency (band of doc_freq, such as 10-99), shared_script (yes, no),
                   form_difficulty (low: below 1/3, middle, high: above 2/3)
    score, accuracy, mrr, target_score, target_accuracy, target_mrr
                   MEAN: those of `all` with token-mean likelihoods, as in the paper
    directions     {en-fr: {n, score, accuracy, ...: MEAN}}, the same by direction
    groups         {GROUP: {n, score, ..., directions: {...}}}, the same by group of concepts
    identical      {en-fr: {n, identical, share}}: items left out since both words are the same
    form_difficulty {mean, n}: how far letters alone lead astray

    PART           {n, FORM: {NORMALISATION: {MEASURE: MEAN}}}, FORM source or target, NORMALISATION
                   tokens, bytes or sum, MEASURE score, accuracy or mrr (mean reciprocal rank)
    MEAN           {mean, low, high, n}; null where undefined

A mean is the mean over directions of the directions' means; intervals are those of
eval.resampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from eval.answer_arrays import FORMS, NORMALISATIONS, item_measures, read_answers
from eval.resampling import MEASURES, Items, means_by_part, over_directions, resampled_means
from eval.stats import Bootstrap, Floats, percentiles

ALL = ("all", "")
# Fixed edges: where two scripts share no letters, all candidates tie at 0.5, and most of a task's
# items may do so. They belong in the middle, and no quantile would tell the others apart.
DIFFICULTIES = ("low", "middle", "high")
DIFFICULTY_EDGES = (1 / 3, 2 / 3)
UNDEFINED = {"mean": None, "low": None, "high": None, "n": 0}

# (dimension, value) of a part, in the order of the columns of Items.parts.
Parts = list[tuple[str, str]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Means:
    """MEAN records of one form and normalisation: by part, and by part and direction."""

    overall: Mapping[tuple[str, str], Mapping[str, Record]]
    by_direction: Mapping[tuple[str, str], Mapping[str, Mapping[str, Record]]]


def summarise(
    table: pa.Table, candidates: pa.Table, bootstrap: Bootstrap, frequency_bands: Sequence[int]
) -> Record:
    """The summary of an evaluation's two tables; the module's text is its schema."""
    frame = table.drop_columns(["source", "target"]).to_pandas()
    scored = frame["score"].notna().to_numpy()
    n_identical = int(frame["identical"].sum())
    summary: Record = {
        "n_items": int(scored.sum()),
        "n_identical": n_identical,
        "n_without_distractors": len(frame) - int(scored.sum()) - n_identical,
        "confidence": bootstrap.confidence,
        "chance": _mean(1 / (1 + frame.loc[scored, "n_distractors"])),
        "identical": _identical(frame),
        **dict.fromkeys(MEASURES, UNDEFINED),
    }
    table, frame = table.filter(pa.array(scored)), frame[scored].reset_index(drop=True)
    summary["form_difficulty"] = {"mean": _mean(frame["form_difficulty"]), "n": len(frame)}
    parts, items = _items(frame, _labels(frame, frequency_bands))
    n = dict(zip(parts, items.parts.sum(axis=0).astype(int).tolist(), strict=True))
    direction_n = {
        part: _direction_counts(items, items.parts[:, k]) for k, part in enumerate(parts)
    }
    records: dict[tuple[str, str], Record] = {part: {"n": n[part]} for part in parts}
    summary |= {"directions": {}, "groups": {}}
    for part, by_direction in direction_n.items():
        if part == ALL or part[0] == "group":
            place = {name: {"n": count} for name, count in by_direction.items() if count}
            if part == ALL:
                summary["directions"] = place
            else:
                summary["groups"][part[1]] = {"n": n[part], "directions": place}
    by: dict[str, dict[str, Record]] = {"direction": {}}
    for dimension, value in parts[1:]:
        by.setdefault(dimension, {})[value] = records[(dimension, value)]
    for name, count in direction_n[ALL].items():
        by["direction"][name] = {"n": count}
    for form, normalisation, found in _all_means(table, candidates, parts, items, bootstrap):
        for part, measures in found.overall.items():
            records[part].setdefault(form, {})[normalisation] = dict(measures)
        for name, measures in found.by_direction[ALL].items():
            by["direction"][name].setdefault(form, {})[normalisation] = dict(measures)
        if normalisation == "tokens":
            _add_paper_means(summary, found, FORMS[form])
    return summary | {"all": records[ALL], "by": by}


def _add_paper_means(summary: Record, found: Means, prefix: str) -> None:
    """Put the token-mean measures under the short keys."""
    for part, measures in found.overall.items():
        if part == ALL or part[0] == "group":
            place = summary if part == ALL else summary["groups"][part[1]]
            place |= {prefix + measure: record for measure, record in measures.items()}
            for name, by_measure in found.by_direction[part].items():
                if name in place["directions"]:
                    place["directions"][name] |= {
                        prefix + measure: record for measure, record in by_measure.items()
                    }


def _identical(frame: pd.DataFrame) -> dict[str, Record]:
    groups = frame.groupby(["source_lang", "target_lang"], sort=False)["identical"]
    return {
        f"{source}-{target}": {
            "n": len(part),
            "identical": int(part.sum()),
            "share": float(part.mean()),
        }
        for (source, target), part in groups
    }


def _labels(frame: pd.DataFrame, bands: Sequence[int]) -> dict[str, pd.Series]:
    """Dimension -> each item's value in it, null where it has none."""
    labels = {name: frame[name].where(frame[name] != "") for name in ("pos", "class", "group")}
    labels["shared_script"] = frame["shared_script"].map({True: "yes", False: "no"})
    difficulty = frame["form_difficulty"].to_numpy(dtype=np.float64)
    place = np.add.reduce([difficulty >= DIFFICULTY_EDGES[0], difficulty > DIFFICULTY_EDGES[1]])
    labels["form_difficulty"] = pd.Series(np.array(DIFFICULTIES, dtype=object)[place])
    if bands:
        names = [
            str(low) if low == high - 1 else f"{low}-{high - 1}"
            for low, high in itertools.pairwise((0, *bands))
        ]
        known = np.array([*names, f"{bands[-1]}+"], dtype=object)
        freq = frame["doc_freq"]
        place = np.searchsorted(bands, freq.fillna(0), side="right")
        labels["frequency"] = pd.Series(known[place]).where(freq.notna())
    return labels


def _items(frame: pd.DataFrame, labels: Mapping[str, pd.Series]) -> tuple[Parts, Items]:
    parts: Parts = [ALL]
    columns = [np.ones(len(frame))]
    for dimension, values in labels.items():
        for value in sorted(values.dropna().unique()):
            parts.append((dimension, str(value)))
            columns.append((values == value).to_numpy(dtype=np.float64))
    directions = frame["source_lang"] + "-" + frame["target_lang"]
    names = list(dict.fromkeys(directions))
    place = {name: k for k, name in enumerate(names)}
    concept_names, concepts = np.unique(frame["concept"].astype(str), return_inverse=True)
    items = Items(
        concept_names=concept_names.tolist(),
        concepts=concepts.reshape(-1),
        direction_names=names,
        directions=directions.map(place).to_numpy(dtype=np.int64),
        parts=np.column_stack(columns),
    )
    return parts, items


def _direction_counts(items: Items, part: Floats) -> dict[str, int]:
    counts = np.bincount(
        items.directions, weights=part, minlength=len(items.direction_names)
    ).astype(int)
    return dict(zip(items.direction_names, counts.tolist(), strict=True))


def _all_means(
    table: pa.Table, candidates: pa.Table, parts: Parts, items: Items, bootstrap: Bootstrap
) -> Iterator[tuple[str, str, Means]]:
    """(form, normalisation, means) of all that the tables hold."""
    for form in FORMS:
        answers = read_answers(table, candidates, form)
        if answers is None:
            continue
        for normalisation in NORMALISATIONS:
            value, counts = means_by_part(items, item_measures(table, form, normalisation))
            samples = resampled_means(
                items, answers.log_likelihoods[normalisation], answers.n_wrong, bootstrap
            )
            yield form, normalisation, _means(value, counts, samples, parts, items, bootstrap)


def _means(
    value: Floats,
    counts: Any,
    samples: Floats,
    parts: Parts,
    items: Items,
    bootstrap: Bootstrap,
) -> Means:
    """Records of values [3, directions, parts] with the samples [3, samples, ...] around them."""
    detailed = [k for k, part in enumerate(parts) if part == ALL or part[0] == "group"]
    overall: dict[tuple[str, str], dict[str, Record]] = {part: {} for part in parts}
    by_direction: dict[tuple[str, str], dict[str, dict[str, Record]]] = {
        parts[k]: {name: {} for name in items.direction_names} for k in detailed
    }
    for m, measure in enumerate(MEASURES):
        means = over_directions(value[m][None])[0]
        found = _records(means, over_directions(samples[m]), counts.sum(axis=0), bootstrap)
        for part, record in zip(parts, found, strict=True):
            overall[part][measure] = record
        for k in detailed:
            found = _records(value[m, :, k], samples[m, :, :, k], counts[:, k], bootstrap)
            for name, record in zip(items.direction_names, found, strict=True):
                by_direction[parts[k]][name][measure] = record
    return Means(overall, by_direction)


def _records(value: Floats, samples: Floats, n: Any, bootstrap: Bootstrap) -> list[Record]:
    """MEAN records of values [k] with their samples [n_samples, k]."""
    bounds = percentiles(samples, bootstrap.confidence)
    return [
        {"mean": _finite(v), "low": _finite(lo), "high": _finite(hi), "n": int(size)}
        if np.isfinite(v)
        else UNDEFINED
        for v, lo, hi, size in zip(value, *bounds, n, strict=True)
    ]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None
