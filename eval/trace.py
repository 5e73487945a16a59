"""The `trace` stage: what every layer would answer, and which behaviour that shows.

METHOD section 2.

Writes `items.parquet` (one row per item), `layers.parquet` (one row per item and layer),
`heatmaps.parquet` (some items at every position) and `summary.json`. Each direction's rows are kept
under the stage's partial work, so that an interrupted run continues with the next direction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.items import Item, plan_items, read_doc_freq
from eval.lens import batches_by_length, read_layers
from eval.lens_parts import LensParts, find_parts
from eval.models import LanguageModel, load_model, model_input, model_name
from eval.scoring import check_known, check_lengths
from eval.settings import TraceSettings
from eval.stats import Bootstrap
from eval.trace_heatmaps import clearest_items, heatmap_rows
from eval.trace_items import PairPivots, prepare_items, read_pair_pivots
from eval.trace_rows import (
    HEATMAP_SCHEMA,
    ITEM_SCHEMA,
    in_item_order,
    item_row,
    layer_schema,
    layer_table,
)
from eval.trace_summary import behaviour_shares, summarise
from eval.tracer import Tracer
from eval.tuned_lens import Translators, read_translators, save_translators
from eval.tuned_training import layer_divergences, read_windows, train_translators
from eval.vocabularies import language_vocabularies
from mining.common.errors import InputError
from mining.common.files import dump_json, write_bytes, write_json
from mining.common.logs import log, progress
from mining.common.manifest import read_manifest, require_same
from mining.common.shards import read_columns, write_table
from mining.common.stage import FilesInput, Input, StageInput, StageRun, begin, settings_dict
from mining.common.task import read_task, task_files

TUNED_LENS = "tuned_lens.safetensors"


def run_trace(
    settings: TraceSettings,
    out: Path,
    model: str,
    task: Path,
    words: Path | None,
    seed: int,
    label: Mapping[str, Any] | None = None,
    count: Path | None = None,
) -> None:
    """Trace `model` (a folder or a hub id) on a task file, into `out`.

    `words` is the folder of the words stage, whose `pair_pivots` name the pivots; without it their
    probability is null. `count`, that of the count stage, says which tokens belong to a language.
    Raises MismatchError where `words` was made with another tokenizer.
    """
    label = dict(label or {})
    doc_freq = read_doc_freq(words, settings.min_doc_freq)
    record = {**settings_dict(settings), "seed": seed, "label": label}
    run = begin("trace", out, record, _inputs(settings, model, task, words, count))
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
    parts = find_parts(loaded, settings.final_norm, settings.blocks, settings.unembedding)
    translators, tuned = tune(run, settings, loaded, parts, seed)
    tracer = Tracer(
        model=loaded,
        parts=parts,
        task=content,
        pivots=pivots,
        vocabularies=language_vocabularies(
            content, loaded.tokenizer, count, loaded.n_embeddings, loaded.device
        ),
        translators=translators,
        settings=settings,
        seed=seed,
    )
    tables = _trace_all(run, tracer, traced, f"trace {name}", n_items)
    table, layer_table = (pa.concat_tables(column) for column in zip(*tables, strict=True))
    by_key = {(i.concept.id, *pair): i for pair, items in traced.items() for i in items}
    clearest = clearest_items(table, settings.heatmaps)
    heatmaps = [row for k, b in clearest for row in heatmap_rows(tracer, by_key[k], b)]
    fingerprint = loaded.tokenizer.fingerprint
    metadata = {"fingerprint": fingerprint, "n_layers": str(len(parts.blocks))}
    if (run.work / TUNED_LENS).is_file():
        write_bytes(run.out / TUNED_LENS, (run.work / TUNED_LENS).read_bytes())
    write_table(run.out / "items.parquet", table, metadata)
    write_table(run.out / "layers.parquet", layer_table, metadata)
    maps = pa.Table.from_pylist(heatmaps, schema=HEATMAP_SCHEMA)
    write_table(run.out / "heatmaps.parquet", maps, metadata)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    summary = {
        "model": name,
        "arm": label.get("arm"),
        "seed": label.get("seed"),
        "n_layers": len(parts.blocks),
        "lens": "logit" if translators is None else "tuned",
        "tuned": tuned,
        "rule": settings.rule,
        "vocabularies": {
            "source": tracer.vocabularies.source, "tokens": tracer.vocabularies.sizes(),
        },
        **summarise(table, layer_table, list(content.languages), settings.thresholds, bootstrap),
    }  # fmt: skip
    write_json(run.out / "summary.json", summary)
    shares = behaviour_shares(table.column("behaviour").to_pylist())
    log.info("trace %s: %s", name, ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
    run.finish(
        {
            "items": table.num_rows,
            "identical_left_out": n_all - n_items,
            "layers": len(parts.blocks),
            "fingerprint": fingerprint,
            "shares": shares,
            "shares_any": behaviour_shares(table.column("behaviour_any").to_pylist()),
        }
    )


def _inputs(
    settings: TraceSettings, model: str, task: Path, words: Path | None, count: Path | None
) -> dict[str, Input]:
    inputs: dict[str, Input] = {
        "model": model_input(model, settings.revision),
        "task": FilesInput(task_files(task)),
    }
    if words is not None:
        inputs["words"] = StageInput(words, "words")
    if count is not None:
        inputs["count"] = StageInput(count, "count")
    for name in ("tuned_text", "tuned_lens"):
        path = getattr(settings, name)
        if path is not None:
            inputs[name] = FilesInput.folder(Path(path))
    return inputs


def tune(
    run: StageRun, settings: TraceSettings, model: LanguageModel, parts: LensParts, seed: int
) -> tuple[Translators | None, dict[str, Any] | None]:
    """The translators that the settings ask for, and the KL of each layer where they are trained.

    Trained ones lie in the partial work, where an interrupted run finds them, until the end.
    """
    content = hashlib.sha256(dump_json(run.inputs["model"]).encode()).hexdigest()
    if settings.tuned_lens is not None:
        return read_translators(Path(settings.tuned_lens), content, model.device), None
    if settings.tuned_text is None:
        return None, None
    windows = read_windows(model, Path(settings.tuned_text))
    check_known(model, windows.tolist())
    path = run.work / TUNED_LENS
    if not path.is_file():
        log.info("trace %s: trains the tuned lens, %d steps", model.name, settings.tuned_steps)
        trained = train_translators(model, parts, windows, settings.tuned_steps, seed)
        kl = layer_divergences(model, parts, trained, windows)
        save_translators(path, trained, content, kl)
    # Read back, so that a run that was interrupted has the same numbers.
    translators = read_translators(path, content, model.device)
    return translators, {
        "layers": list(range(len(parts.blocks))),
        "kl_tuned": layer_divergences(model, parts, translators, windows),
        "kl_logit": layer_divergences(model, parts, None, windows),
    }


def _trace_all(
    run: StageRun,
    tracer: Tracer,
    traced: Mapping[tuple[str, str], Sequence[Item]],
    title: str,
    n_items: int,
) -> list[tuple[pa.Table, pa.Table]]:
    """Items and layers of each direction; those that an interrupted run finished are read."""
    tables = []
    with progress(title, n_items, "items") as ticker:
        for (source, target), items in traced.items():
            item_part = run.work / f"items-{source}-{target}.parquet"
            layer_part = run.work / f"layers-{source}-{target}.parquet"
            if not item_part.is_file():
                found = trace_direction(tracer, items, ticker.advance)
                write_table(layer_part, found[1])
                # Last, because its presence says that the direction is done.
                write_table(item_part, found[0])
            else:
                ticker.advance(len(items))
            tables.append((read_columns(item_part), read_columns(layer_part)))
    return tables


def trace_direction(
    tracer: Tracer, items: Sequence[Item], advance: Callable[[int], None] = lambda amount: None
) -> tuple[pa.Table, pa.Table]:
    """Tables of ITEM_SCHEMA and of `layer_schema` for a direction's items, in the items' order."""
    languages = list(tracer.task.languages)
    if not items:
        return ITEM_SCHEMA.empty_table(), layer_schema(languages).empty_table()
    model, settings = tracer.model, tracer.settings
    prepared = prepare_items(
        model.tokenizer, tracer.task, items, tracer.pivots, settings.pivots, settings.examples,
        tracer.seed,
    )  # fmt: skip
    sequences = [traced.ids for traced in prepared]
    check_lengths(model, sequences)
    check_known(model, sequences)
    check_known(model, [frozenset().union(*t.sets, {t.answer}) for t in prepared])
    first = 0 if settings.embeddings else 1
    batches = list(batches_by_length(sequences, settings.batch_tokens))
    found = []
    for batch in batches:
        found.append(
            read_layers(
                model,
                tracer.parts,
                [sequences[i] for i in batch],
                [prepared[i].sets for i in batch],
                [prepared[i].answer for i in batch],
                settings.top_k,
                settings.embeddings,
                tracer.vocabularies.members,
                tracer.translators,
            )
        )
        advance(len(batch))
    readings = in_item_order(batches, found)
    # The embeddings never vote.
    tokens = readings.top_ids[:, 1 - first :, 0].tolist()
    probs = readings.top_probs[:, 1 - first :, 0].tolist()
    rows = [
        item_row(model.tokenizer, traced, own_tokens, own_probs, settings)
        for traced, own_tokens, own_probs in zip(prepared, tokens, probs, strict=True)
    ]
    return (
        pa.Table.from_pylist(rows, schema=ITEM_SCHEMA),
        layer_table(model.tokenizer, languages, prepared, readings, first),
    )
