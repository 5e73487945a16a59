"""Settings of the report stage; imports nothing heavy, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass

from mining.common.errors import check_setting


@dataclass(frozen=True)
class ReportSettings:
    """Writes one self-contained HTML page about a run, and its figures as PNG and SVG.

    Attributes:
        title: heading of the page.
        candidate: the arm that the answer is about.
        baseline: the arm it is compared with.
        top_pivots: pivots in the table, by falling statistic.
        examples: translations shown right, and as many shown wrong.
        max_points: points of a figure, at most (drawn by a hash); the statistics use all.
        min_document_tokens: shorter documents are left out of the list of pivot-rich documents.
        bootstrap_samples: resamples behind each interval.
        confidence: coverage of the intervals.
    """

    title: str = "Semantic pivots"
    candidate: str = "pivot"
    baseline: str = "random"
    top_pivots: int = 50
    examples: int = 8
    max_points: int = 2400
    min_document_tokens: int = 100
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_setting(self, "title", bool(self.title.strip()), "a heading")
        check_setting(self, "candidate", bool(self.candidate), "the name of an arm")
        check_setting(self, "baseline", self.baseline != self.candidate, "another arm")
        check_setting(self, "top_pivots", 1 <= self.top_pivots <= 1000, "between 1 and 1000")
        check_setting(self, "examples", 0 <= self.examples <= 100, "between 0 and 100")
        check_setting(self, "max_points", 10 <= self.max_points <= 10_000, "between 10 and 10000")
        check_setting(self, "min_document_tokens", self.min_document_tokens >= 1, "at least 1")
        check_setting(
            self, "bootstrap_samples", 100 <= self.bootstrap_samples <= 100_000, "100 to 100000"
        )
        check_setting(self, "confidence", 0.5 < self.confidence < 1, "between 0.5 and 1")
