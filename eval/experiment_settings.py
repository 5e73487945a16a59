"""Settings of `pivots experiment`; imports nothing heavy, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass

from mining.common.errors import check_setting


@dataclass(frozen=True)
class ExperimentSettings:
    """Compares the arms of a generated world over seeds, and writes a page about it.

    Attributes:
        title: heading of the page.
        confidence: coverage of the intervals over seeds.
        power: probability with which an effect should be found, for the number of seeds it takes.
    """

    title: str = "Do semantic pivots help? A controlled world"
    confidence: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        check_setting(self, "title", bool(self.title.strip()), "a heading")
        check_setting(self, "confidence", 0.5 < self.confidence < 1, "between 0.5 and 1")
        check_setting(self, "power", 0.05 < self.power < 1, "between 0.05 and 1")
