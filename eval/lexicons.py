"""Readers of bilingual dictionaries: one stream of entries from five kinds of files.

    pairs        two columns between white space or a tab (MUSE's layout)
    table        tab-separated with the header `source, target, pos, sense`
    cedict       CC-CEDICT: 繁體 简体 [pin1 yin1] /gloss 1/gloss 2/ (the simplified form is taken)
    wiktextract  Wiktextract JSON lines: translations, and glosses of words of other languages
    concepts     a ready table of concepts, read by `eval.build_sources`, not here

A line that cannot be read becomes a `BadLine`; it is for the caller to keep it. Files may be
compressed (.gz, .zst).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from eval.glosses import gloss_words
from mining.common.errors import InputError
from mining.lines import Damage, LongRecord, decompress, split_lines
from mining.remote import HashingStream

Format = Literal["pairs", "table", "cedict", "wiktextract", "concepts"]
FORMATS: tuple[str, ...] = get_args(Format)
TABLE_HEADER = ("source", "target", "pos", "sense")
LIST_HEADER = ("id", "pos", "class")
MAX_LINE_BYTES = 16 << 20
MAX_RAW_CHARS = 500
MAX_SHOWN_CHARS = 80
MAX_GLOSS_WORDS = 6

# What dictionaries call the parts of speech; others are kept as they are, in lower case.
POS = {
    "n": "noun", "noun": "noun", "n.": "noun",
    "v": "verb", "verb": "verb", "v.": "verb",
    "a": "adj", "adj": "adj", "adj.": "adj", "adjective": "adj",
    "name": "name", "proper noun": "name", "proper name": "name",
}  # fmt: skip
# Wiktionary's codes of languages that other sources name otherwise.
CODES = {"cmn": "zh", "nb": "no"}
_NAMED = re.compile(r"([a-z]{2,3})-([a-z]{2,3})(?![a-z])")
_CEDICT = re.compile(r"(\S+) (\S+) \[{1,2}([^\]]*)\]{1,2} /(.+)/\s*$")
_TAGS_NOT_A_SENSE = {"form-of", "alt-of", "obsolete", "archaic"}


class Entry(NamedTuple):
    """One listed translation. `sense` counts from 1 within the source word and its dictionary.

    `label` is the sense in words where the dictionary gives one to several languages at once (so
    that translations with the same label belong together), else empty.
    """

    source_lang: str
    source: str
    target_lang: str
    target: str
    pos: str
    sense: int
    label: str


class BadLine(NamedTuple):
    """A line that a reader could not use: its number (from 1), why, and what it was."""

    line: int
    reason: str
    raw: str


def read_entries(
    path: Path, format_name: str, source_lang: str | None, target_lang: str | None
) -> Iterator[Entry | BadLine]:
    """Yield the entries of one file, in its order.

    `source_lang` and `target_lang` are needed for pairs and tables (see `languages_of`); CC-CEDICT
    is zh to en unless they say otherwise; for Wiktextract `target_lang` is the language of the
    glosses (en). Raises InputError where the file is missing, cut short or of another format.
    """
    if format_name == "wiktextract":
        yield from _read_wiktextract(path, target_lang or "en")
        return
    if format_name == "cedict":
        yield from _read_cedict(path, source_lang or "zh", target_lang or "en")
        return
    if source_lang is None or target_lang is None:
        raise InputError(
            f"{path}: which languages? Name the file like en-fr.tsv, or give source_lang and "
            "target_lang"
        )
    read = {"pairs": _read_pairs, "table": _read_table}[format_name]
    yield from read(path, source_lang, target_lang)


def languages_of(path: Path) -> tuple[str, str] | None:
    """The two language codes that a file's name begins with (en-fr.tsv, en-de.0-5000.txt)."""
    found = _NAMED.match(path.name)
    return (found[1], found[2]) if found else None


