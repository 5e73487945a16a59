"""Reads the finished stage folders of a run into tables for the report.

Nothing here grows with the corpus: the per-document scores are read in batches and kept as sums,
histograms and the few documents with the highest proportion.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from mining.common.errors import InputError
from mining.common.files import read_json
from mining.common.manifest import Manifest, read_manifest
from mining.common.shards import open_table, read_columns
from mining.common.stage import FilesInput, Input, StageInput
from mining.common.task import Task, read_task, task_files
from mining.mix_settings import ARMS

RunKey = tuple[str, int]
PROPORTION_STEPS = 10_000
SOURCES_SHOWN = 12
ITEM_KEY = ["concept", "source_lang", "target_lang"]
SINGLE_STAGES = ("tokenizer", "tokenize", "count", "words", "pivots", "score", "mix")
SEEDED_STAGES = ("train", "evaluate", "sentences", "trace", "intervene", "attribute")


@dataclass(frozen=True)
class ReportInputs:
    """Where the finished stages of a run lie.

    The dictionaries map (arm, seed) to a stage's folder; one that is empty makes the report say
    that the part was not run, as does a `compare` that is None. `task` is the task's YAML file,
    `world` the generated corpus where there is one, and `models` says what the models that the run
    did not train are, name -> hub id, or FOLDER.
    """

    tokenizer: Path
    tokenize: Path
    count: Path
    words: Path
    pivots: Path
    score: Path
    mix: Path
    task: Path
    train: Mapping[RunKey, Path] = field(default_factory=dict)
    evaluate: Mapping[RunKey, Path] = field(default_factory=dict)
    sentences: Mapping[RunKey, Path] = field(default_factory=dict)
    trace: Mapping[RunKey, Path] = field(default_factory=dict)
    intervene: Mapping[RunKey, Path] = field(default_factory=dict)
    attribute: Mapping[RunKey, Path] = field(default_factory=dict)
    compare: Path | None = None
    world: Path | None = None
    models: Mapping[str, str] = field(default_factory=dict)

    def folders(self) -> dict[str, tuple[str, Path]]:
        """Every stage folder by name, such as `count` or `train/pivot/0`, with its stage."""
        found: dict[str, tuple[str, Path]] = {}
        if self.world is not None:
            found["world"] = ("world", self.world)
        found |= {stage: (stage, getattr(self, stage)) for stage in SINGLE_STAGES}
        for stage in SEEDED_STAGES:
            for (arm, seed), path in sorted(getattr(self, stage).items()):
                found[f"{stage}/{arm}/{seed}"] = (stage, path)
        if self.compare is not None:
            found["compare"] = ("compare", self.compare)
        return found

    def stage_inputs(self) -> dict[str, Input]:
        """The inputs as `begin` wants them."""
        inputs: dict[str, Input] = {
            name: StageInput(path, stage) for name, (stage, path) in self.folders().items()
        }
        return {**inputs, "task": FilesInput(task_files(self.task))}


@dataclass(frozen=True)
class Proportions:
    """The documents' pivot proportions.

    `by_source`: lang, source, documents, tokens, pivots. `histogram`: per language documents int64
    [PROPORTION_STEPS + 1]; entry 0 counts those without any pivot, entry k those with a proportion
    above (k - 1) / PROPORTION_STEPS and at most k / PROPORTION_STEPS. `richest`: (proportion,
    n_tokens, id, source) per language, falling. `sources` are the SOURCES_SHOWN sources with the
    most tokens, falling, and `source_histogram` holds their documents by (language, source).
    """

    by_source: pd.DataFrame
    histogram: dict[str, np.ndarray[Any, np.dtype[np.int64]]]
    richest: dict[str, list[tuple[float, int, str, str]]]
    sources: tuple[str, ...]
    source_histogram: dict[tuple[str, str], np.ndarray[Any, np.dtype[np.int64]]]

    def quantile(self, lang: str, share: float) -> float:
        """The least proportion that at least `share` of a language's documents do not exceed."""
        return histogram_quantile(self.histogram[lang], share)

    def mean_length(self, lang: str) -> float:
        """Tokens of a language's mean document, at least 1."""
        part = self.by_source[self.by_source["lang"] == lang]
        return max(1.0, float(part["tokens"].sum() / max(1, part["documents"].sum())))


def histogram_quantile(counts: np.ndarray[Any, np.dtype[np.int64]], share: float) -> float:
    """The least proportion that at least `share` of a histogram's documents do not exceed.

    `counts` as in Proportions. Rounded up to a whole step, so 0 is exact.
    """
    return int(np.searchsorted(counts.cumsum(), share * counts.sum())) / PROPORTION_STEPS


@dataclass(frozen=True)
class Compared:
    """The tables of the compare stage (their schemas are there); empty where it was not run."""

    comparisons: pd.DataFrame
    directions: pd.DataFrame
    series: pd.DataFrame


