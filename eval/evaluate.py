"""The `evaluate` stage: how well a model translates words (METHOD section 1).

Writes `items.parquet`, one row per item, and `summary.json`. Each direction's rows are kept under
the stage's partial work, so that an interrupted run continues with the next direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eval.items import Item, read_doc_freq, select_items
from eval.models import LanguageModel, load_model, model_input, model_name
from eval.prompts import encode_answers
from eval.scoring import Group, can_reuse_prefix, group_losses
from eval.settings import EvaluateSettings
from eval.stats import Bootstrap, Floats, mean_over_columns, undefined, weighted_means
from mining.common.errors import InputError
from mining.common.files import write_json
from mining.common.logs import log, progress
from mining.common.shards import write_table
from mining.common.stage import FilesInput, Input, StageInput, begin, settings_dict
from mining.common.task import Task, read_task, task_files

ITEM_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("pos", pa.string()),
        ("class", pa.string()),
        ("group", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("identical", pa.bool_()),
        ("n_distractors", pa.int64()),
        ("n_draws", pa.int64()),
        ("p_gold", pa.float64()),
        ("loss", pa.float64()),
        ("score", pa.float64()),
        ("correct", pa.bool_()),
        ("rank", pa.int64()),
        ("n_target_distractors", pa.int64()),
        ("target_score", pa.float64()),
        ("target_correct", pa.bool_()),
        ("target_rank", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Choice:
    """The right candidate against the wrong ones: Score, and its 1-based rank, ties against it."""

    score: float
    rank: int


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

    `words` is the folder of the words stage, read only where `min_doc_freq` is set; `label` (arm,
    seed) goes into the summary. Raises InputError where no item is left to score.
    """
    label = dict(label or {})
    inputs: dict[str, Input] = {
        "model": model_input(model, settings.revision),
        "task": FilesInput(task_files(task)),
    }
    if words is not None and settings.min_doc_freq is not None:
        inputs["words"] = StageInput(words, "words")
    doc_freq = read_doc_freq(words, settings.min_doc_freq)
    record = {**settings_dict(settings), "seed": seed, "label": label}
    run = begin("evaluate", out, record, inputs)
    if run is None:
        return
    content = read_task(task)
    plan = {
        (source, target): select_items(
            content, source, target, settings.max_items, doc_freq, settings.min_doc_freq
        )
        for source, target in content.directions()
    }
    if not any(not item.identical for items in plan.values() for item in items):
        raise InputError(f"{task}: no item to score (min_doc_freq {settings.min_doc_freq})")
    name = model_name(model, settings.revision, label)
    loaded: LanguageModel | None = None
    reuse = False
    tables = []
    n_prompts = settings.draws * sum(not i.identical for items in plan.values() for i in items)
    with progress(f"evaluate {name}", n_prompts, "draws of items") as ticker:
        for (source, target), items in plan.items():
            part = run.work / f"items-{source}-{target}.parquet"
            if not part.is_file():
                if loaded is None:
                    loaded = load_model(
                        model, settings.revision, settings.device, settings.dtype, name
                    )
                    reuse = settings.prefix_cache == "on" or (
                        settings.prefix_cache == "auto" and can_reuse_prefix(loaded)
                    )
                rows = score_direction(
                    loaded, content, items, settings, seed, reuse, ticker.advance
                )
                write_table(part, pa.Table.from_pylist(rows, schema=ITEM_SCHEMA))
            else:
                ticker.advance(settings.draws * sum(not item.identical for item in items))
            tables.append(pq.read_table(part))
    table = pa.concat_tables(tables)
    write_table(run.out / "items.parquet", table)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    summary = {"model": name, "arm": label.get("arm"), "seed": label.get("seed")}
    summary |= summarise(table, bootstrap, "target" in settings.forms)
    write_json(run.out / "summary.json", summary)
    score = summary["score"]
    log.info("evaluate %s: score %s (%s to %s)", name, *(score[k] for k in ("mean", "low", "high")))
    run.finish(
        {
            "items": table.num_rows,
            "scored": summary["n_items"],
            "identical": summary["n_identical"],
            "without_distractors": summary["n_without_distractors"],
        }
    )


