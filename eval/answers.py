"""Answers to questions about items: from a store of what was computed before, else by the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers

from eval.items import Item
from eval.loss_store import LossStore
from eval.models import load_model, model_tokenizer, resolve_device
from eval.questions import Question, make_questions
from eval.scoring import SCORING_VERSION, Scorer, follows_trees
from eval.settings import EvaluateSettings
from eval.stats import Floats
from mining.common.logs import log
from mining.common.task import Task

# A question with its log p, float64 [n_draws, n_candidates].
Answered = tuple[Question, Floats]


class Asker:
    """Asks one model (`source`, a folder or hub id; `name` for people), loaded when first needed.

    `device` takes the place of the settings' own.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        seed: int,
        task: Task,
        source: str,
        name: str,
        device: str,
    ) -> None:
        self.settings, self.seed, self.task = replace(settings, device=device), seed, task
        self.source, self.name = source, name
        self.tokenizer = model_tokenizer(source, settings.revision)
        self._scorer: Scorer | None = None

    def description(self, identity: Any) -> dict[str, Any]:
        """All that a likelihood depends on beside token ids; `identity` is the model's content."""
        place, dtype = resolve_device(self.settings.device, self.settings.dtype)
        return {
            "model": identity,
            "dtype": str(dtype),
            "device": place.type,
            # Forced on a model that does not follow trees, it gives other numbers.
            "share_prefixes": self.settings.share_prefixes,
            "scoring": SCORING_VERSION,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def ask(self, items: Sequence[Item], store: LossStore) -> list[Answered]:
        """Every question about the items with its answer; what the store lacks is added to it."""
        questions = make_questions(self.tokenizer, self.task, items, self.settings, self.seed)
        keys = [question.key() for question in questions]
        missing = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if store.get(key) is None
        }
        if missing:
            members = [member for question in missing.values() for member in question.members]
            log_probs = self._load().log_probs(members)
            ends = np.cumsum([len(question.members) for question in missing.values()])
            store.add(dict(zip(missing, np.split(log_probs, ends[:-1]), strict=True)))
        answered = []
        for key, question in zip(keys, questions, strict=True):
            values = store.get(key)
            assert values is not None
            answered.append((question, values.reshape(len(question.encoded), -1)))
        return answered

    def _load(self) -> Scorer:
        if self._scorer is None:
            s = self.settings
            model = load_model(self.source, s.revision, s.device, s.dtype, self.name)
            branches = s.share_prefixes == "on" or (
                s.share_prefixes == "auto" and follows_trees(model)
            )
            self._scorer = Scorer(model, branches, s.batch_tokens)
            how = "what prompts share is computed once" if branches else "prompts one by one"
            log.info("%s: %s, batches of %d tokens", self.name, how, self._scorer.batch_tokens)
        return self._scorer
