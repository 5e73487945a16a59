"""Settings of the export of the word task for other harnesses."""

from __future__ import annotations

from dataclasses import dataclass

from eval.settings import Form
from mining.common.errors import check_setting


@dataclass(frozen=True)
class ExportLmEvalSettings:
    """Writes the word-translation task as a folder for lm-evaluation-harness.

    Items and worked examples are those of the evaluation: evaluate.examples, max_items and
    min_doc_freq hold here too, and the draws come from the run's seed.

    Attributes:
        draw: which draw of worked examples stands in the prompts; the evaluation's first is 0.
        forms: source (the paper's: one answer after ten source words) and target (ten answers after
            one source word).
    """

    draw: int = 0
    forms: tuple[Form, ...] = ("source", "target")

    def __post_init__(self) -> None:
        check_setting(self, "draw", self.draw >= 0, "at least 0")
        forms_ok = bool(self.forms) and len(set(self.forms)) == len(self.forms)
        check_setting(self, "forms", forms_ok, "source, target or both")
