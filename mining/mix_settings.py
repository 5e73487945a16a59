"""Settings of the mix stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mining.common.errors import check_setting

Arm = Literal[
    "original", "random", "pivot", "low-pivot", "random-twice", "oracle", "broken-pivot"
]  # fmt: skip
ARMS: tuple[Arm, ...] = ("original", "random", "pivot", "low-pivot")
# Those that know what a generated world planted (mining.planted).
PLANTED_ARMS: tuple[Arm, ...] = ("oracle", "broken-pivot")
# Those that `match` leaves as they are.
UNMATCHED_ARMS: tuple[Arm, ...] = ("original", "random-twice")


@dataclass(frozen=True)
class MixSettings:
    """Chooses the documents of each arm to one budget (METHOD section 4); see docs/MIXES.md.

    Budgets count tokens with each document's end-of-text token. The last document of a language is
    cut where its budget ends, so that the arms have the same number of tokens to the token.

    Attributes:
        arms: original (natural shares), random, pivot (highest proportions), low-pivot (lowest),
            random-twice (random with twice the budget, to say what a gain is worth in tokens).
            For a generated world also oracle (highest proportions of what was planted) and
            broken-pivot (the pivot arm's documents, each planted pivot replaced by another of its
            topic, by one permutation a language).
        budget_tokens: tokens of an arm in all.
        languages: share of the budget for each language, but the fill-up language, which takes the
            rest. Where this and language_tokens are empty, all languages share it evenly.
        language_tokens: the same in tokens; a language stands in one of the two.
        fill_language: the language that fills up what the shares leave over; always by random draw.
        top_share: the pivot arm draws at random among the documents with the highest proportions
            that hold this share of their language's tokens, low-pivot among those with the lowest;
            null takes the highest (lowest) first.
        min_proportion: the pivot arm draws at random among the documents of at least this
            proportion, low-pivot among those below it; in place of top_share.
        match: random and low-pivot take as many tokens as the pivot arm of each source, of each
            length (powers of two, in tokens), or of each source and length; empty matches on
            language only. max_pool_share then also holds for each of these groups.
        max_pool_share: no arm draws more than this share of a language's tokens that may be drawn.
        max_repeats: how often a document may stand in an arm, where max_pool_share leaves too few.
        max_source_share: no source gives more than this share of a language's tokens in an arm;
            null for no limit.
        always_sources: documents of these sources stand in every arm, beside the budget.
        min_document_tokens: shorter documents are never drawn.
        max_document_tokens: longer documents are cut to this; null for no limit.
        validation_share: share of the groups of documents kept for validation.
        max_validation_tokens: tokens kept for validation per language, at most.
        export: also write each arm's documents with their text: jsonl (gzip), parquet.
    """

    arms: tuple[Arm, ...] = ARMS
    budget_tokens: int = 1_000_000
    languages: dict[str, float] = field(default_factory=dict)
    language_tokens: dict[str, int] = field(default_factory=dict)
    fill_language: str | None = "en"
    top_share: float | None = None
    min_proportion: float | None = None
    match: tuple[Literal["source", "length"], ...] = ()
    max_pool_share: float = 0.4
    max_repeats: int = 1
    max_source_share: float | None = None
    always_sources: tuple[str, ...] = ()
    min_document_tokens: int = 16
    max_document_tokens: int | None = None
    validation_share: float = 0.02
    max_validation_tokens: int = 50_000
    export: tuple[Literal["jsonl", "parquet"], ...] = ()

    def __post_init__(self) -> None:
        def check(key: str, ok: bool, expected: str) -> None:
            check_setting(self, key, ok, expected)

        check("arms", len(self.arms) >= 1, "at least one arm")
        for key in ("arms", "match", "export"):
            values = getattr(self, key)
            check(key, len(set(values)) == len(values), "none of them twice")
        if "broken-pivot" in self.arms:
            check("arms", "pivot" in self.arms, "the arm pivot beside broken-pivot")
            check("export", not self.export, "none, as the broken-pivot arm has no text")
        check("budget_tokens", self.budget_tokens >= 1, "at least 1")
        total = sum(self.languages.values())
        shares_ok = all(share > 0 for share in self.languages.values()) and total <= 1 + 1e-9
        check("languages", shares_ok, "positive shares of at most 1 in all")
        self._check_tokens(check_total=total)
        for key in ("top_share", "min_proportion", "max_source_share"):
            value = getattr(self, key)
            check(key, value is None or 0 < value <= 1, "above 0, at most 1, or null")
        both = self.top_share is not None and self.min_proportion is not None
        check("min_proportion", not both, "null, as top_share is set")
        check("match", not self.match or "pivot" in self.arms, "none, or the arm pivot in arms")
        check("max_pool_share", 0 < self.max_pool_share <= 1, "above 0, at most 1")
        check("max_repeats", 1 <= self.max_repeats <= 1000, "between 1 and 1000")
        check("min_document_tokens", self.min_document_tokens >= 1, "at least 1")
        longest = self.max_document_tokens
        longest_ok = longest is None or longest >= self.min_document_tokens
        check("max_document_tokens", longest_ok, "at least min_document_tokens, or null")
        check("validation_share", 0 < self.validation_share < 0.5, "between 0 and 0.5")
        check("max_validation_tokens", self.max_validation_tokens >= 1, "at least 1")

    def _check_tokens(self, check_total: float) -> None:
        tokens = self.language_tokens
        twice = sorted(set(tokens) & set(self.languages))
        expected = f"languages that have no share (found both for {', '.join(twice)})"
        check_setting(self, "language_tokens", not twice, expected)
        at_least = all(n >= 1 for n in tokens.values())
        check_setting(self, "language_tokens", at_least, "at least 1 token of each language")
        left = self.budget_tokens - round(check_total * self.budget_tokens)
        fits = sum(tokens.values()) <= left
        room = f"at most {left} in all (what the shares leave of budget_tokens)"
        check_setting(self, "language_tokens", fits, room)
