"""Word-translation scoring: shared prefixes against full prompts, on a model of about 100 M.

    python -m launch.bench.scoring

The other way is the reference's: for each draw of examples ten full prompts in one padded batch,
logits at every position. Target 6 of the project: ten times, equal within 1e-4 in float32.

The prompts are the shipped task's, of one direction, source form. A byte-level BPE with 50,000
entries, trained on documents in the task's four languages, needs 1.9 tokens for one of its words;
the stand-in here is trained on the task's own prompts until it needs as many, or take a real one
with --tokenizer. The model has random weights and a vocabulary of 50,000.

Beside the ratio, the last line says what each step gives: `answers_only` decodes nothing but the
answers' positions (batches of ten prompts, as the reference), `shared_prefix` computes what the
prompts share once (an item and draw at a time), `batched` is what `evaluate` does, and
`shared_draws` the same with one set of worked examples for all items of a direction. Peak memory is
what resident memory rises by while a way runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.items import select_items
from eval.models import LanguageModel, wrap_model
from eval.prompts import Encoded
from eval.questions import Question, make_questions
from eval.scoring import Scorer
from eval.settings import EvaluateSettings
from launch.bench.timing import medians, memory_status, report
from launch.pipeline import DEFAULT_TASK, find_task
from mining.common.task import Task, read_task
from mining.common.tokenizer import Tokenizer, load_tokenizer

TARGET = 10.0
VOCABULARY = 50_000
TOKENS_PER_WORD = 1.9
Way = Callable[[], Sequence[float]]


def make_tokenizer(task: Task, path: str | None) -> Tokenizer:
    """The tokenizer at a path, else the stand-in."""
    if path is not None:
        return load_tokenizer(Path(path))
    words = [" " + word for concept in task.concepts for word in concept.words.values()]
    prompts = [
        task.prompt(*pair, [concept], concept.words[pair[0]])
        for pair in task.directions()
        for concept in task.concepts[:50]
    ]
    for size in range(500, VOCABULARY, 500):
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        engine.train_from_iterator(
            words + prompts,
            trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
        )
        lengths = [len(encoding.ids) for encoding in engine.encode_batch_fast(words)]
        if np.mean(lengths) <= TOKENS_PER_WORD:
            break
    return Tokenizer("", 0, VOCABULARY, frozenset(), engine)


def make_model(tokenizer: Tokenizer) -> LanguageModel:
    """A Llama of 104.6 M parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=8,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=512,
    )
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return wrap_model(network, tokenizer, "bench")


def ask(task: Task, tokenizer: Tokenizer, n_items: int, shared_draws: bool) -> list[Question]:
    """Items of one direction in source form, one draw each."""
    settings = EvaluateSettings(draws=1, forms=("source",), shared_draws=shared_draws)
    pair = task.directions()[0]
    items = [item for item in select_items(task, *pair, None) if not item.identical]
    # From all over the task.
    order = np.random.default_rng(0).permutation(len(items))[:n_items]
    return make_questions(tokenizer, task, [items[i] for i in order], settings, 0)


@torch.inference_mode()
def reference(model: LanguageModel, questions: Sequence[Question]) -> list[float]:
    """log p of every answer, the reference's way."""
    found = []
    for question in questions:
        members = question.members
        width = max(len(member.ids) for member in members)
        ids = torch.zeros(len(members), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, member in enumerate(members):
            ids[row, : len(member.ids)] = torch.tensor(member.ids)
            mask[row, : len(member.ids)] = 1
        logs = torch.log_softmax(model.net(input_ids=ids, attention_mask=mask).logits, dim=-1)
        for row, member in enumerate(members):
            places = range(member.n_context, len(member.ids))
            found.append(sum(float(logs[row, place - 1, member.ids[place]]) for place in places))
    return found


def by_question(scorer: Scorer, questions: Sequence[Question]) -> list[float]:
    """log p of every answer, an item and draw at a time."""
    return [x for question in questions for x in scorer.log_probs(question.members)]


def ways(
    model: LanguageModel, questions: Sequence[Question], shared: Sequence[Question]
) -> dict[str, Way]:
    """The ways to compare; all but the last on `questions`."""
    plain, tree = Scorer(model, False, None), Scorer(model, True, None)
    return {
        "reference": lambda: reference(model, questions),
        "answers_only": lambda: by_question(plain, questions),
        "shared_prefix": lambda: by_question(tree, questions),
        "batched": lambda: tree.log_probs(_members(questions)).tolist(),
        "shared_draws": lambda: tree.log_probs(_members(shared)).tolist(),
    }


def _members(questions: Sequence[Question]) -> list[Encoded]:
    return [member for question in questions for member in question.members]


def with_peak(way: Way) -> tuple[npt.NDArray[np.float64], int]:
    """What a way finds, and how far resident memory rises while it runs, in MiB (Linux)."""
    # Sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_status("VmRSS")
    values = np.array(way())
    return values, max(0, memory_status("VmHWM") - before) // 1024


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=8, help="items, each with one draw")
    parser.add_argument("--shared-items", type=int, default=128, help="items for shared_draws")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", default=DEFAULT_TASK)
    parser.add_argument("--tokenizer", help="folder or file of a tokenizer.json")
    options = parser.parse_args()
    task = read_task(find_task(options.task))
    tokenizer = make_tokenizer(task, options.tokenizer)
    questions = ask(task, tokenizer, options.items, shared_draws=False)
    shared = ask(task, tokenizer, options.shared_items, shared_draws=True)
    model = make_model(tokenizer)
    found = ways(model, questions, shared)
    measure(options, model, found, questions, shared)


def measure(
    options: argparse.Namespace,
    model: LanguageModel,
    found: dict[str, Way],
    questions: Sequence[Question],
    shared: Sequence[Question],
) -> None:
    """Compare all ways and print the last line."""
    # The frugal ways first: what the allocator keeps of a greedy one would hide what they take.
    first = {name: with_peak(way) for name, way in reversed(found.items())}
    some = shared[:2]
    expected = dict.fromkeys(found, first["reference"][0])
    expected["shared_draws"] = np.array(reference(model, some))
    differences = {
        name: float(np.abs(values[: len(expected[name])] - expected[name]).max())
        for name, (values, _) in first.items()
    }
    worst = max(differences.values())
    assert worst < 1e-4, f"the ways differ: {differences}"
    seconds = medians(found, options.repeats)
    # Seconds of the reference for as many prompt tokens as the shared draws have.
    scale = _tokens(shared) / _tokens(questions)
    report(
        "scoring",
        seconds["reference"] / seconds["batched"],
        TARGET,
        gain_of_decoding_answers_only=_ratio(seconds, "reference", "answers_only"),
        gain_of_shared_prefix=_ratio(seconds, "answers_only", "shared_prefix"),
        gain_of_batching=_ratio(seconds, "shared_prefix", "batched"),
        shared_draws_ratio=round(seconds["reference"] * scale / seconds["shared_draws"], 2),
        parameters=sum(p.numel() for p in model.net.parameters()),
        items=len(questions),
        items_shared_draws=len(shared),
        prompt_tokens=round(_tokens(questions) / len(_members(questions)), 1),
        largest_difference=worst,
        threads=torch.get_num_threads(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        peak_mib_above_model={name: first[name][1] for name in found},
    )


def _ratio(seconds: dict[str, float], slow: str, fast: str) -> float:
    return round(seconds[slow] / seconds[fast], 2)


def _tokens(questions: Sequence[Question]) -> int:
    return sum(len(member.ids) for member in _members(questions))


if __name__ == "__main__":
    main()