@dataclass(frozen=True)
class RunData:
    """All that the report shows. Tables of seeded stages have the columns `arm` and `seed`.

    `sentences`, `trace_summaries`, `interventions` and `attributions` hold the summaries of the
    stages sentences, trace, intervene and attribute by arm and seed; `heatmaps` the trace's items
    at every position.
    """

    manifests: dict[str, Manifest]
    task: Task
    languages: list[str]
    arms: list[str]
    items: pd.DataFrame
    word_pairs: pd.DataFrame
    words: pd.DataFrame
    proportions: Proportions
    mix: dict[str, Any]
    metrics: pd.DataFrame
    evaluation: pd.DataFrame
    sentences: dict[RunKey, dict[str, Any]]
    traces: pd.DataFrame
    layers: pd.DataFrame
    heatmaps: pd.DataFrame
    trace_summaries: dict[RunKey, dict[str, Any]]
    interventions: dict[RunKey, dict[str, Any]]
    attribution: pd.DataFrame
    attributions: dict[RunKey, dict[str, Any]]
    compared: Compared

    def seeds(self) -> list[int]:
        """The seeds of all runs."""
        keys = [name.split("/") for name in self.manifests if name.count("/") == 2]
        return sorted({int(seed) for _, _, seed in keys})


def read_run(inputs: ReportInputs, richest: int, min_document_tokens: int) -> RunData:
    """Read everything. InputError names a folder that is missing, unfinished or of another form."""
    folders = inputs.folders()
    manifests = {name: read_manifest(path, stage) for name, (stage, path) in folders.items()}
    proportions = read_proportions(inputs.score, richest, min_document_tokens)
    mix = read_json(inputs.mix / "arms.json")
    arms = _in_order([*mix["arms"], *(key[0] for key in inputs.evaluate)], ARMS)
    found = [str(lang) for lang in proportions.by_source["lang"].unique()]
    task = read_task(inputs.task)
    return RunData(
        manifests=manifests,
        task=task,
        languages=_in_order(found, tuple(task.languages)),
        arms=arms,
        items=_parquet(inputs.pivots / "pivots.parquet"),
        word_pairs=_parquet(inputs.words / "pairs.parquet"),
        words=_parquet(inputs.words / "words.parquet"),
        proportions=proportions,
        mix=mix,
        metrics=read_metrics(inputs.train),
        evaluation=_stack(inputs.evaluate, "items.parquet"),
        sentences=_summaries(inputs.sentences),
        traces=_stack(inputs.trace, "items.parquet"),
        layers=read_layers(inputs.trace),
        heatmaps=_stack(inputs.trace, "heatmaps.parquet"),
        trace_summaries=_summaries(inputs.trace),
        interventions=_summaries(inputs.intervene),
        attribution=_stack(inputs.attribute, "items.parquet"),
        attributions=_summaries(inputs.attribute),
        compared=read_compared(inputs.compare),
    )


def _summaries(folders: Mapping[RunKey, Path]) -> dict[RunKey, dict[str, Any]]:
    return {key: read_json(folder / "summary.json") for key, folder in sorted(folders.items())}


def read_compared(folder: Path | None) -> Compared:
    """The tables of a compare stage; empty ones for None."""
    names = [f.name for f in fields(Compared)]
    if folder is None:
        return Compared(*(pd.DataFrame() for _ in names))
    return Compared(*(_parquet(folder / f"{name}.parquet") for name in names))


def read_proportions(folder: Path, richest: int, min_tokens: int) -> Proportions:
    """Sum up the scores of all documents; memory does not grow with their number."""
    sums: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
    histogram: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
    heaps: dict[str, list[tuple[float, int, str, str]]] = {}
    columns = ["id", "lang", "source", "n_tokens", "n_pivots", "proportion"]
    for frame in _score_batches(folder, columns):
        frame["bin"] = _steps(frame)
        for (lang, source), part in frame.groupby(["lang", "source"], sort=False):
            totals = [len(part), part["n_tokens"].sum(), part["n_pivots"].sum()]
            key = (str(lang), str(source))
            sums[key] = sums.get(key, np.zeros(3, np.int64)) + np.array(totals, np.int64)
        for lang, part in frame.groupby("lang", sort=False):
            counts = np.bincount(part["bin"], minlength=PROPORTION_STEPS + 1)
            histogram[str(lang)] = histogram.get(str(lang), np.zeros_like(counts)) + counts
            long = part[part["n_tokens"] >= min_tokens].nlargest(richest, "proportion", "all")
            rows = zip(
                long["proportion"], long["n_tokens"], long["id"], long["source"], strict=True
            )
            # Falling by proportion, ties by length and id: the same whatever the batches were.
            heaps[str(lang)] = heapq.nlargest(richest, [*heaps.get(str(lang), []), *rows])
    rows_out = [(*key, *(int(v) for v in total)) for key, total in sorted(sums.items())]
    by_source = pd.DataFrame(rows_out, columns=["lang", "source", "documents", "tokens", "pivots"])
    tokens = {str(name): int(part["tokens"].sum()) for name, part in by_source.groupby("source")}
    ranked = sorted(tokens, key=lambda name: (-tokens[name], name))
    sources = tuple(ranked[:SOURCES_SHOWN])
    return Proportions(by_source, histogram, heaps, sources, _by_source(folder, sources))


