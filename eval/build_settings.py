"""Settings of `build-task`, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mining.common.errors import check_setting
from mining.common.secret_words import refuse_secret_urls
from mining.common.stage import path_setting

# Columns of a table of concepts, next to those of the languages.
CONCEPT_COLUMNS = ("id", "pos", "class", "group", "example")


@dataclass(frozen=True)
class LexiconSource:
    """One file of words.

    Attributes:
        path: the file, plain or .gz.
        format: pairs (two columns, MUSE's layout), table (header source, target, pos, sense),
            cedict (CC-CEDICT), wiktextract (JSON lines), concepts (a ready list: id, pos, class and
            a column for each language); auto looks at the first line.
        source_lang: code of the headwords' language; null takes it from a name like en-de.txt.
        target_lang: code of the translations' language; null likewise (Wiktextract: of the glosses,
            en).
    """

    path: str = field(metadata={"recorded": False})
    format: Literal["auto", "pairs", "table", "cedict", "wiktextract", "concepts"] = "auto"
    source_lang: str | None = None
    target_lang: str | None = None

    def __post_init__(self) -> None:
        check_setting(self, "path", bool(self.path), "a file")


@dataclass(frozen=True)
class JudgeSettings:
    """A model behind an OpenAI-compatible endpoint that answers each item of ten choices.

    Attributes:
        url: the endpoint up to /v1 (http://localhost:8000/v1); null asks nobody.
        model: name of the model there.
        key_variable: environment variable that holds the key; unset or empty sends none.
        cache: folder of the answers, kept between runs; null takes judge-cache in `out`.
        max_failed_share: a concept is dropped where the model misses the right word in more than
            this share of the directions.
        max_tokens: tokens of an answer, at most.
        timeout_seconds: for one request and its whole reply.
        retries: further attempts after a failed one, with doubling pauses.
        retry_seconds: the first pause.
        workers: requests under way at the same time.
    """

    url: str | None = path_setting()
    model: str | None = None
    key_variable: str = field(default="OPENAI_API_KEY", metadata={"recorded": False})
    cache: str | None = path_setting()
    max_failed_share: float = 0.25
    max_tokens: int = 32
    timeout_seconds: float = field(default=60.0, metadata={"recorded": False})
    retries: int = field(default=4, metadata={"recorded": False})
    retry_seconds: float = field(default=1.0, metadata={"recorded": False})
    workers: int = field(default=4, metadata={"recorded": False})

    def __post_init__(self) -> None:
        s = self
        refuse_secret_urls(s.url, "url", type(s))
        url_ok = s.url is None or s.url.startswith(("http://", "https://"))
        check_setting(s, "url", url_ok, "http://... or https://..., or null")
        check_setting(s, "model", s.url is None or bool(s.model), "a name where url is set")
        share_ok = 0 <= s.max_failed_share <= 1
        check_setting(s, "max_failed_share", share_ok, "between 0 and 1")
        check_setting(s, "max_tokens", s.max_tokens >= 1, "at least 1")
        check_setting(s, "timeout_seconds", s.timeout_seconds > 0, "above 0")
        check_setting(s, "retries", s.retries >= 0, "at least 0")
        check_setting(s, "retry_seconds", s.retry_seconds >= 0, "at least 0")
        check_setting(s, "workers", s.workers >= 1, "at least 1")


@dataclass(frozen=True)
class BuildTaskSettings:
    """Makes a word-translation task from dictionaries or a ready list (docs/BUILD_TASK.md).

    Attributes:
        sources: the files. Where one is a list of concepts, the task holds these; dictionaries then
            fill in languages that the list lacks and say which words are ambiguous.
        languages: code -> English name, as prompts want it ({en: English, de: German}). Indonesian
            is ind, as `id` is a column of tables of concepts.
        pivot: the language that dictionaries are joined over; one of `languages`.
        name: name of the task.
        license: licence of the task, which follows from the sources'.
        pos: parts of speech to keep; words without any are "word".
        single_words: keep only words without spaces, made of letters (hyphens and apostrophes
            inside them).
        back_translation: keep a translation only where a dictionary leads back too.
        lower_case: languages whose capitalised words are dropped, as they are names.
        max_senses: drop concepts with a word that a dictionary gives more senses; null keeps all.
        frequencies: document frequencies, for choices among translations and for `min_doc_freq`:
            none, count (the count stage with word items) or words (the words stage of a task).
        min_doc_freq: language -> documents of that language that a word must stand in.
        class_size: members of a class made from vectors (where no list gives classes, and
            frequencies is count), at least.
        dimensions: of these vectors.
        min_pair_documents: documents that two words must share to count in the vectors.
        min_distractors: drop concepts that have fewer wrong choices in some direction.
        max_concepts: concepts at most, those that most dictionaries agree on; null keeps all.
        judge: a model that answers the items; where it fails, the item is taken for ambiguous.
    """

    sources: tuple[LexiconSource, ...] = ()
    languages: dict[str, str] = field(default_factory=dict)
    pivot: str = "en"
    name: str = "built"
    license: str = "as its sources"
    pos: tuple[str, ...] = ("noun", "verb", "adj")
    single_words: bool = True
    back_translation: bool = True
    lower_case: tuple[str, ...] = ("en",)
    max_senses: int | None = 8
    frequencies: Literal["none", "count", "words"] = "none"
    min_doc_freq: dict[str, int] = field(default_factory=dict)
    class_size: int = 13
    dimensions: int = 64
    min_pair_documents: int = 2
    min_distractors: int = 9
    max_concepts: int | None = None
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        s = self
        codes_ok = all(isinstance(c, str) and c not in CONCEPT_COLUMNS for c in s.languages)
        check_setting(
            s, "languages", codes_ok,
            f"codes that are no column of a table of concepts ({', '.join(CONCEPT_COLUMNS)}; so "
            "ind for Indonesian), in quotes where YAML reads something else (no, for Norwegian)",
        )  # fmt: skip
        if s.languages:
            check_setting(s, "languages", len(s.languages) >= 2, "at least two languages")
            known = f"one of languages ({', '.join(s.languages)})"
            check_setting(s, "pivot", s.pivot in s.languages, known)
            check_setting(s, "min_doc_freq", set(s.min_doc_freq) <= set(s.languages), known)
        check_setting(s, "name", bool(s.name), "a name")
        check_setting(s, "license", bool(s.license), "a licence")
        check_setting(s, "pos", len(s.pos) >= 1, "at least one part of speech")
        low = s.min_doc_freq
        check_setting(s, "min_doc_freq", all(n >= 0 for n in low.values()), "at least 0 each")
        needs = not low or s.frequencies != "none"
        check_setting(s, "frequencies", needs, "count or words where min_doc_freq is set")
        senses_ok = s.max_senses is None or s.max_senses >= 1
        check_setting(s, "max_senses", senses_ok, "at least 1, or null")
        check_setting(s, "class_size", s.class_size >= 2, "at least 2")
        check_setting(s, "dimensions", s.dimensions >= 1, "at least 1")
        check_setting(s, "min_pair_documents", s.min_pair_documents >= 1, "at least 1")
        check_setting(s, "min_distractors", 0 <= s.min_distractors <= 9, "between 0 and 9")
        most_ok = s.max_concepts is None or s.max_concepts >= 1
        check_setting(s, "max_concepts", most_ok, "at least 1, or null")
