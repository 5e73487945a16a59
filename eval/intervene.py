"""The `intervene` stage: what changes in the answer when something inside the model is changed.

(a) Ablation: the directions that the pivots' logits read are removed from the residual stream in
the middle layers. Controls: random tokens' directions, as many, as frequent and as long; and the
pivots of another pair. (b) Patching: the state at the answering position is replaced, after one
layer, by that of a prompt that asks for another concept.

Reads items, classes and prompts of a trace. Writes `ablation.parquet` (one row per item and
condition), `patching.parquet` (one per item and layer) and `summary.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.ablation import ABLATION_SCHEMA, Ablator, ablation_rows, read_traits
from eval.behaviour import DIRECT, PIVOT
from eval.intervene_settings import InterveneSettings
from eval.intervene_summary import summarise
from eval.items import Item
from eval.lens import batches_by_length
from eval.lens_parts import find_parts
from eval.models import load_model, model_input, model_name
from eval.patching import PATCHING_SCHEMA, choose_donors, patching_rows
from eval.scoring import check_known, check_lengths
from eval.stats import Bootstrap
from eval.trace_items import TracedItem, prepare_items, read_pair_pivots
from mining.common.errors import InputError
from mining.common.files import write_json
from mining.common.logs import log, progress
from mining.common.manifest import read_manifest, require_same
from mining.common.seeds import hash64
from mining.common.shards import read_columns, write_table
from mining.common.stage import FilesInput, Input, StageInput, StageRun, begin, settings_dict
from mining.common.task import Task, read_task, task_files

Direction = tuple[str, str]
# A traced item with its class.
Classed = tuple[TracedItem, str]


def run_intervene(
    settings: InterveneSettings,
    out: Path,
    trace: Path,
    model: str,
    task: Path,
    words: Path | None,
    seed: int,
    label: Mapping[str, Any] | None = None,
    count: Path | None = None,
) -> None:
    """Intervene in `model` (a folder or a hub id) on the items of its `trace`, into `out`.

    Without the `words` folder there are no pivots to remove, and only states are patched; without
    `count` the controls are matched in length only. Raises MismatchError where the trace is of
    another model or task, or `words` of another tokenizer.
    """
    label = dict(label or {})
    inputs: dict[str, Input] = {
        "trace": StageInput(trace, "trace"),
        "model": model_input(model, settings.revision),
        "task": FilesInput(task_files(task)),
    }
    inputs |= {"words": StageInput(words, "words")} if words is not None else {}
    inputs |= {"count": StageInput(count, "count")} if count is not None else {}
    run = begin("intervene", out, {**settings_dict(settings), "seed": seed, "label": label}, inputs)
    if run is None:
        return
    traced = read_manifest(trace, "trace")
    for name in ("model", "task"):
        found = {f"{trace}": traced.inputs[name], f"this {name}": run.inputs[name]}
        require_same(f"the {name}", {k: json.dumps(v, sort_keys=True) for k, v in found.items()})
    name = model_name(model, settings.revision, label)
    loaded = load_model(model, settings.revision, settings.device, settings.dtype, name)
    if words is not None:
        fingerprint = read_manifest(words, "words").counts["fingerprint"]
        prints = {f"{words}": fingerprint, name: loaded.tokenizer.fingerprint}
        require_same("the tokenizer's fingerprint", prints)
    paths = (traced.settings[key] for key in ("final_norm", "blocks", "unembedding"))
    parts = find_parts(loaded, *paths)
    check_layers(settings, len(parts.blocks))
    content = read_task(task)
    chosen = choose_items(settings, trace, content)
    pivots = read_pair_pivots(words) if words is not None else {}
    examples, prompt_seed = traced.settings["examples"], traced.settings["seed"]

    def prepare(items: Sequence[Item]) -> list[TracedItem]:
        return prepare_items(
            loaded.tokenizer, content, items, pivots, settings.pivots, examples, prompt_seed
        )

    ablator = Ablator(loaded, parts, read_traits(loaded, parts, count), pivots, settings, seed)
    tables = _all_directions(run, ablator, content, chosen, prepare)
    ablation, patching = (pa.concat_tables(column) for column in zip(*tables, strict=True))
    metadata = {"fingerprint": loaded.tokenizer.fingerprint, "n_layers": str(len(parts.blocks))}
    write_table(run.out / "ablation.parquet", ablation, metadata)
    write_table(run.out / "patching.parquet", patching, metadata)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    summary = {
        "model": name,
        "arm": label.get("arm"),
        "seed": label.get("seed"),
        "n_layers": len(parts.blocks),
        "layers": settings.ablated_layers(len(parts.blocks)),
        "positions": settings.positions,
        "controls_matched_in": "frequency and length" if ablator.traits.has_frequency else "length",
        **summarise(ablation, patching, bootstrap),
    }
    write_json(run.out / "summary.json", summary)
    n_items = sum(len(items) for items in chosen.values())
    log.info("intervene %s: %d items", name, n_items)
    run.finish({"items": n_items, "ablations": ablation.num_rows, "patches": patching.num_rows})


def check_layers(settings: InterveneSettings, n_layers: int) -> None:
    """InputError where the settings name a layer that the model does not have."""
    asked = {
        "layers": settings.ablated_layers(n_layers),
        "patch_layers": settings.patched_layers(n_layers),
    }
    for name, layers in asked.items():
        if layers[-1] > n_layers:
            raise InputError(f"{name}: found layer {layers[-1]}, but the model has {n_layers}")


def choose_items(
    settings: InterveneSettings, trace: Path, task: Task
) -> dict[Direction, list[tuple[Item, str]]]:
    """Items of each direction with their class: direct and pivot ones, at most so many of each."""
    columns = ["concept", "source_lang", "target_lang", "behaviour"]
    rows = read_columns(trace / "items.parquet", columns).to_pylist()
    concepts = {concept.id: concept for concept in task.concepts}
    found: dict[Direction, list[tuple[Item, str]]] = {}
    for row in rows:
        items = found.setdefault((row["source_lang"], row["target_lang"]), [])
        if row["behaviour"] in (DIRECT, PIVOT):
            pair = (row["source_lang"], row["target_lang"])
            items.append((Item(concepts[row["concept"]], *pair), row["behaviour"]))
    for direction, items in found.items():
        items.sort(key=lambda entry: hash64("intervene", task.name, entry[0].concept.id))
        by_class = [[e for e in items if e[1] == name] for name in (DIRECT, PIVOT)]
        found[direction] = [e for part in by_class for e in part[: settings.max_items]]
    return found


def _all_directions(
    run: StageRun,
    ablator: Ablator,
    task: Task,
    chosen: Mapping[Direction, Sequence[tuple[Item, str]]],
    prepare: Callable[[Sequence[Item]], list[TracedItem]],
) -> list[tuple[pa.Table, pa.Table]]:
    """Rows of each direction; those that an interrupted run finished are read."""
    tables = []
    n_items = sum(len(items) for items in chosen.values())
    with progress(f"intervene {ablator.model.name}", n_items, "items") as ticker:
        for (source, target), entries in chosen.items():
            first = run.work / f"ablation-{source}-{target}.parquet"
            second = run.work / f"patching-{source}-{target}.parquet"
            if not second.is_file():
                prepared = prepare([item for item, _ in entries])
                items = list(zip(prepared, [kind for _, kind in entries], strict=True))
                ablated, patched = intervene_direction(ablator, items)
                write_table(first, pa.Table.from_pylist(ablated, schema=ABLATION_SCHEMA))
                # Last, because its presence says that the direction is done.
                write_table(second, pa.Table.from_pylist(patched, schema=PATCHING_SCHEMA))
            ticker.advance(len(entries))
            tables.append((read_columns(first), read_columns(second)))
    return tables


def intervene_direction(
    ablator: Ablator, items: Sequence[Classed]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ABLATION_SCHEMA and of PATCHING_SCHEMA for the items of one direction."""
    if not items:
        return [], []
    model, settings = ablator.model, ablator.settings
    sequences = [traced.ids for traced, _ in items]
    check_lengths(model, sequences)
    check_known(model, sequences)
    donors = choose_donors([traced for traced, _ in items])
    ablated: list[dict[str, Any]] = []
    patched: list[dict[str, Any]] = []
    for batch in batches_by_length(sequences, settings.batch_tokens):
        ablated += ablation_rows(ablator, items, batch)
        layers = settings.patched_layers(len(ablator.parts.blocks))
        patched += patching_rows(model, ablator.parts, items, batch, donors, layers)
    order = {traced.item.concept.id: place for place, (traced, _) in enumerate(items)}
    for rows in (ablated, patched):
        # Batches go by length; what is written does not depend on them.
        rows.sort(key=lambda row: order[row["concept"]])
    return ablated, patched
