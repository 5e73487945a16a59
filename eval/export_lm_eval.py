"""Writes the word-translation task as a task folder for EleutherAI's lm-evaluation-harness.

One task (a YAML file and a JSON Lines file) for each form and direction, one group for each form.
The worked examples of one draw are part of every prompt, so the harness adds none of its own
(`num_fewshot: 0`). In the source form one answer follows ten contexts, which the harness calls
multiple inputs (as in its `winogrande`): `doc_to_text` gives the number of the right context,
`doc_to_choice` the contexts, `doc_to_target` the answer. Its `acc` takes the candidate with the
highest summed log-likelihood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.export_settings import ExportLmEvalSettings
from eval.items import Item, plan_items
from eval.questions import draw_examples
from eval.settings import EvaluateSettings, Form
from mining.common.errors import InputError
from mining.common.files import write_text
from mining.common.logs import log
from mining.common.seeds import generator
from mining.common.stage import FilesInput, begin, settings_dict
from mining.common.task import Task, read_task, task_files

LOADER = "pivots_words"
LOADER_TEXT = '''\
"""Reads the documents of these tasks for lm-evaluation-harness; see README.md."""

import json
from pathlib import Path

from datasets import Dataset


def load(file, **_):
    """The documents of a JSON Lines file beside this module, as the split `test`."""
    with (Path(__file__).parent / file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def contexts(doc):
    """The prompts of a document of the source form, one for each source word."""
    return [doc["start"] + query for query in doc["queries"]]
'''
# What each form's document is for the harness. The answers bring their own space, so nothing may
# stand between prompt and answer: the border is then tokenized as the evaluation does it.
FORM_LINES: dict[Form, str] = {
    "source": f"""\
doc_to_text: gold
doc_to_target: answer
doc_to_choice: !function {LOADER}.contexts
""",
    "target": """\
doc_to_text: prompt
doc_to_target: gold
doc_to_choice: answers
""",
}
FORM_TITLES: dict[Form, str] = {
    "source": "one answer after ten source words, of which one is right (the paper's choice)",
    "target": "ten answers after one source word",
}


def run_export(
    settings: ExportLmEvalSettings, evaluate: EvaluateSettings, out: Path, task: Path, seed: int
) -> None:
    """Write the task file `task` to `out`, with draw `settings.draw` of `evaluate`'s examples.

    The items are those of `evaluate`, without identical words and those without distractors.
    Candidates stand in an order drawn from `seed`, so that the place of the right one says nothing.
    Raises InputError where a prompt ends with white space, which the harness would move.
    """
    content = read_task(task)
    record = {**settings_dict(settings), "examples": evaluate.examples, "seed": seed}
    run = begin("export-lm-eval", out, record, {"task": FilesInput(task_files(task))})
    if run is None:
        return
    prefix = re.sub(r"\W+", "_", content.name, flags=re.ASCII).strip("_").lower()
    plan = plan_items(content, settings.max_items, None, None)
    metadata = {
        "version": content.version,
        "task": content.name,
        "license": content.license,
        "draw": settings.draw,
        "examples": evaluate.examples,
        "seed": seed,
    }
    counts: dict[str, int] = {}
    for form in settings.forms:
        names = []
        for (source, target), items in plan.items():
            docs = [
                doc
                for item in items
                if not item.identical
                and (doc := make_doc(content, item, form, settings.draw, evaluate, seed))
            ]
            if not docs:
                log.warning("export-lm-eval: no item for %s-%s (%s)", source, target, form)
                continue
            name = f"{prefix}_{form}_{source}_{target}"
            file = f"{form}-{source}-{target}.jsonl"
            _write_lines(run.out / file, docs)
            write_text(run.out / f"{name}.yaml", _task_yaml(name, form, file, metadata))
            names.append(name)
            counts[f"{form}-{source}-{target}"] = len(docs)
        if not names:
            raise InputError(f"{task}: no item to export in the form '{form}'")
        group = f"{prefix}_{form}"
        write_text(run.out / f"{group}.yaml", _group_yaml(group, names, metadata))
    write_text(run.out / f"{LOADER}.py", LOADER_TEXT)
    groups = [f"{prefix}_{form}" for form in settings.forms]
    write_text(run.out / "README.md", _readme(content, groups, settings, metadata))
    run.finish(counts)


def make_doc(
    task: Task, item: Item, form: Form, draw: int, evaluate: EvaluateSettings, seed: int
) -> dict[str, Any] | None:
    """An item as the harness's document; None where it has no distractors in this form."""
    source, target = item.source_lang, item.target_lang
    shown = draw_examples(task, item, evaluate, draw, seed)
    if form == "source":
        right, wrong = item.source, task.distractors(target, source, item.concept)
    else:
        right, wrong = item.target, task.distractors(source, target, item.concept)
    if not wrong:
        return None
    candidates = [right, *wrong]
    rng = generator(seed, "export-lm-eval", task.name, form, source, target, item.concept.id)
    order = rng.permutation(len(candidates)).tolist()
    words = [candidates[i] for i in order]
    asked = words if form == "source" else [item.source]
    prompts = [task.prompt(source, target, shown, word) for word in asked]
    for prompt in prompts:
        if not prompt or prompt != prompt.rstrip():
            # lm_eval would score that space as a part of the answer.
            raise InputError(
                f"task {task.name}: a prompt ends with {prompt[-10:]!r}, expected no white space "
                "at its end; move it from the template 'query' to the beginning of 'answer'"
            )
    common: dict[str, Any] = {
        "concept": item.concept.id,
        "source": item.source,
        "target": item.target,
        "candidates": words,
        "gold": order.index(0),
    }
    if form == "target":
        answers = [task.answer_text(word) for word in words]
        return common | {"prompt": prompts[0], "answers": answers}
    start = _common_lines(prompts)
    queries = [prompt[len(start) :] for prompt in prompts]
    return common | {"start": start, "queries": queries, "answer": task.answer_text(item.target)}