def _steps(frame: pd.DataFrame) -> pd.Series[int]:
    """The entry of the histogram that each document belongs to."""
    # Rounded up in whole numbers: no error of floating point can move a document.
    pivots, tokens = frame["n_pivots"].astype("int64"), frame["n_tokens"].astype("int64")
    return -(-pivots * PROPORTION_STEPS // tokens.clip(lower=1))


def _by_source(
    folder: Path, sources: tuple[str, ...]
) -> dict[tuple[str, str], np.ndarray[Any, np.dtype[np.int64]]]:
    """The histograms of some sources, in a pass of its own: of all there might be very many."""
    found: dict[tuple[str, str], np.ndarray[Any, np.dtype[np.int64]]] = {}
    for frame in _score_batches(folder, ["lang", "source", "n_tokens", "n_pivots"]):
        frame["bin"] = _steps(frame)
        chosen = frame[frame["source"].isin(sources)]
        for (lang, source), part in chosen.groupby(["lang", "source"], sort=False):
            counts = np.bincount(part["bin"], minlength=PROPORTION_STEPS + 1)
            key = (str(lang), str(source))
            found[key] = found.get(key, np.zeros_like(counts)) + counts
    return found


def _score_batches(folder: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    paths = sorted((folder / "scores").glob("*.parquet"))
    if not paths:
        raise InputError(f"{folder}: holds no scores/*.parquet; run `pivots score` again")
    for path in paths:
        with open_table(path) as file:
            for batch in file.iter_batches(batch_size=1 << 16, columns=columns):
                yield batch.to_pandas()


def read_metrics(folders: Mapping[RunKey, Path]) -> pd.DataFrame:
    """The training metrics: arm, seed, kind, step, tokens, loss, lang and what else was logged."""
    rows: list[dict[str, Any]] = []
    for (arm, seed), folder in sorted(folders.items()):
        path = folder / "metrics.jsonl"
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `pivots train` again")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            try:
                rows.append({"arm": arm, "seed": seed, **json.loads(line)})
            except (json.JSONDecodeError, TypeError) as error:
                raise InputError(f"{path}:{number}: not a JSON object ({error})") from None
    columns = ["arm", "seed", "kind", "step", "tokens", "loss", "lang"]
    return pd.DataFrame(rows).reindex(columns=columns)


def read_layers(folders: Mapping[RunKey, Path]) -> pd.DataFrame:
    """Mass per item and layer, with the item's behaviour; the lists of top tokens stay on disk."""
    columns = [*ITEM_KEY, "layer", "p_source", "p_pivot", "p_target", "entropy"]
    frames = []
    for (arm, seed), folder in sorted(folders.items()):
        table = ds.dataset(folder / "layers.parquet").to_table(columns=columns)
        items = _parquet(folder / "items.parquet")[[*ITEM_KEY, "behaviour"]]
        frame = table.to_pandas().merge(items, on=ITEM_KEY, how="left")
        frames.append(frame.assign(arm=arm, seed=seed))
    if not frames:
        return pd.DataFrame(columns=[*columns, "behaviour", "arm", "seed"])
    everything: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return everything


def read_item_layers(folder: Path, key: Mapping[str, str]) -> pd.DataFrame:
    """All columns of one item's layers, in order."""
    condition = None
    for name in ITEM_KEY:
        part = ds.field(name) == key[name]
        condition = part if condition is None else condition & part
    frame = ds.dataset(folder / "layers.parquet").to_table(filter=condition).to_pandas()
    result: pd.DataFrame = frame.sort_values("layer", kind="stable")
    return result


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries by column name."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _parquet(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file; run that stage again")
    frame: pd.DataFrame = read_columns(path).to_pandas()
    return frame


def _stack(folders: Mapping[RunKey, Path], name: str) -> pd.DataFrame:
    frames = [
        _parquet(folder / name).assign(arm=arm, seed=seed)
        for (arm, seed), folder in sorted(folders.items())
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _in_order(names: list[str], known: tuple[str, ...]) -> list[str]:
    """Known names in their order, then the others by name; each once."""
    return [n for n in known if n in names] + sorted(set(names) - set(known))
