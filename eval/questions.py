"""What a model is asked about an item: the candidates, and each one's prompt in every draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.items import Item
from eval.prompts import Encoded, encode_answers
from eval.settings import EvaluateSettings, Form
from mining.common.task import Concept, Task
from mining.common.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """One form of one item: `candidates[0]` is right, the others are wrong.

    `encoded[draw][candidate]`; in the source form the candidates are source words before the right
    answer, in the target form answers after the source word.
    """

    item: Item
    form: Form
    candidates: tuple[str, ...]
    encoded: tuple[tuple[Encoded, ...], ...]

    @property
    def members(self) -> list[Encoded]:
        """All prompts with their answers, draw by draw."""
        return [member for draw in self.encoded for member in draw]

    def key(self) -> str:
        """Hex SHA-256 of every token id and border: equal where a model must say the same."""
        digest = hashlib.sha256()
        numbers = [len(self.encoded), len(self.candidates)]
        for member in self.members:
            numbers += [len(member.ids), member.n_context, *member.ids]
        digest.update(np.array(numbers, dtype="<i8").tobytes())
        return digest.hexdigest()


def make_questions(
    tokenizer: Tokenizer, task: Task, items: Sequence[Item], settings: EvaluateSettings, seed: int
) -> list[Question]:
    """Every item in every form of the settings, item by item; none for identical words."""
    prompts: list[str] = []
    answers: list[str] = []
    asked: list[tuple[Item, Form, list[str]]] = []
    for item in items:
        if item.identical:
            continue
        drawn = [draw_examples(task, item, settings, n, seed) for n in range(settings.draws)]
        for form in settings.forms:
            candidates = _candidates(task, item, form)
            asked.append((item, form, candidates))
            for examples in drawn:
                for word in candidates:
                    source, target = (
                        (word, item.target) if form == "source" else (item.source, word)
                    )
                    prompts.append(
                        task.prompt(item.source_lang, item.target_lang, examples, source)
                    )
                    answers.append(task.answer_text(target))
    encoded = iter(encode_answers(tokenizer, prompts, answers))
    return [
        Question(
            item,
            form,
            tuple(candidates),
            tuple(tuple(next(encoded) for _ in candidates) for _ in range(settings.draws)),
        )
        for item, form, candidates in asked
    ]


def draw_examples(
    task: Task, item: Item, settings: EvaluateSettings, draw: int, seed: int
) -> list[Concept]:
    """The worked examples of an item: its own, or those of its direction (`shared_draws`).

    A concept that stands among its direction's examples would show its own answer, so it is given
    its own draw.
    """
    pair, concept = (item.source_lang, item.target_lang), item.concept
    if settings.shared_draws:
        nobody = Concept("", "", "", dict.fromkeys(task.languages, ""), {})
        shared = task.draw_examples(*pair, nobody, settings.examples, draw, seed)
        if all(example.id != concept.id for example in shared):
            return shared
    return task.draw_examples(*pair, concept, settings.examples, draw, seed)


def _candidates(task: Task, item: Item, form: Form) -> list[str]:
    """The right word, then the wrong ones: for source words, those of the mirrored direction."""
    if form == "source":
        wrong = task.distractors(item.target_lang, item.source_lang, item.concept)
        return [item.source, *wrong]
    return [item.target, *task.distractors(item.source_lang, item.target_lang, item.concept)]
