"""From log-probabilities to the rows that `evaluate` writes: Score, ranks, and every candidate's.

Likelihood of an answer of N tokens and B bytes in UTF-8, from its log p (METHOD section 1, and two
other ways of normalising): token mean exp(mean over draws of log p / N), the paper's; `bytes`
exp(mean of log p / B); `sum` exp(mean of log p).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from eval.items import DocFreq, Item
from eval.questions import Question
from eval.stats import Floats
from eval.surface import form_difficulty, share_script

KEY_FIELDS = [
    ("concept", pa.string()),
    ("source_lang", pa.string()),
    ("target_lang", pa.string()),
]


def _choice_fields(prefix: str) -> list[tuple[str, pa.DataType]]:
    fields = [(f"{prefix}score", pa.float64()), (f"{prefix}correct", pa.bool_())]
    fields.append((f"{prefix}rank", pa.int64()))
    for name in ("bytes", "sum"):
        fields += [(f"{prefix}score_{name}", pa.float64()), (f"{prefix}rank_{name}", pa.int64())]
    return fields


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
        ("shared_script", pa.bool_()),
        ("doc_freq", pa.int64()),
        ("form_difficulty", pa.float64()),
        ("n_distractors", pa.int64()),
        ("n_draws", pa.int64()),
        ("p_gold", pa.float64()),
        ("loss", pa.float64()),
        *_choice_fields(""),
        ("n_target_distractors", pa.int64()),
        *_choice_fields("target_"),
    ]
)
CANDIDATE_SCHEMA = pa.schema(
    [
        *KEY_FIELDS,
        ("form", pa.string()),
        ("position", pa.int64()),
        ("word", pa.string()),
        ("n_tokens", pa.list_(pa.int64())),
        ("n_bytes", pa.int64()),
        ("log_probs", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Choice:
    """The right candidate against the wrong ones: Score, and its 1-based rank, ties against it."""

    score: float
    rank: int


def choose(log_likelihoods: Floats) -> Choice | None:
    """Score and rank of candidate 0 among all; None where there is nothing wrong to choose.

    Ranks compare logarithms, since the likelihood of a long answer may underflow.
    """
    if len(log_likelihoods) < 2:
        return None
    gold, *wrong = np.exp(log_likelihoods)
    rank = 1 + int((log_likelihoods[1:] >= log_likelihoods[0]).sum())
    return Choice(float(gold - np.mean(wrong)), rank)


def item_row(
    item: Item, questions: Sequence[tuple[Question, Floats]], doc_freq: DocFreq | None
) -> dict[str, Any]:
    """A row of ITEM_SCHEMA; each question comes with its log p, float64 [n_draws, n_candidates].

    An item without questions (identical words) stays without scores.
    """
    concept, langs = item.concept, (item.source_lang, item.target_lang)
    counts = [None if doc_freq is None else doc_freq.get((concept.id, lang)) for lang in langs]
    row: dict[str, Any] = {
        **_keys(item),
        "pos": concept.pos,
        "class": concept.cls,
        "group": concept.group,
        "source": item.source,
        "target": item.target,
        "identical": item.identical,
        "shared_script": share_script(item.source, item.target),
        "doc_freq": None if None in counts else min(n for n in counts if n is not None),
        "n_distractors": 0,
        "n_draws": 0,
    }
    for question, log_probs in questions:
        row |= _question_columns(question, log_probs)
    return row


def candidate_rows(question: Question, log_probs: Floats) -> Iterable[dict[str, Any]]:
    """Rows of CANDIDATE_SCHEMA; `log_probs` float64 [n_draws, n_candidates]."""
    n_bytes = _answer_bytes(question)
    for position, word in enumerate(question.candidates):
        yield {
            **_keys(question.item),
            "form": question.form,
            "position": position,
            "word": word,
            "n_tokens": [len(draw[position].answer) for draw in question.encoded],
            "n_bytes": int(n_bytes[position]),
            "log_probs": log_probs[:, position].tolist(),
        }


def log_likelihoods(question: Question, log_probs: Floats) -> Mapping[str, Floats]:
    """log P of each candidate float64 [n_candidates], by normalisation: "", "bytes", "sum"."""
    n_tokens = np.array([[len(m.answer) for m in draw] for draw in question.encoded])
    return {
        "": (log_probs / n_tokens).mean(axis=0),
        "bytes": log_probs.mean(axis=0) / _answer_bytes(question),
        "sum": log_probs.mean(axis=0),
    }


def _question_columns(question: Question, log_probs: Floats) -> dict[str, Any]:
    found = log_likelihoods(question, log_probs)
    n_wrong = len(question.candidates) - 1
    if question.form == "source":
        prefix = ""
        row: dict[str, Any] = {
            "n_distractors": n_wrong,
            "n_draws": len(question.encoded),
            "p_gold": float(np.exp(found[""][0])),
            "loss": -float(found[""][0]),
            "form_difficulty": form_difficulty(question.candidates, question.item.target),
        }
    else:
        prefix, row = "target_", {"n_target_distractors": n_wrong}
    for name, values in found.items():
        if (choice := choose(values)) is not None:
            suffix = f"_{name}" if name else ""
            row[f"{prefix}score{suffix}"] = choice.score
            row[f"{prefix}rank{suffix}"] = choice.rank
            if not name:
                row[f"{prefix}correct"] = choice.rank == 1
    return row


def _answer_bytes(question: Question) -> Floats:
    """Bytes in UTF-8 of each candidate's answer, float64 [n_candidates]."""
    if question.form == "source":
        answers = [question.item.target] * len(question.candidates)
    else:
        answers = list(question.candidates)
    return np.array([len(answer.encode()) for answer in answers], dtype=np.float64)


def _keys(item: Item) -> dict[str, str]:
    return {
        "concept": item.concept.id,
        "source_lang": item.source_lang,
        "target_lang": item.target_lang,
    }