def detect_format(path: Path) -> str:
    """The format of a file, by its first line that is no comment.

    Raises InputError where there is no such line, or it is of none of the formats.
    """
    for number, line in read_lines(path):
        if isinstance(line, BadLine):
            raise InputError(f"{path}:{number}: {line.reason}; save the file as UTF-8")
        if line.startswith("#"):
            if "CC-CEDICT" in line:
                return "cedict"
            continue
        if not line.strip():
            continue
        columns = tuple(map(tidy, line.split("\t")))
        if line.lstrip().startswith("{"):
            return "wiktextract"
        if columns == TABLE_HEADER:
            return "table"
        if set(LIST_HEADER) <= set(columns):
            return "concepts"
        if _CEDICT.match(line):
            return "cedict"
        if _pair(line) is not None:
            return "pairs"
        raise InputError(
            f"{path}:{number}: found {line[:MAX_SHOWN_CHARS]!r}, expected two words, a "
            f"tab-separated header with {', '.join(TABLE_HEADER)} or with "
            f"{', '.join(LIST_HEADER)} and languages, CC-CEDICT, or JSON lines; correct the file, "
            "or give its format"
        )
    raise InputError(f"{path}: holds no line to tell its format by")


def tidy(text: str) -> str:
    """NFC, without white space at the ends, single spaces inside."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_lines(path: Path) -> Iterator[tuple[int, str | BadLine]]:
    """Number (from 1) and text of each line without its end; a BadLine where it is not UTF-8.

    A line over 16 MiB is a BadLine too. Raises InputError where the file is missing or, being
    compressed, not readable to its end.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as raw:
        lines = split_lines(decompress(HashingStream(raw), path.name), MAX_LINE_BYTES)
        for number, data in enumerate(lines, start=1):
            if isinstance(data, Damage):
                raise InputError(f"{path}: not readable to the end ({data.detail})")
            if isinstance(data, LongRecord):
                head = data.head.decode("utf-8", "backslashreplace")
                reason = f"{data.n_bytes} bytes, more than {MAX_LINE_BYTES}"
                yield number, bad_line(number, reason, head)
                continue
            data = data.rstrip(b"\r\n")
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, data.decode("utf-8")
            except UnicodeDecodeError as error:
                shown = data.decode("utf-8", "backslashreplace")
                yield number, bad_line(number, f"not UTF-8 at byte {error.start}", shown)


def bad_line(number: int, reason: str, raw: str) -> BadLine:
    """A BadLine whose raw text is cut to what helps to find it."""
    return BadLine(number, reason, raw[:MAX_RAW_CHARS])


def _read_pairs(path: Path, source_lang: str, target_lang: str) -> Iterator[Entry | BadLine]:
    for number, line in read_lines(path):
        if isinstance(line, BadLine):
            yield line
            continue
        if not line.strip():
            continue
        pair = _pair(line)
        if pair is None:
            yield bad_line(number, "expected two words between white space or a tab", line)
            continue
        yield Entry(source_lang, pair[0], target_lang, pair[1], "", 1, "")


def _pair(line: str) -> tuple[str, str] | None:
    # A tab allows for spaces inside the words.
    parts = [tidy(part) for part in (line.split("\t") if "\t" in line else line.split())]
    return (parts[0], parts[1]) if len(parts) == 2 and all(parts) else None


def _read_table(path: Path, source_lang: str, target_lang: str) -> Iterator[Entry | BadLine]:
    for number, line in read_lines(path):
        if isinstance(line, BadLine):
            yield line
            continue
        fields = line.split("\t")
        if number == 1:
            if tuple(fields) != TABLE_HEADER:
                raise InputError(f"{path}:1: found {fields}, expected the header {TABLE_HEADER}")
            continue
        if len(fields) != len(TABLE_HEADER):
            yield bad_line(number, f"found {len(fields)} columns, expected 4", line)
            continue
        source, target = tidy(fields[0]), tidy(fields[1])
        if not source or not target:
            yield bad_line(number, "a word is empty", line)
        elif not re.fullmatch(r"[1-9][0-9]{0,8}", fields[3]):
            yield bad_line(number, f"sense is {fields[3]!r}, expected a number from 1", line)
        else:
            pos = pos_name(fields[2])
            yield Entry(source_lang, source, target_lang, target, pos, int(fields[3]), "")


