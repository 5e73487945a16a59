"""Settings of the mining stages: one frozen dataclass a stage, checked when it is made.

Path settings are recorded in manifests by the content they lead to, all others by value.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from mining.common.errors import check_setting
from mining.common.stage import engine_setting, path_setting


@dataclass(frozen=True)
class EngineSettings:
    """Where tasks run. Changes nothing in any result.

    Attributes:
        workers: processes at work at the same time; null means one a core.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        check_setting(
            self, "workers", self.workers is None or self.workers >= 1, "at least 1, or null"
        )

    def worker_count(self) -> int:
        """The number of worker processes to use on this machine."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class CorpusSettings:
    """The documents: JSONL (plain, .gz, .zst) or Parquet files.

    Attributes:
        path: folder or file, local or any fsspec URL; null means the generated world.
        glob: pattern of the files in the folder; null takes every *.jsonl, *.jsonl.gz, *.jsonl.zst,
            *.json.gz and *.parquet.
        languages: the languages to keep, by code; documents in others are dropped (and counted).
            Empty keeps all.
        text_field: field of the document's text; a dot leads into nested objects.
        id_field: field of the document's id, unique in the corpus.
        lang_field: field of its language; null, or a document without it, means it is identified.
        source_field: field of its source; a document without it gets the name of its file.
        group_field: field that documents share which must not be split between training and
            validation, such as the versions of one page in several languages; null for none.
        max_record_bytes: longer records are quarantined by their first 64 KiB, length and hash.
        deduplicate: drop documents whose text stood before, letter by letter.
        min_chars: drop documents shorter than this.
    """

    path: str | None = path_setting()
    glob: str | None = None
    languages: tuple[str, ...] = ()
    text_field: str = "text"
    id_field: str = "id"
    lang_field: str | None = "lang"
    source_field: str = "source"
    group_field: str | None = None
    max_record_bytes: int = 64 << 20
    deduplicate: bool = True
    min_chars: int = 1

    def __post_init__(self) -> None:
        check_setting(self, "max_record_bytes", self.max_record_bytes >= 1 << 10, "at least 1024")
        check_setting(self, "min_chars", self.min_chars >= 1, "at least 1")
        for lang in self.languages:
            check_setting(self, "languages", bool(lang), "no empty code")


@dataclass(frozen=True)
class TokenizerSettings:
    """Trains a SentencePiece model on a sample of the documents, or takes a given tokenizer.

    Attributes:
        path: folder with a tokenizer.json, or a Hugging Face hub id; null trains one.
        revision: revision of the hub id.
        model_type: unigram, bpe, or word (whole words between spaces, no byte fallback).
        vocab_size: number of pieces.
        character_coverage: share of the sample's characters that get a piece of their own.
        byte_fallback: spell other characters as bytes instead of as unknown.
        sample_chars: characters of the sample, shared evenly between the languages.
        max_line_chars: longer lines of text are cut at this length for training.
    """

    path: str | None = path_setting()
    revision: str | None = None
    model_type: Literal["unigram", "bpe", "word"] = "unigram"
    vocab_size: int = 32000
    character_coverage: float = 0.9995
    byte_fallback: bool = True
    sample_chars: int = 20_000_000
    max_line_chars: int = 2000

    def __post_init__(self) -> None:
        check_setting(self, "vocab_size", self.vocab_size >= 8, "at least 8")
        check_setting(
            self, "character_coverage", 0.9 <= self.character_coverage <= 1.0, "between 0.9 and 1"
        )
        check_setting(self, "sample_chars", self.sample_chars >= 1000, "at least 1000")
        check_setting(self, "max_line_chars", self.max_line_chars >= 16, "at least 16")


@dataclass(frozen=True)
class TokenizeSettings:
    """Turns documents into token shards.

    Attributes:
        words: also segment the text into words (ICU) and write word-id shards.
        max_words: size of the word vocabulary, by document frequency; rarer words get the id 0.
        word_min_doc_freq: words in fewer documents get the id 0.
    """

    words: bool = False
    max_words: int = 1_000_000
    word_min_doc_freq: int = 2

    def __post_init__(self) -> None:
        check_setting(self, "max_words", self.max_words >= 1, "at least 1")
        check_setting(self, "word_min_doc_freq", self.word_min_doc_freq >= 1, "at least 1")


@dataclass(frozen=True)
class CountSettings:
    """Counts in how many documents each pair of items stands together, exactly.

    Attributes:
        unit: items are token ids, or word ids (needs tokenize.words).
        top_items: number of items: the ones in the most documents, ties by id.
        sources: count only documents of these sources; empty takes all.
        map_tasks: pieces the shards are divided into; null means one a worker.
    """

    unit: Literal["token", "word"] = "token"
    top_items: int = 8192
    sources: tuple[str, ...] = ()
    map_tasks: int | None = engine_setting()

    def __post_init__(self) -> None:
        check_setting(self, "top_items", 2 <= self.top_items <= 1 << 17, "between 2 and 131072")
        check_setting(
            self, "map_tasks", self.map_tasks is None or self.map_tasks >= 1, "at least 1, or null"
        )


@dataclass(frozen=True)
class WordsSettings:
    """Finds the words of a task in the documents (METHOD sections 2 and 3).

    Attributes:
        case_sensitive: tell upper from lower case when words are looked for.
        sample_documents: documents a word's token shares are taken from, at most; also the number
            of background documents.
        pivots_per_pair: tokens kept for each pair of words.
        min_npmi: a pair's pivots have at least this normalised PMI with both words.
        max_doc_share: tokens in more than this share of all documents are stop-words, never pivots.
        keep_punctuation: let tokens without any letter be pivots.
    """

    case_sensitive: bool = False
    sample_documents: int = 2000
    pivots_per_pair: int = 100
    min_npmi: float = 0.0
    max_doc_share: float = 0.2
    keep_punctuation: bool = False

    def __post_init__(self) -> None:
        check_setting(self, "sample_documents", self.sample_documents >= 1, "at least 1")
        check_setting(self, "pivots_per_pair", self.pivots_per_pair >= 1, "at least 1")
        check_setting(self, "min_npmi", -1 <= self.min_npmi <= 1, "between -1 and 1")
        check_setting(self, "max_doc_share", 0 < self.max_doc_share <= 1, "above 0, at most 1")


@dataclass(frozen=True)
class PivotsSettings:
    """Chooses the pivot set from the counts (METHOD section 4).

    Attributes:
        definition: degree (many strong edges, any language), breadth (strong edges to at least two
            languages) or specificity (one link that stands out, in at least two languages).
        language_share: an item belongs to the language that holds this share of its documents.
        min_doc_freq: items in fewer documents are never pivots.
        edge_npmi: an edge is a pair with at least this NPMI (degree, breadth, the reach columns).
        min_degree: degree: a pivot has more edges than this.
        min_reach: breadth: a pivot has at least this many edges to each of two languages.
        rank: specificity: the gap is between the strongest and the (rank + 1)-th strongest NPMI.
        min_gap: specificity: the second-largest gap over the languages is at least this.
        neighbours: strongest neighbours per language that the table names for each item.
        require_letters: items without any letter are never pivots.
    """

    definition: Literal["degree", "breadth", "specificity"] = "specificity"
    language_share: float = 0.9
    min_doc_freq: int = 20
    edge_npmi: float = 0.2
    min_degree: int = 50
    min_reach: int = 3
    rank: int = 5
    min_gap: float = 0.06
    neighbours: int = 5
    require_letters: bool = True

    def __post_init__(self) -> None:
        check_setting(
            self, "language_share", 0.5 < self.language_share <= 1, "above 0.5, at most 1"
        )
        check_setting(self, "min_doc_freq", self.min_doc_freq >= 1, "at least 1")
        check_setting(self, "edge_npmi", -1 <= self.edge_npmi <= 1, "between -1 and 1")
        check_setting(self, "min_degree", self.min_degree >= 0, "at least 0")
        check_setting(self, "min_reach", self.min_reach >= 1, "at least 1")
        check_setting(self, "rank", 1 <= self.rank <= 100, "between 1 and 100")
        check_setting(self, "min_gap", 0 <= self.min_gap <= 2, "between 0 and 2")
        check_setting(self, "neighbours", 1 <= self.neighbours <= 50, "between 1 and 50")


@dataclass(frozen=True)
class ScoreSettings:
    """Scores each document by its share of pivots.

    Attributes:
        attribute: name of the score in the Dolma-style attribute files.
    """

    attribute: str = "pivot_proportion"

    def __post_init__(self) -> None:
        check_setting(self, "attribute", bool(self.attribute), "a name")


Arm = Literal["original", "random", "pivot", "low-pivot"]
ARMS: tuple[Arm, ...] = ("original", "random", "pivot", "low-pivot")


@dataclass(frozen=True)
class MixSettings:
    """Chooses the documents of each arm to one budget (METHOD section 4).

    Budgets count tokens with each document's end-of-text token. The last document of a language is
    cut where its budget ends, so that the arms have the same number of tokens to the token.

    Attributes:
        arms: original (natural shares), random, pivot (highest proportions), low-pivot (lowest).
        budget_tokens: tokens of an arm in all.
        languages: share of the budget for each language, but the fill-up language, which takes the
            rest. Empty shares the budget evenly between all languages.
        fill_language: the language that fills up what the shares leave over; always by random draw.
        max_pool_share: no arm draws more than this share of a language's tokens.
        always_sources: documents of these sources stand in every arm, beside the budget.
        min_document_tokens: shorter documents are never drawn.
        max_document_tokens: longer documents are cut to this; null for no limit.
        validation_share: share of the groups of documents kept for validation.
        max_validation_tokens: tokens kept for validation per language, at most.
    """

    arms: tuple[Arm, ...] = ARMS
    budget_tokens: int = 1_000_000
    languages: dict[str, float] = field(default_factory=dict)
    fill_language: str | None = "en"
    max_pool_share: float = 0.4
    always_sources: tuple[str, ...] = ()
    min_document_tokens: int = 16
    max_document_tokens: int | None = None
    validation_share: float = 0.02
    max_validation_tokens: int = 50_000

    def __post_init__(self) -> None:
        check_setting(self, "arms", len(self.arms) >= 1, "at least one arm")
        check_setting(self, "arms", len(set(self.arms)) == len(self.arms), "no arm twice")
        check_setting(self, "budget_tokens", self.budget_tokens >= 1, "at least 1")
        total = sum(self.languages.values())
        shares_ok = all(share > 0 for share in self.languages.values()) and total <= 1 + 1e-9
        check_setting(self, "languages", shares_ok, "positive shares of at most 1 in all")
        check_setting(self, "max_pool_share", 0 < self.max_pool_share <= 1, "above 0, at most 1")
        check_setting(self, "min_document_tokens", self.min_document_tokens >= 1, "at least 1")
        check_setting(
            self,
            "max_document_tokens",
            self.max_document_tokens is None
            or self.max_document_tokens >= self.min_document_tokens,
            "at least min_document_tokens, or null",
        )
        check_setting(
            self, "validation_share", 0 < self.validation_share < 0.5, "between 0 and 0.5"
        )
        check_setting(self, "max_validation_tokens", self.max_validation_tokens >= 1, "at least 1")
