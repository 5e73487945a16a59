"""The `evaluate` stage: how well a model translates words (METHOD section 1).

Writes `items.parquet`, one row per item, and `summary.json`. Each direction's rows are kept under
the stage's partial work, so that an interrupted run continues with the next direction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eval.evaluate_summary import summarise
from eval.items import Item, plan_items, read_doc_freq
from eval.models import LanguageModel, load_model, model_input, model_name
from eval.prompts import encode_answers
from eval.scoring import Group, can_reuse_prefix, group_losses
from eval.settings import EvaluateSettings
from eval.stats import Bootstrap, Floats
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


# Items whose prompts are in memory at a time.
ITEMS_AT_A_TIME = 256


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
    plan = plan_items(content, settings.max_items, doc_freq, settings.min_doc_freq)
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
    summary: dict[str, Any] = {
        "model": name,
        "arm": label.get("arm"),
        "seed": label.get("seed"),
        **summarise(table, bootstrap, "target" in settings.forms),
    }
    write_json(run.out / "summary.json", summary)
    score = summary["score"]
    if score["mean"] is not None:
        log.info("evaluate %s: score %.4f (%.4f to %.4f), accuracy %.3f", name, score["mean"],
                 score["low"], score["high"], summary["accuracy"]["mean"])  # fmt: skip
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
    scores: dict[str, dict[str, Any]] = {}
    asked = [item for item in items if not item.identical]
    for start in range(0, len(asked), ITEMS_AT_A_TIME):
        part = asked[start : start + ITEMS_AT_A_TIME]
        wrong = [_distractors(task, item, settings) for item in part]
        groups = _groups(model, task, part, wrong, settings, seed)
        losses = group_losses(model, groups, settings.batch_tokens, reuse_prefix, advance)
        for k, (item, (sources, targets)) in enumerate(zip(part, wrong, strict=True)):
            draws = losses[k * settings.draws : (k + 1) * settings.draws]
            means = np.mean(draws, axis=0)
            scores[item.concept.id] = _scores(means, len(sources), len(targets), settings)
    return [_item_row(item) | scores.get(item.concept.id, {}) for item in items]


def _distractors(task: Task, item: Item, settings: EvaluateSettings) -> tuple[list[str], list[str]]:
    """Wrong source words (those of the mirrored direction) and, where asked for, wrong answers."""
    sources = task.distractors(item.target_lang, item.source_lang, item.concept)
    if "target" not in settings.forms:
        return sources, []
    return sources, task.distractors(item.source_lang, item.target_lang, item.concept)


def _groups(
    model: LanguageModel,
    task: Task,
    items: Sequence[Item],
    wrong: Sequence[tuple[list[str], list[str]]],
    settings: EvaluateSettings,
    seed: int,
) -> list[Group]:
    """One group per item and draw: the right pair, the wrong sources, the wrong targets."""
    prompts: list[str] = []
    answers: list[str] = []
    ends = [0]
    for item, (sources, targets) in zip(items, wrong, strict=True):
        langs = (item.source_lang, item.target_lang)
        right = task.answer_text(item.target)
        for draw in range(settings.draws):
            examples = task.draw_examples(*langs, item.concept, settings.examples, draw, seed)
            asked = [item.source, *sources]
            made = [task.prompt(*langs, examples, word) for word in asked]
            prompts += made + [made[0]] * len(targets)
            answers += [right] * len(made) + [task.answer_text(word) for word in targets]
            ends.append(len(prompts))
    encoded = encode_answers(model.tokenizer, prompts, answers)
    return [encoded[low:high] for low, high in itertools.pairwise(ends)]


def choose(probabilities: Floats) -> Choice | None:
    """Score and rank of candidate 0 among all; None where there is nothing wrong to choose."""
    if len(probabilities) < 2:
        return None
    gold, wrong = probabilities[0], probabilities[1:]
    return Choice(float(gold - wrong.mean()), 1 + int((wrong >= gold).sum()))


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
