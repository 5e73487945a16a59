"""The word-translation score of a model in memory, for a look on the way of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.items import plan_items
from eval.measures import item_row
from eval.models import wrap_model
from eval.questions import make_questions
from eval.scoring import Scorer
from eval.settings import EvaluateSettings
from mining.common.errors import InputError
from mining.common.task import read_task, task_files
from mining.common.tokenizer import Tokenizer


class LiveScore:
    """Scores some items of each direction of a task: source form, one draw for a direction.

    `files` are what the figures depend on beside the model and the settings.
    """

    def __init__(self, settings: EvaluateSettings, task: Path, max_items: int, seed: int) -> None:
        """`max_items` are the items of a direction; the rest is as `settings` say."""
        self._settings = replace(
            settings, draws=1, shared_draws=True, forms=("source",), max_items=max_items
        )
        self.files: Mapping[str, Path] = task_files(task)
        self._task, self._seed, self._path = read_task(task), seed, task

    def __call__(self, net: Any, tokenizer: Tokenizer) -> dict[str, float]:
        """score and accuracy, the means over the items; `net` is a transformers causal model.

        Leaves `net` in evaluation mode.
        """
        directions = plan_items(self._task, self._settings.max_items, None, None).values()
        items = [item for direction in directions for item in direction]
        asked = make_questions(tokenizer, self._task, items, self._settings, self._seed)
        # One without wrong candidates has no score.
        questions = [question for question in asked if len(question.candidates) > 1]
        if not questions:
            raise InputError(
                f"{self._path}: no item to score while training; set train.score_every to null"
            )
        scorer = Scorer(wrap_model(net, tokenizer, "live"), False, self._settings.batch_tokens)
        answers = scorer.log_probs([member for one in questions for member in one.members])
        ends = np.cumsum([len(question.members) for question in questions])
        rows = [
            item_row(one.item, [(one, part.reshape(len(one.encoded), -1))], None)
            for one, part in zip(questions, np.split(answers, ends[:-1]), strict=True)
        ]
        return {
            # Scores of a young model are tiny.
            "score": float(f"{np.mean([row['score'] for row in rows]):.6g}"),
            "accuracy": round(float(np.mean([row["correct"] for row in rows])), 6),
            "items": len(rows),
        }