def _read_cedict(path: Path, source_lang: str, target_lang: str) -> Iterator[Entry | BadLine]:
    for number, line in read_lines(path):
        if isinstance(line, BadLine):
            yield line
            continue
        if not line.strip() or line.startswith("#"):
            continue
        found = _CEDICT.match(line)
        if found is None:
            yield bad_line(number, "not of the form 繁體 简体 [pin1 yin1] /gloss/", line)
            continue
        word, pinyin = tidy(found[2]), found[3]
        is_name = pinyin[:1].isupper()
        for sense, gloss in enumerate(found[4].split("/"), start=1):
            for target, is_verb in gloss_words(gloss):
                pos = "name" if is_name else "verb" if is_verb else ""
                yield Entry(source_lang, word, target_lang, target, pos, sense, "")


def _read_wiktextract(path: Path, gloss_lang: str) -> Iterator[Entry | BadLine]:
    for number, line in read_lines(path):
        if isinstance(line, BadLine):
            yield line
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield bad_line(number, f"not valid JSON ({error})", line)
            continue
        if not isinstance(record, dict):
            yield bad_line(number, "not a JSON object", line)
            continue
        try:
            entries = list(_wiktextract_entries(record, gloss_lang))
            for entry in entries:
                texts = (entry.source_lang, entry.source, entry.target_lang, entry.target)
                "".join((*texts, entry.pos, entry.label)).encode()
            yield from entries
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
            yield bad_line(
                number, f"not a Wiktextract word ({type(error).__name__}: {error})", line
            )


def _wiktextract_entries(record: dict[str, Any], gloss_lang: str) -> Iterator[Entry]:
    """Entries of one word: its translations and, if it is of another language, its glosses."""
    if "word" not in record or not record.get("lang_code"):
        return  # redirects and thesaurus pages
    word, lang = tidy(record["word"]), _code(record["lang_code"])
    pos = pos_name(record.get("pos") or "")
    senses = record.get("senses") or []
    labels: dict[str, int] = {}
    translations = list(record.get("translations") or [])
    for sense in senses:
        text = "; ".join(sense.get("glosses") or [])
        translations += [{"sense": text, **t} for t in sense.get("translations") or []]
    for translation in translations:
        target = tidy(translation.get("word") or "")
        code = _code(translation.get("code") or translation.get("lang_code") or "")
        tags = set(translation.get("tags") or [])
        if not target or not code or ("Traditional-Chinese" in tags and "Simplified" not in tags):
            continue
        label = tidy(translation.get("sense") or "")
        number = labels.setdefault(label, len(labels) + 1)
        # Chinese is often given as "traditional / simplified".
        target = target.split(" / ")[-1].strip() if code == "zh" else target
        yield Entry(lang, word, code, target, pos, number, label)
    if lang == gloss_lang:
        return
    for number, sense in enumerate(senses, start=1):
        glosses = sense.get("glosses") or []
        if not glosses or _TAGS_NOT_A_SENSE & set(sense.get("tags") or []):
            continue
        # The last gloss is the narrowest. Long ones explain rather than translate.
        if len(glosses[-1].split()) > MAX_GLOSS_WORDS:
            continue
        for part in glosses[-1].split(","):
            for target, _ in gloss_words(part):
                yield Entry(lang, word, gloss_lang, target, pos, number, "")


def pos_name(text: str) -> str:
    """A part of speech as tasks name it; names that are not known stay, in lower case."""
    text = text.strip().lower()
    return POS.get(text, text)


def _code(text: str) -> str:
    return CODES.get(text, text)
