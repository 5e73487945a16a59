"""The `trace` stage: what every layer would answer, and which behaviour that shows.

METHOD section 2.

Writes `items.parquet` (one row per item), `layers.parquet` (one row per item and layer) and
`summary.json`. Each direction's rows are kept under the stage's partial work, so that an
interrupted run continues with the next direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.behaviour import classify, classify_any, find_winner
from eval.items import Item, plan_items, read_doc_freq
from eval.lens import LayerReadings, LensParts, batches_by_length, find_parts, read_layers
from eval.models import LanguageModel, load_model, model_input, model_name
from eval.scoring import check_known, check_lengths
from eval.settings import TraceSettings
from eval.stats import Bootstrap
from eval.trace_items import PairPivots, TracedItem, prepare_items, read_pair_pivots
from eval.trace_summary import behaviour_shares, summarise
from mining.common.errors import InputError
from mining.common.files import write_json
from mining.common.logs import log, progress
from mining.common.shards import write_table
from mining.common.stage import (
    FilesInput,
    Input,
    StageInput,
    begin,
    read_manifest,
    require_same,
    settings_dict,
)
from mining.common.task import Task, read_task, task_files
from mining.common.tokenizer import Tokenizer

_KEYS = [
    ("concept", pa.string()),
    ("source_lang", pa.string()),
    ("target_lang", pa.string()),
]
ITEM_SCHEMA = pa.schema(
    [
        *_KEYS,
        ("pos", pa.string()),
        ("class", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("behaviour", pa.string()),
        ("winning_layer", pa.int64()),
        ("winning_token", pa.string()),
        ("winning_id", pa.int64()),
        ("winning_prob", pa.float64()),
        ("behaviour_any", pa.string()),
        ("answer_token", pa.string()),
        ("answer_id", pa.int64()),
        ("skipped_spaces", pa.int64()),
        ("n_pivots", pa.int64()),
    ]
)
LAYER_SCHEMA = pa.schema(
    [
        *_KEYS,
        ("layer", pa.int64()),
        ("p_source", pa.float64()),
        ("p_pivot", pa.float64()),
        ("p_target", pa.float64()),
        ("entropy", pa.float64()),
        ("rank_target", pa.int64()),
        ("top_tokens", pa.list_(pa.string())),
        ("top_ids", pa.list_(pa.int64())),
        ("top_probs", pa.list_(pa.float64())),
    ]
)


def run_trace(
    settings: TraceSettings,
    out: Path,
    model: str,
    task: Path,
    words: Path | None,
    seed: int,
    label: Mapping[str, Any] | None = None,
) -> None:
    """Trace `model` (a folder or a hub id) on a task file, into `out`.

    `words` is the folder of the words stage, whose `pair_pivots` name the pivots; without it their
    probability is null. Raises MismatchError where `words` was made with another tokenizer.
    """
    label = dict(label or {})
    inputs: dict[str, Input] = {
        "model": model_input(model, settings.revision),
        "task": FilesInput(task_files(task)),
    }
    if words is not None:
        inputs["words"] = StageInput(words, "words")
    doc_freq = read_doc_freq(words, settings.min_doc_freq)
    record = {**settings_dict(settings), "seed": seed, "label": label}
    run = begin("trace", out, record, inputs)
    if run is None:
        return
    content = read_task(task)
    plan = plan_items(content, settings.max_items, doc_freq, settings.min_doc_freq)
    n_all = sum(len(items) for items in plan.values())
    traced = {pair: [i for i in items if not i.identical] for pair, items in plan.items()}
    n_items = sum(len(items) for items in traced.values())
    if n_items == 0:
        raise InputError(f"{task}: no item to trace (min_doc_freq {settings.min_doc_freq})")
    name = model_name(model, settings.revision, label)
    loaded = load_model(model, settings.revision, settings.device, settings.dtype, name)
    pivots: PairPivots | None = None
    if words is not None:
        fingerprint = read_manifest(words, "words").counts["fingerprint"]
        found = {f"{words}": fingerprint, f"{name}": loaded.tokenizer.fingerprint}
        require_same("the tokenizer's fingerprint", found)
        pivots = read_pair_pivots(words)
    parts = find_parts(loaded, settings.final_norm, settings.blocks)
    item_tables, layer_tables = [], []
    with progress(f"trace {name}", n_items, "items") as ticker:
        for (source, target), items in traced.items():
            item_part = run.work / f"items-{source}-{target}.parquet"
            layer_part = run.work / f"layers-{source}-{target}.parquet"
            if not item_part.is_file():
                rows, layers = trace_direction(
                    loaded, parts, content, items, pivots, settings, seed, ticker.advance
                )
                write_table(layer_part, pa.Table.from_pylist(layers, schema=LAYER_SCHEMA))
                # Last, because its presence says that the direction is done.
                write_table(item_part, pa.Table.from_pylist(rows, schema=ITEM_SCHEMA))
            else:
                ticker.advance(len(items))
            item_tables.append(pq.read_table(item_part))
            layer_tables.append(pq.read_table(layer_part))
    table, layer_table = pa.concat_tables(item_tables), pa.concat_tables(layer_tables)
    metadata = {"fingerprint": loaded.tokenizer.fingerprint, "n_layers": str(len(parts.blocks))}
    write_table(run.out / "items.parquet", table, metadata)
    write_table(run.out / "layers.parquet", layer_table, metadata)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    summary = {
        "model": name,
        "arm": label.get("arm"),
        "seed": label.get("seed"),
        "n_layers": len(parts.blocks),
        **summarise(table, layer_table, bootstrap),
    }
    write_json(run.out / "summary.json", summary)
    shares = behaviour_shares(table.column("behaviour").to_pylist())
    log.info("trace %s: %s", name, ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
    run.finish(
        {
            "items": table.num_rows,
            "identical_left_out": n_all - n_items,
            "layers": len(parts.blocks),
            "fingerprint": loaded.tokenizer.fingerprint,
            "shares": shares,
            "shares_any": behaviour_shares(table.column("behaviour_any").to_pylist()),
        }
    )


def trace_direction(
    model: LanguageModel,
    parts: LensParts,
    task: Task,
    items: Sequence[Item],
    pivots: PairPivots | None,
    settings: TraceSettings,
    seed: int,
    advance: Callable[[int], None] = lambda amount: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ITEM_SCHEMA and of LAYER_SCHEMA for a direction's items, in the items' order."""
    if not items:
        return [], []
    prepared = prepare_items(
        model.tokenizer, task, items, pivots, settings.pivots, settings.examples, seed
    )
    sequences = [traced.ids for traced in prepared]
    check_lengths(model, sequences)
    check_known(model, sequences)
    check_known(model, [frozenset().union(*t.sets, {t.answer}) for t in prepared])
    item_rows: list[dict[str, Any]] = [{} for _ in prepared]
    layer_rows: list[list[dict[str, Any]]] = [[] for _ in prepared]
    for batch in batches_by_length(sequences, settings.batch_tokens):
        readings = read_layers(
            model,
            parts,
            [sequences[i] for i in batch],
            [prepared[i].sets for i in batch],
            [prepared[i].answer for i in batch],
            settings.top_k,
            settings.embeddings,
        )
        for row, i in enumerate(batch):
            layers = list(_layer_rows(model.tokenizer, prepared[i], readings, row, settings))
            layer_rows[i] = layers
            item_rows[i] = _item_row(model.tokenizer, prepared[i], layers, settings)
        advance(len(batch))
    return item_rows, [row for rows in layer_rows for row in rows]


