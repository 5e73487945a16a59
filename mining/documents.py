"""Reads documents: JSONL (plain, .gz, .zst), Parquet and Arrow, local or through fsspec.

Every record comes out, either as a `Record` or as a `Rejected` with the reason: nothing is skipped
in silence and no bad record ends a file early, unless the file itself cannot be read any further.
"""

from __future__ import annotations

import functools
import hashlib
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from mining.common.errors import InputError
from mining.common.logs import log
from mining.common.names import LANGUAGE_CODE
from mining.corpus_files import examples, find_files
from mining.lines import KEPT_BYTES, Damage, LongRecord, decompress, split_lines
from mining.remote import HashingStream, hash_file, open_filesystem
from mining.row_files import ROW_SUFFIXES, BadRow, read_rows
from mining.settings import CorpusSettings

LINE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson")
SUFFIXES = (*LINE_SUFFIXES, *ROW_SUFFIXES)
MAX_ID_CHARS = 4096
# A tokenizer takes 150 bytes of memory for each byte of a word. Lines of minified code and base64
# have some 100 KB; a line of Chinese is a word here too, and a chapter of a book has less.
MAX_WORD_BYTES = 2 << 20
DATASET_STATE = "state.json"


@dataclass(frozen=True)
class Record:
    """One document as it was read; `line` counts from 1 (the row, where a file has rows).

    `tokens` uint32 [n_tokens] where the file held token ids; then `text` is what they spell.
    """

    id: str
    text: str
    lang: str | None
    source: str
    group: str | None
    file: str
    line: int
    raw: bytes
    tokens: npt.NDArray[np.uint32] | None = None


@dataclass(frozen=True)
class Rejected:
    """One record that cannot be used.

    `raw` holds its first 64 KiB, `n_bytes` and `sha256` describe all of it.
    """

    file: str
    line: int
    reason: str
    detail: str
    raw: bytes
    n_bytes: int
    sha256: str


def list_documents(corpus: CorpusSettings) -> dict[str, str]:
    """The corpus' files: name relative to the folder -> path or URL, sorted by name.

    Of a Hugging Face dataset on disk these are the files that its state names. Warns of files of
    other endings that look like data. Raises InputError where the folder is missing or holds no
    matching file.
    """
    files, others = find_files(corpus, SUFFIXES)
    if others:
        _warn_once(
            f"{corpus.path}: passed over {examples(others)} (documents are "
            f"{', '.join('*' + suffix for suffix in SUFFIXES)}; see corpus.glob)"
        )
    caches = _dataset_caches(files)
    return {name: path for name, path in files.items() if name not in caches}


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)  # a stage lists its files several times


def _dataset_caches(files: Mapping[str, str]) -> set[str]:
    """Names of the Arrow files that are no part of the dataset in whose folder they lie.

    `datasets` leaves the results of its own steps there as cache files.
    """
    folders: dict[str, list[str]] = {}
    for name in files:
        if name.endswith(".arrow"):
            folders.setdefault(posixpath.dirname(name), []).append(name)
    caches: set[str] = set()
    for names in folders.values():
        state = posixpath.join(posixpath.dirname(files[names[0]]), DATASET_STATE)
        filesystem, path = open_filesystem(state)
        if not filesystem.isfile(path):
            continue
        try:
            entries = json.loads(filesystem.cat_file(path))["_data_files"]
            listed = {posixpath.normpath(entry["filename"]) for entry in entries}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{state}: names no _data_files of a Hugging Face dataset") from None
        present = {posixpath.basename(name): name for name in names}
        caches.update(name for base, name in present.items() if base not in listed)
        if missing := sorted(listed - set(present)):
            raise InputError(f"{state}: the dataset's file {missing[0]} is missing")
    return caches


class FileReader:
    """Iterates over one file's records; afterwards `sha256` is the hash of the file's bytes."""

    def __init__(self, path: str, name: str, settings: CorpusSettings) -> None:
        self.path, self.name, self.settings = path, name, settings
        self.sha256 = ""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file by its name, once all of it is read."""
        return {self.name: self.sha256}

    def __iter__(self) -> Iterator[Record | Rejected]:
        if self.name.endswith(ROW_SUFFIXES):
            rows = read_rows(self.path, self.settings.max_record_bytes)
            for number, row in enumerate(rows, start=1):
                yield self._row_record(row, number)
            self.sha256 = hash_file(self.path)
            return
        filesystem, path = open_filesystem(self.path)
        with filesystem.open(path, "rb") as raw:
            hashing = HashingStream(raw)
            lines = split_lines(decompress(hashing, self.name), self.settings.max_record_bytes)
            for number, line in enumerate(lines, start=1):
                if isinstance(line, Damage):
                    yield rejected(self.name, number, line.reason, line.detail, line.rest)
                elif isinstance(line, LongRecord):
                    yield reject_long(self.name, number, line, self.settings.max_record_bytes)
                elif line.strip():
                    yield parse_record(line, self.name, number, self.settings)
            hashing.drain()
            self.sha256 = hashing.digest.hexdigest()

    def _row_record(
        self, row: dict[str, Any] | BadRow | LongRecord | Damage, number: int
    ) -> Record | Rejected:
        if isinstance(row, LongRecord):
            return reject_long(self.name, number, row, self.settings.max_record_bytes)
        if isinstance(row, BadRow):
            return rejected(self.name, number, row.reason, row.detail, row.raw)
        if isinstance(row, Damage):
            return rejected(self.name, number, row.reason, row.detail, row.rest)
        data = json.dumps(row, ensure_ascii=True, default=str).encode()
        if len(data) > self.settings.max_record_bytes:
            detail = f"{len(data)} bytes as JSON, more than {self.settings.max_record_bytes}"
            return rejected(self.name, number, "record is too long", detail, data)
        return _record(row, data, self.name, number, self.settings)


def read_records(path: str, name: str, settings: CorpusSettings) -> Iterator[Record | Rejected]:
    """Yield every record of a file in order; see FileReader, which keeps the file's hash too."""
    return iter(FileReader(path, name, settings))


