"""The word-translation task: concepts with a word per language, and the prompt (METHOD section 1).

A task is a YAML file beside a tab-separated table of concepts:

    format: 1
    name: words-small
    version: 1
    license: CC-BY-4.0
    languages: {en: English, fr: French}
    instruction: "Please translate words from {source_language} to {target_language}.\\n\\n"
    example: "{source_language}: {source}\\n{target_language}: {target}\\n\\n"
    query: "{source_language}: {source}\\n{target_language}:"
    answer: " {target}"
    concepts: words_small.tsv

The table's columns are `id`, `pos`, `class`, one per language, and optionally `<lang>_alt` (further
correct words, separated by ";"), `group` (scores are reported by it) and `example` (`no` keeps a
concept out of the worked examples).
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mining.common.errors import InputError
from mining.common.seeds import generator, hash64

N_DISTRACTORS = 9


@dataclass(frozen=True)
class Concept:
    """One concept: `words[lang]` is its one best word, `alternatives[lang]` other correct ones."""

    id: str
    pos: str
    cls: str
    words: dict[str, str]
    alternatives: dict[str, tuple[str, ...]]
    group: str = ""
    example: bool = True

    def forms(self, lang: str) -> set[str]:
        """Every string that names this concept in `lang`, case folded."""
        return {word.casefold() for word in (self.words[lang], *self.alternatives[lang])}


@dataclass(frozen=True)
class Task:
    """A word-translation task; the templates are str.format templates, see the module's text."""

    name: str
    version: int
    license: str
    languages: dict[str, str]
    instruction: str
    example: str
    query: str
    answer: str
    concepts: tuple[Concept, ...]

    def directions(self) -> list[tuple[str, str]]:
        """All ordered pairs of languages."""
        return list(itertools.permutations(self.languages, 2))

    def prompt(self, source: str, target: str, examples: list[Concept], word: str) -> str:
        """The prompt that asks for `word` of language `source` in language `target`."""
        names = {
            "source_language": self.languages[source],
            "target_language": self.languages[target],
        }
        parts = [self.instruction.format(**names)]
        for concept in examples:
            words = {"source": concept.words[source], "target": concept.words[target]}
            parts.append(self.example.format(**names, **words))
        parts.append(self.query.format(**names, source=word))
        return "".join(parts)

    def answer_text(self, word: str) -> str:
        """The continuation of a prompt that gives `word` as the answer."""
        return self.answer.format(target=word)

    def draw_examples(
        self, source: str, target: str, concept: Concept, k: int, draw: int, seed: int
    ) -> list[Concept]:
        """k worked examples for a concept: a function of (seed, direction, concept, draw) only."""
        pool = [c for c in self.concepts if c.example and c.id != concept.id]
        if len(pool) < k:
            raise InputError(f"task {self.name}: {len(pool)} concepts may be examples, need {k}")
        rng = generator(seed, "examples", self.name, source, target, concept.id, draw)
        return [pool[i] for i in rng.choice(len(pool), size=k, replace=False)]

    def distractors(self, source: str, target: str, concept: Concept) -> list[str]:
        """Up to 9 words of `target`, close in meaning to the concept's, none of them correct.

        Concepts of the same class and part of speech come first, then of the same part of speech,
        in an order fixed by a hash. A concept that shares any form with this one, in either
        language, is left out.
        """
        taken = concept.forms(target)
        siblings = sorted(
            (c for c in self.concepts if c.pos == concept.pos and c.id != concept.id),
            key=lambda c: (
                c.cls != concept.cls,
                hash64(self.name, source, target, concept.id, c.id),
            ),
        )
        words: list[str] = []
        for other in siblings:
            if other.forms(source) & concept.forms(source) or other.forms(target) & taken:
                continue
            taken.add(other.words[target].casefold())
            words.append(other.words[target])
            if len(words) == N_DISTRACTORS:
                break
        return words


_KEYS = ("name", "version", "license", "languages", "instruction", "example", "query", "answer")


def read_task(path: Path) -> Task:
    """Read a task file; InputError names the file, and the key or line that is wrong."""
    if not path.is_file():
        raise InputError(f"{path}: no such task file")
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({error})") from None
    expected = {"format", "concepts", *_KEYS}
    if not isinstance(raw, dict) or set(raw) != expected:
        found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{path}: found {found}, expected the keys {sorted(expected)}")
    if raw["format"] != 1:
        raise InputError(f"{path}: format {raw['format']}, this version reads 1")
    concepts = _read_concepts(path.parent / raw["concepts"], list(raw["languages"]))
    return Task(**{key: raw[key] for key in _KEYS}, concepts=tuple(concepts))


def task_files(path: Path) -> dict[str, Path]:
    """The files a task consists of, for its content hash."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {path.name: path, raw["concepts"]: path.parent / raw["concepts"]}


def _read_concepts(path: Path, langs: list[str]) -> list[Concept]:
    if not path.is_file():
        raise InputError(f"{path}: no such table of concepts")
    concepts: list[Concept] = []
    seen: set[str] = set()
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = {"id", "pos", "class", *langs} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{path}:1: the columns {sorted(missing)} are missing")
        for line, row in enumerate(reader, start=2):
            if any(not row.get(name) for name in ("id", "pos", "class", *langs)):
                raise InputError(f"{path}:{line}: an id, pos, class or word is empty")
            if row["id"] in seen:
                raise InputError(f"{path}:{line}: the id '{row['id']}' stands twice")
            seen.add(row["id"])
            concepts.append(
                Concept(
                    id=row["id"],
                    pos=row["pos"],
                    cls=row["class"],
                    words={lang: row[lang] for lang in langs},
                    alternatives={
                        lang: tuple(w for w in (row.get(f"{lang}_alt") or "").split(";") if w)
                        for lang in langs
                    },
                    group=row.get("group") or "",
                    example=row.get("example") != "no",
                )
            )
    return concepts
