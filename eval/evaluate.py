"""The `evaluate` stage: how well a model translates words (METHOD section 1).

Writes `items.parquet` (one row per item), `candidates.parquet` (one row per item, form and
candidate, with its log p in every draw) and `summary.json`. Likelihoods are kept as they come (see
eval.loss_store), so that an interrupted run goes on, and several processes share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.answers import Answered, Asker
from eval.evaluate_summary import summarise
from eval.items import DocFreq, Item, plan_items, read_doc_freq
from eval.loss_store import LossStore, store_name
from eval.measures import CANDIDATE_SCHEMA, ITEM_SCHEMA, candidate_rows, item_row
from eval.models import model_input, model_name
from eval.processes import join_processes
from eval.report_text import interval
from eval.settings import EvaluateSettings
from eval.stats import Bootstrap
from mining.common.errors import InputError
from mining.common.files import write_json
from mining.common.logs import log, progress
from mining.common.shards import write_table
from mining.common.stage import WORK, FilesInput, Input, StageInput, StageRun, begin, settings_dict
from mining.common.task import read_task, task_files

# Items of a direction that are scored together and kept together: what a kill can lose. Items with
# the same worked examples share more, the more there are of them.
CHUNK_ITEMS = 64
CHUNK_ITEMS_SHARED_DRAWS = 512

# ITEM_SCHEMA, CANDIDATE_SCHEMA
Tables = tuple[pa.Table, pa.Table]


def run_evaluate(
    settings: EvaluateSettings,
    out: Path,
    model: str,
    task: Path,
    words: Path | None,
    seed: int,
    label: Mapping[str, Any] | None = None,
) -> None:
    """Score `model` (a folder or a hub id) on a task file, into `out`.

    `words` is the folder of the words stage, read only where `min_doc_freq` or `frequency_bands`
    ask for frequencies; `label` (arm, seed) goes into the summary. Runs in every process of
    `torchrun` or `accelerate launch` alike. Raises InputError where no item is left to score.
    """
    label = dict(label or {})
    doc_freq = read_doc_freq(words, settings.min_doc_freq, settings.frequency_bands)
    processes = join_processes(settings.device)
    run: StageRun | None = None
    if processes.rank == 0:
        inputs: dict[str, Input] = {
            "model": model_input(model, settings.revision),
            "task": FilesInput(task_files(task)),
        }
        if words is not None and doc_freq is not None:
            inputs["words"] = StageInput(words, "words")
        record = {**settings_dict(settings), "seed": seed, "label": label}
        run = begin("evaluate", out, record, inputs)
    identity = processes.share(run.inputs["model"] if run is not None else None)
    if identity is None:
        return
    content = read_task(task)
    plan = plan_items(content, settings.max_items, doc_freq, settings.min_doc_freq)
    if not any(not item.identical for items in plan.values() for item in items):
        raise InputError(f"{task}: no item to score (min_doc_freq {settings.min_doc_freq})")
    chunks = _chunks(plan.values(), settings.shared_draws)
    name = model_name(model, settings.revision, label)
    asker = Asker(settings, seed, content, model, name, processes.device)
    root = Path(settings.cache) if settings.cache is not None else out / WORK / "losses"
    store = LossStore(root / store_name(asker.description(identity)))
    tables: dict[int, Tables] = {}

    def score(numbers: Sequence[int], advance: Callable[[int], None]) -> None:
        for number in numbers:
            found = asker.ask(chunks[number], store)
            if run is not None:
                tables[number] = _tables(chunks[number], found, doc_freq)
            advance(len(chunks[number]))

    own = range(processes.rank, len(chunks), processes.size)
    if run is None:
        score(own, lambda amount: None)
        processes.wait()
    else:
        with progress(f"evaluate {name}", sum(map(len, chunks)), "items") as ticker:
            score(own, ticker.advance)
            processes.wait()
            store.refresh()
            score([n for n in range(len(chunks)) if n not in own], ticker.advance)
        items, candidates = (
            pa.concat_tables([tables[number][k] for number in range(len(chunks))]) for k in (0, 1)
        )
        _write(run, items, candidates, name, settings, seed, label)
    processes.wait()


def _chunks(directions: Iterable[Sequence[Item]], shared_draws: bool) -> list[Sequence[Item]]:
    size = CHUNK_ITEMS_SHARED_DRAWS if shared_draws else CHUNK_ITEMS
    return [
        items[start : start + size] for items in directions for start in range(0, len(items), size)
    ]


def _tables(items: Sequence[Item], found: Sequence[Answered], doc_freq: DocFreq | None) -> Tables:
    by_item: dict[str, list[Answered]] = {item.concept.id: [] for item in items}
    for question, log_probs in found:
        by_item[question.item.concept.id].append((question, log_probs))
    rows = [item_row(item, by_item[item.concept.id], doc_freq) for item in items]
    candidates = [row for answered in found for row in candidate_rows(*answered)]
    return (
        pa.Table.from_pylist(rows, schema=ITEM_SCHEMA),
        pa.Table.from_pylist(candidates, schema=CANDIDATE_SCHEMA),
    )


def _write(
    run: StageRun,
    items: pa.Table,
    candidates: pa.Table,
    name: str,
    settings: EvaluateSettings,
    seed: int,
    label: Mapping[str, Any],
) -> None:
    write_table(run.out / "items.parquet", items)
    write_table(run.out / "candidates.parquet", candidates)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    summary: dict[str, Any] = {
        "model": name,
        "arm": label.get("arm"),
        "seed": label.get("seed"),
        **summarise(items, candidates, bootstrap, settings.frequency_bands),
    }
    write_json(run.out / "summary.json", summary)
    score = summary["score"]
    if score["mean"] is not None:
        shown = interval(score["mean"], score["low"], score["high"])
        log.info("evaluate %s: score %s, accuracy %.3f", name, shown, summary["accuracy"]["mean"])
    run.finish(
        {
            "items": items.num_rows,
            "candidates": candidates.num_rows,
            "scored": summary["n_items"],
            "identical": summary["n_identical"],
            "without_distractors": summary["n_without_distractors"],
        }
    )
