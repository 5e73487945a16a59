"""Settings of the export of the word task for other harnesses."""

from __future__ import annotations

from dataclasses import dataclass

from eval.settings import Form
from mining.common.errors import check_setting


@dataclass(frozen=True)
class ExportLmEvalSettings:
    """Writes the word-translation task as a folder for lm-evaluation-harness.

    The worked examples are those of the evaluation: their number is evaluate.examples, their draws
    come from the run's seed.

    Attributes:
        draw: which draw of worked examples stands in the prompts; the evaluation's first is 0.
        forms: source (the paper's: one answer after ten source words) and target (ten answers after
            one source word).
        max_items: items per direction, at most, the same as evaluate.max_items takes; null takes
            all.
    """

    draw: int = 0
    forms: tuple[Form, ...] = ("source", "target")
    max_items: int | None = None

    def __post_init__(self) -> None:
        check_setting(self, "draw", self.draw >= 0, "at least 0")
        forms_ok = bool(self.forms) and len(set(self.forms)) == len(self.forms)
        check_setting(self, "forms", forms_ok, "source, target or both")
        items_ok = self.max_items is None or self.max_items >= 1
        check_setting(self, "max_items", items_ok, "at least 1, or null")
