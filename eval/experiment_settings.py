"""Settings of `pivots experiment`; imports nothing heavy, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from mining.common.errors import check_setting


@dataclass(frozen=True)
class ExperimentSettings:
    """Compares the arms of a mix over seeds, and writes a page about it.

    Attributes:
        title: heading of the page.
        confidence: coverage of the intervals over seeds.
        power: probability with which an effect should be found, for the number of seeds it takes.
        vary: settings to vary, one at a time, for curves of dose and response: the setting's name
            (world.concepts_per_pivot, mix.budget_tokens, world.pivot_beta ...) -> its values. Each
            value is all seeds once more, with the arms of the primary endpoints.
    """

    title: str = "Do semantic pivots help? A controlled world"
    confidence: float = 0.95
    power: float = 0.8
    vary: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_setting(self, "title", bool(self.title.strip()), "a heading")
        check_setting(self, "confidence", 0.5 < self.confidence < 1, "between 0.5 and 1")
        check_setting(self, "power", 0.05 < self.power < 1, "between 0.05 and 1")
        given = all(values for values in self.vary.values())
        check_setting(self, "vary", given, "at least one value for each setting")
