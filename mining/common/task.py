"""The word-translation task: concepts with a word per language, and the prompt (METHOD section 1).

A task is a YAML file beside a tab-separated table of concepts:

    format: 1
    name: words
    version: 1
    license: CC-BY-4.0
    languages: {en: English, fr: French}
    instruction: "Please translate words from {source_language} to {target_language}.\\n\\n"
    example: "{source_language}: {source}\\n{target_language}: {target}\\n\\n"
    query: "{source_language}: {source}\\n{target_language}:"
    answer: " {target}"
    concepts: words.tsv
    avoid: words_avoid.tsv

The table's columns are `id`, `pos`, `class`, one per language, and optionally `<lang>_alt` (further
correct words, separated by ";"), `group` (scores are reported by it) and `example` (`no` keeps a
concept out of the worked examples); other columns are for other readers. `avoid` is optional: a
table with the columns `source_lang`, `target_lang`, `id`, `sibling`, one line where the sibling's
word of the target language also translates the concept's word of the source language in some sense.
"""

from __future__ import annotations

import csv
import io
import itertools
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.names import LANGUAGE_CODE
from mining.common.seeds import generator, hash64, mix64
from mining.common.yaml_files import read_yaml

N_DISTRACTORS = 9

# (source language, target language, concept id, sibling's id): no distractor in that direction.
Avoided = tuple[str, str, str, str]


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
    avoid: frozenset[Avoided] = frozenset()

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
        pool, place = self._examples, self._example_places.get(concept.id)
        n_others = len(pool) - (place is not None)
        if n_others < k:
            raise InputError(f"task {self.name}: {n_others} concepts may be examples, need {k}")
        rng = generator(seed, "examples", self.name, source, target, concept.id, draw)
        drawn = rng.choice(n_others, size=k, replace=False)
        # Numbers from the concept's own place on stand for the concepts after it.
        return [pool[i + (place is not None and i >= place)] for i in drawn]

    def distractors(self, source: str, target: str, concept: Concept) -> list[str]:
        """Up to 9 words of `target`, close in meaning to the concept's, none of them correct.

        Concepts of the same class and part of speech come first, then of the same part of speech,
        in an order fixed by a hash. Left out are concepts that share any form with this one in
        either language, those that the task says to avoid, and a word that looks like the source
        word, which a model could just copy.
        """
        taken = concept.forms(target) | concept.forms(source)
        words: list[str] = []
        for other in self._siblings(source, target, concept):
            if other.forms(source) & concept.forms(source) or other.forms(target) & taken:
                continue
            if (source, target, concept.id, other.id) in self.avoid:
                continue
            taken.add(other.words[target].casefold())
            words.append(other.words[target])
            if len(words) == N_DISTRACTORS:
                break
        return words

    def _siblings(self, source: str, target: str, concept: Concept) -> Iterator[Concept]:
        key = np.uint64(hash64(self.name, source, target, concept.id))
        for cls in (concept.cls, None):
            members, hashes = self._classes[concept.pos, cls]
            for place in np.argsort(mix64(hashes ^ key), kind="stable"):
                if members[place].id != concept.id and (cls or members[place].cls != concept.cls):
                    yield members[place]

    @cached_property
    def _classes(
        self,
    ) -> dict[tuple[str, str | None], tuple[list[Concept], npt.NDArray[np.uint64]]]:
        """Concepts, and the hashes of their ids, of each (part of speech, class) and (it, None)."""
        found: dict[tuple[str, str | None], list[Concept]] = {}
        for concept in self.concepts:
            for cls in (None, concept.cls):
                found.setdefault((concept.pos, cls), []).append(concept)
        return {
            key: (members, np.array([hash64(c.id) for c in members], dtype=np.uint64))
            for key, members in found.items()
        }

    @cached_property
    def _examples(self) -> list[Concept]:
        return [concept for concept in self.concepts if concept.example]

    @cached_property
    def _example_places(self) -> dict[str, int]:
        return {concept.id: place for place, concept in enumerate(self._examples)}


_KEYS = ("name", "version", "license", "languages", "instruction", "example", "query", "answer")
_LANGUAGE_NAMES = {"source_language", "target_language"}
# What each template may name.
_TEMPLATES = {
    "instruction": _LANGUAGE_NAMES,
    "example": _LANGUAGE_NAMES | {"source", "target"},
    "query": _LANGUAGE_NAMES | {"source"},
    "answer": {"target"},
}