def score_direction(
    model: LanguageModel,
    task: Task,
    items: Sequence[Item],
    settings: EvaluateSettings,
    seed: int,
    reuse_prefix: bool,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[dict[str, Any]]:
    """Rows of ITEM_SCHEMA for a direction's items; the identical ones stay without scores."""
    prompts: list[str] = []
    answers: list[str] = []
    spans: list[tuple[int, int]] = []
    sizes: dict[int, tuple[int, int]] = {}
    for index, item in enumerate(items):
        if item.identical:
            continue
        source, target, concept = item.source_lang, item.target_lang, item.concept
        wrong_sources = task.distractors(target, source, concept)
        wrong_targets = (
            task.distractors(source, target, concept) if "target" in settings.forms else []
        )
        sizes[index] = (len(wrong_sources), len(wrong_targets))
        for draw in range(settings.draws):
            examples = task.draw_examples(source, target, concept, settings.examples, draw, seed)
            gold = task.prompt(source, target, examples, item.source)
            begin_at = len(prompts)
            prompts += [gold]
            prompts += [task.prompt(source, target, examples, word) for word in wrong_sources]
            prompts += [gold] * len(wrong_targets)
            right = task.answer_text(item.target)
            answers += [right] * (1 + len(wrong_sources))
            answers += [task.answer_text(word) for word in wrong_targets]
            spans.append((begin_at, len(prompts)))
    encoded = encode_answers(model.tokenizer, prompts, answers)
    groups: list[Group] = [encoded[low:high] for low, high in spans]
    losses = group_losses(model, groups, settings.batch_tokens, reuse_prefix, advance)
    rows = []
    position = 0
    for index, item in enumerate(items):
        row = _item_row(item)
        if index in sizes:
            draws = losses[position : position + settings.draws]
            position += settings.draws
            row |= _scores(np.mean(draws, axis=0), *sizes[index], settings)
        rows.append(row)
    return rows


def choose(probabilities: Floats) -> Choice | None:
    """Score and rank of candidate 0 among all; None where there is nothing wrong to choose."""
    if len(probabilities) < 2:
        return None
    gold, wrong = probabilities[0], probabilities[1:]
    return Choice(float(gold - wrong.mean()), 1 + int((wrong >= gold).sum()))


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
    by_direction: dict[str, dict[str, Any]] = {name: {"n": names.count(name)} for name in directions}
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


def _item_row(item: Item) -> dict[str, Any]:
    concept = item.concept
    return {
        "concept": concept.id,
        "pos": concept.pos,
        "class": concept.cls,
        "group": concept.group,
        "source_lang": item.source_lang,
        "target_lang": item.target_lang,
        "source": item.source,
        "target": item.target,
        "identical": item.identical,
        "n_distractors": 0,
        "n_draws": 0,
    }


def _scores(
    losses: npt.NDArray[np.float64], n_sources: int, n_targets: int, settings: EvaluateSettings
) -> dict[str, Any]:
    """The score columns; `losses` [1 + n_sources + n_targets] are means over the draws."""
    p = np.exp(-losses)
    row: dict[str, Any] = {
        "n_distractors": n_sources,
        "n_draws": settings.draws,
        "loss": float(losses[0]),
        "p_gold": float(p[0]),
    }
    if source := choose(p[: 1 + n_sources]):
        row |= {"score": source.score, "rank": source.rank, "correct": source.rank == 1}
    if "target" in settings.forms:
        row["n_target_distractors"] = n_targets
        if target := choose(np.concatenate([p[:1], p[1 + n_sources :]])):
            row |= {
                "target_score": target.score,
                "target_rank": target.rank,
                "target_correct": target.rank == 1,
            }
    return row
