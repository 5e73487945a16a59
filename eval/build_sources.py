"""Reads the sources of `build-task`: dictionary entries, lists of concepts, and the bad lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eval.build_settings import BuildTaskSettings, LexiconSource
from eval.lexicons import (
    BadLine,
    Entry,
    bad_line,
    detect_format,
    languages_of,
    read_entries,
    read_lines,
    tidy,
)
from mining.common.errors import InputError

LIST_COLUMNS = ("id", "pos", "class")
# Inside a word: hyphens, apostrophes, and the dot between parts of Japanese loan words.
_JOINERS = frozenset("-‐’'·・")


class Quarantined(NamedTuple):
    """A bad line with the name of its source."""

    file: str
    line: int
    reason: str
    raw: str


class ListedConcept(NamedTuple):
    """One line of a list of concepts; languages that it has no word for are missing."""

    id: str
    pos: str
    cls: str
    words: dict[str, str]
    alternatives: dict[str, tuple[str, ...]]
    group: str
    example: str


@dataclass
class Sources:
    """All that was read. `has_list` tells an empty list from none; counts are by file."""

    entries: list[tuple[int, Entry]] = field(default_factory=list)
    listed: list[ListedConcept] = field(default_factory=list)
    has_list: bool = False
    bad: list[Quarantined] = field(default_factory=list)
    counts: list[dict[str, int | str]] = field(default_factory=list)


def read_sources(settings: BuildTaskSettings) -> Sources:
    """Read every source of the settings; entries carry the number of their source.

    Entries of languages that the task does not have help to lead translations back and are kept.
    Entries of more than one word are left out if only single words are wanted, and counted.
    """
    found = Sources()
    for number, source in enumerate(settings.sources):
        path = Path(source.path)
        name = detect_format(path) if source.format == "auto" else source.format
        n_listed, n_bad, n_entries = len(found.listed), len(found.bad), len(found.entries)
        multiword = 0
        if name == "concepts":
            found.has_list = True
            ids = {concept.id for concept in found.listed}
            items: Iterator[Entry | ListedConcept | BadLine] = _read_list(
                path, tuple(settings.languages), ids
            )
        else:
            items = read_entries(path, name, *_languages(path, source, name))
        for item in items:
            if isinstance(item, BadLine):
                found.bad.append(Quarantined(source_name(number, source), *item))
            elif isinstance(item, ListedConcept):
                found.listed.append(item)
            elif settings.single_words and not (
                is_single_word(item.source) and is_single_word(item.target)
            ):
                multiword += 1
            else:
                found.entries.append((number, item))
        found.counts.append(
            {
                "file": source_name(number, source),
                "format": name,
                "entries": len(found.entries) - n_entries,
                "concepts": len(found.listed) - n_listed,
                "not_single_words": multiword,
                "quarantined": len(found.bad) - n_bad,
            }
        )
    return found


def source_name(number: int, source: LexiconSource) -> str:
    """How outputs name a source: its place in the settings and the name of its file.

    Not its path, which would make the same task other bytes on another machine.
    """
    return f"{number:03d}-{Path(source.path).name}"


def is_single_word(word: str) -> bool:
    """Whether a word is letters and their marks only, with hyphens or apostrophes inside."""
    if not word or word[0] in _JOINERS or word[-1] in _JOINERS:
        return False
    # Marks are no letters, but the vowel signs of many scripts are marks.
    return any(c.isalpha() for c in word) and all(
        c.isalpha() or c in _JOINERS or _is_mark(c) for c in word
    )


def _is_mark(char: str) -> bool:
    return unicodedata.category(char).startswith("M")


def _languages(path: Path, source: LexiconSource, name: str) -> tuple[str | None, str | None]:
    named = languages_of(path) if name in ("pairs", "table") else None
    first, second = named or (None, None)
    return source.source_lang or first, source.target_lang or second


def _read_list(
    path: Path, languages: Sequence[str], ids: set[str]
) -> Iterator[ListedConcept | BadLine]:
    header: list[str] = []
    for number, line in read_lines(path):
        if isinstance(line, BadLine):
            yield line
            continue
        fields = line.split("\t")
        if not header:
            header = fields
            missing = [c for c in LIST_COLUMNS if c not in header]
            if missing or not set(languages) & set(header):
                raise InputError(
                    f"{path}:1: found the columns {header}, expected {', '.join(LIST_COLUMNS)} and "
                    f"some of the languages {', '.join(languages)}"
                )
            continue
        if not line.strip():
            continue
        if len(fields) > len(header):
            yield bad_line(number, f"found {len(fields)} columns, expected {len(header)}", line)
            continue
        row = dict(zip(header, map(tidy, fields), strict=False))
        if reason := _list_fault(row, languages, ids):
            yield bad_line(number, reason, line)
            continue
        ids.add(row["id"])
        yield ListedConcept(
            row["id"],
            row["pos"],
            row.get("class", ""),
            {lang: row[lang] for lang in languages if row.get(lang)},
            {
                lang: tuple(w for w in map(tidy, row.get(f"{lang}_alt", "").split(";")) if w)
                for lang in languages
            },
            row.get("group", ""),
            row.get("example", ""),
        )


def _list_fault(row: dict[str, str], languages: Sequence[str], ids: set[str]) -> str | None:
    if empty := [name for name in ("id", "pos") if not row.get(name)]:
        return f"{', '.join(empty)} is empty"
    if not any(row.get(lang) for lang in languages):
        return "no language has a word"
    return f"the id '{row['id']}' stands twice" if row["id"] in ids else None
