"""What tracing needs: the model with its parts, and what to look for."""

from __future__ import annotations

from dataclasses import dataclass

from eval.lens_parts import LensParts
from eval.models import LanguageModel
from eval.settings import TraceSettings
from eval.trace_items import PairPivots
from eval.tuned_lens import Translators
from eval.vocabularies import Vocabularies
from mining.common.task import Task


@dataclass(frozen=True)
class Tracer:
    """A model and a task; `translators` make the lens a tuned one, None leaves it plain."""

    model: LanguageModel
    parts: LensParts
    task: Task
    pivots: PairPivots | None
    vocabularies: Vocabularies
    translators: Translators | None
    settings: TraceSettings
    seed: int