def read_task(path: Path) -> Task:
    """Read a task file; InputError names the file, and the key or line that is wrong."""
    raw = _read_header(path)
    concepts = _read_concepts(path.parent / raw["concepts"], list(raw["languages"]))
    avoid: Iterable[Avoided] = ()
    if "avoid" in raw:
        avoid = _read_avoid(path.parent / raw["avoid"], {c.id for c in concepts}, raw["languages"])
    settings = {key: raw[key] for key in _KEYS}
    return Task(**settings, concepts=tuple(concepts), avoid=frozenset(avoid))


def task_files(path: Path) -> dict[str, Path]:
    """The files a task consists of, for its content hash."""
    raw = _read_header(path)
    tables = [raw[key] for key in ("concepts", "avoid") if key in raw]
    return {path.name: path} | {name: path.parent / name for name in tables}


def _read_header(path: Path) -> dict[str, Any]:
    """What the task file itself says, its types and templates checked."""
    if not path.is_file():
        raise InputError(f"{path}: no such task file")
    raw = read_yaml(path)
    expected = {"format", "concepts", *_KEYS}
    if not isinstance(raw, dict) or set(raw) - {"avoid"} != expected:
        found = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{path}: found {found}, expected the keys {sorted(expected)}")
    if raw["format"] != 1:
        raise InputError(f"{path}: format {raw['format']!r:.80}, this version reads 1")
    if not isinstance(raw["version"], int):
        raise InputError(f"{path}: version: found {raw['version']!r:.80}, expected a number")
    for key in sorted(set(raw) - {"format", "version", "languages"}):
        if not isinstance(raw[key], str):
            raise InputError(f"{path}: {key}: found {raw[key]!r:.80}, expected text")
    languages = raw["languages"]
    if not isinstance(languages, dict) or len(languages) < 2:
        raise InputError(f"{path}: languages: found {languages!r:.80}, expected two or more")
    for code, name in languages.items():
        # Codes name files and columns.
        if not isinstance(code, str) or not LANGUAGE_CODE.fullmatch(code):
            raise InputError(
                f"{path}: languages: found {code!r:.80}, expected a code of letters, digits, '-' "
                'and "_" (in quotes where YAML takes it for something else, such as no)'
            )
        if not isinstance(name, str):
            raise InputError(f"{path}: languages.{code}: found {name!r:.80}, expected a name")
    for key, allowed in _TEMPLATES.items():
        _check_template(f"{path}: {key}", raw[key], allowed)
    return raw


def _check_template(place: str, template: str, allowed: set[str]) -> None:
    """Only plain {names}: others would reach into our objects, or spell gigabytes of blanks."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{place}: not a template ({error})") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in allowed or form or conversion):
            listed = ", ".join("{" + each + "}" for each in sorted(allowed))
            raise InputError(f"{place}: found {{{name:.40}...}}, expected only {listed}")


def _read_concepts(path: Path, langs: list[str]) -> list[Concept]:
    concepts: list[Concept] = []
    seen: set[str] = set()
    for line, row in _read_table(path, ("id", "pos", "class", *langs)):
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


def _read_avoid(path: Path, ids: set[str], langs: Iterable[str]) -> Iterator[Avoided]:
    known = {"id": ids, "sibling": ids, "source_lang": set(langs), "target_lang": set(langs)}
    for line, row in _read_table(path, tuple(known)):
        for column, values in known.items():
            if row[column] not in values:
                raise InputError(f"{path}:{line}: the task has no {column} '{row[column]}'")
        yield row["source_lang"], row["target_lang"], row["id"], row["sibling"]


def _read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row of a tab-separated table; InputError where one of `columns` is empty."""
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        missing = set(columns) - set(reader.fieldnames or ())
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from None
    if missing:
        raise InputError(f"{path}:1: the columns {sorted(missing)} are missing")
    for line, row in enumerate(rows, start=2):
        if empty := [name for name in columns if not row.get(name)]:
            raise InputError(f"{path}:{line}: {', '.join(empty)} is empty")
        yield line, row