def _layer_rows(
    tokenizer: Tokenizer,
    traced: TracedItem,
    readings: Sequence[LayerReadings],
    row: int,
    settings: TraceSettings,
) -> Iterable[dict[str, Any]]:
    first = 0 if settings.embeddings else 1
    for layer, reading in enumerate(readings, start=first):
        p_source, p_pivot, p_target = reading.masses[row].tolist()
        top_ids = reading.top_ids[row].tolist()
        yield {
            **_keys(traced.item),
            "layer": layer,
            "p_source": p_source,
            "p_pivot": p_pivot if traced.sets[1] else None,
            "p_target": p_target,
            "entropy": float(reading.entropy[row]),
            "rank_target": int(reading.rank[row]),
            "top_tokens": [tokenizer.piece(token) for token in top_ids],
            "top_ids": top_ids,
            "top_probs": reading.top_probs[row].tolist(),
        }


def _item_row(
    tokenizer: Tokenizer,
    traced: TracedItem,
    layers: Sequence[Mapping[str, Any]],
    settings: TraceSettings,
) -> dict[str, Any]:
    item, concept = traced.item, traced.item.concept
    voting = [row for row in layers if row["layer"] >= 1]
    tokens = [row["top_ids"][0] for row in voting]
    probs = [row["top_probs"][0] for row in voting]
    winner = find_winner(tokens, probs)
    return {
        **_keys(item),
        "pos": concept.pos,
        "class": concept.cls,
        "group": concept.group,
        "source": item.source,
        "target": item.target,
        "behaviour": classify(tokens, probs, traced.source, traced.target),
        "winning_layer": winner.layer,
        "winning_token": tokenizer.piece(winner.token),
        "winning_id": winner.token,
        "winning_prob": winner.probability,
        "behaviour_any": classify_any(
            tokens, probs, traced.source, traced.target, settings.threshold
        ),
        "answer_token": tokenizer.piece(traced.answer),
        "answer_id": traced.answer,
        "skipped_spaces": traced.skipped,
        "n_pivots": len(traced.sets[1]),
    }


def _keys(item: Item) -> dict[str, str]:
    return {
        "concept": item.concept.id,
        "source_lang": item.source_lang,
        "target_lang": item.target_lang,
    }