def parse_record(
    line: bytes, file: str, number: int, settings: CorpusSettings
) -> Record | Rejected:
    """Parse one line of JSON into a Record, or say why it is none."""
    data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return rejected(file, number, "invalid UTF-8", f"at byte {error.start}", line)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return rejected(file, number, "invalid JSON", str(error), line)
    return _record(value, line, file, number, settings)


def _record(
    value: Any, raw: bytes, file: str, number: int, settings: CorpusSettings
) -> Record | Rejected:
    def reject(reason: str, detail: str) -> Rejected:
        return rejected(file, number, reason, detail, raw)

    if not isinstance(value, dict):
        return reject("not an object", f"found {type(value).__name__}")
    text = _field(value, settings.text_field)
    if text is None:
        return reject("no text", f"the field '{settings.text_field}' is missing or null")
    if not isinstance(text, str):
        return reject("text is not a string", f"found {type(text).__name__}")
    if not _encodable(text):
        return reject("invalid UTF-8", "the text holds a lone surrogate")
    if len(text) > MAX_WORD_BYTES // 4 and _has_long_word(text):
        detail = f"more than {MAX_WORD_BYTES} bytes without a space or an end of line"
        return reject("word is too long", detail)
    identifier: Any = f"{file}:{number}"
    if settings.id_field is not None:
        identifier = _field(value, settings.id_field)
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if not isinstance(identifier, str) or not identifier:
        return reject("no id", f"the field '{settings.id_field}' is no string or number")
    if len(identifier) > MAX_ID_CHARS:
        return reject("id is too long", f"{len(identifier)} characters")
    optional: dict[str, str | None] = {}
    for name, path in (
        ("lang", settings.lang_field),
        ("source", settings.source_field),
        ("group", settings.group_field),
    ):
        found = _field(value, path) if path else None
        if found is not None and not isinstance(found, str):
            return reject(f"{name} is not a string", f"found {type(found).__name__}")
        if found is not None and name != "lang" and len(found) > MAX_ID_CHARS:
            return reject(f"{name} is too long", f"{len(found)} characters")
        optional[name] = found or None
    if optional["lang"] is not None and not LANGUAGE_CODE.fullmatch(optional["lang"]):
        return reject("lang is no language code", f"found {optional['lang'][:80]!r}")
    return Record(
        id=identifier,
        text=text,
        lang=optional["lang"],
        source=optional["source"] or without_suffix(file),
        group=optional["group"],
        file=file,
        line=number,
        raw=raw,
    )


def rejected(file: str, line: int, reason: str, detail: str, raw: bytes) -> Rejected:
    """A Rejected from all bytes of a record."""
    digest = hashlib.sha256(raw).hexdigest()
    return Rejected(file, line, reason, detail, raw[:KEPT_BYTES], len(raw), digest)


def reject_long(file: str, line: int, record: LongRecord, max_bytes: int) -> Rejected:
    """A Rejected of a record that was too long to be held."""
    detail = f"{record.n_bytes} bytes, more than {max_bytes}"
    reason = "record is too long"
    return Rejected(file, line, reason, detail, record.head, record.n_bytes, record.sha256)


def reject_record(record: Record, reason: str, detail: str) -> Rejected:
    """Quarantine a record that was read well but cannot stand (say, its id stood before)."""
    return rejected(record.file, record.line, reason, detail, record.raw)


def without_suffix(file: str) -> str:
    """A file's name without the suffix of its format; folders may have dots in their names."""
    suffix = max((s for s in SUFFIXES if file.endswith(s)), key=len, default="")
    return file.removesuffix(suffix)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _has_long_word(text: str) -> bool:
    data = text.encode()
    start = 0
    while len(data) - start > MAX_WORD_BYTES:
        end = start + MAX_WORD_BYTES + 1
        start = 1 + max(data.rfind(b" ", start, end), data.rfind(b"\n", start, end))
        if not start:
            return True
    return False


def _field(value: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value