def _common_lines(prompts: Sequence[str]) -> str:
    """The whole lines with which all prompts begin, so that a document holds them once."""
    first, last = min(prompts), max(prompts)
    length = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))  # noqa: B905
    return first[: first.rfind("\n", 0, length) + 1]


def _write_lines(path: Path, docs: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs))


def _task_yaml(name: str, form: Form, file: str, metadata: dict[str, Any]) -> str:
    return (
        f"task: {name}\n"
        f"custom_dataset: !function {LOADER}.load\n"
        f"dataset_kwargs:\n  file: {file}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        f"{FORM_LINES[form]}"
        'target_delimiter: ""\n'
        "num_fewshot: 0\n"
        f"{_dump(_metric('higher_is_better', True, 'metric_list') | {'metadata': metadata})}"
    )


def _group_yaml(group: str, names: Sequence[str], metadata: dict[str, Any]) -> str:
    # A model's score is the mean over the directions, however many items each has.
    aggregate = _metric("weight_by_size", False, "aggregate_metric_list")
    return _dump({"group": group, "task": list(names), **aggregate, "metadata": metadata})


def _metric(key: str, value: bool, name: str) -> dict[str, Any]:
    return {name: [{"metric": "acc", "aggregation": "mean", key: value}]}


def _dump(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _readme(
    task: Task, groups: Sequence[str], settings: ExportLmEvalSettings, metadata: dict[str, Any]
) -> str:
    listed = "\n".join(
        f"- `{group}`: {FORM_TITLES[form]}"
        for group, form in zip(groups, settings.forms, strict=True)
    )
    return f"""\
# {task.name}, version {task.version}, for lm-evaluation-harness

Word translation between {", ".join(task.languages.values())}. Licence of the words: {task.license}.
Written by `pivots export-lm-eval`; the {metadata["examples"]} worked examples of draw \
{metadata["draw"]} (seed {metadata["seed"]}) stand in every prompt.

    lm_eval --model hf --model_args pretrained=MODEL,add_bos_token=False \\
        --include_path THIS_FOLDER --tasks {",".join(groups)}

Groups (one task a direction, `GROUP_en_fr` and so on; the group's `acc` is the mean over them):

{listed}

The harness runs `{LOADER}.py` of this folder, which only reads the files beside it. `run.json`
names places on the machine that wrote the folder: leave it out where you hand the folder on.

The same numbers as `pivots evaluate` on this draw come out under these conditions:

- `add_bos_token=False`: the evaluation adds no special token, while the harness follows the
  tokenizer, and many put one first.
- `--num_fewshot` is left alone, and no chat template is applied.
- `acc` compares summed log-likelihoods. In the source form all candidates share the answer, so that
  sum and mean per token agree; in the target form compare with the summed form of the evaluation.
- The tokenizer does not merge the prompt's end with the answer's beginning. Where it does, the
  harness scores fewer tokens of the answer than the evaluation (and stops with an error if none is
  left).
"""
