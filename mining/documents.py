"""Reads documents: JSONL (plain, .gz, .zst) and Parquet, local or through fsspec.

Every record comes out, either as a `Record` or as a `Rejected` with the reason: nothing is skipped
in silence and no bad record ends a file early, unless the file itself cannot be read any further.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mining.common.errors import InputError
from mining.settings import CorpusSettings

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".ndjson", ".parquet")
KEPT_BYTES = 64 << 10
MAX_ID_CHARS = 4096
# Languages name files and columns, so that no text from a record may lead out of a folder.
LANGUAGE_CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")
READ_BYTES = 1 << 20
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Record:
    """One document as it was read; `line` counts from 1 (the row, for Parquet)."""

    id: str
    text: str
    lang: str | None
    source: str
    group: str | None
    file: str
    line: int
    raw: bytes


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


@dataclass(frozen=True)
class CorpusInput:
    """The corpus as a stage's input (see mining.common.stage.Input).

    Its files are hashed while they are read; before that a file is known by size and time.
    """

    settings: CorpusSettings

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        known = (recorded or {}).get("files", {})
        stamps = (run or {}).get("files", {})
        result: dict[str, Any] = {}
        files = list_documents(self.settings)
        for name, stamp in _stamps(files).items():
            before = known.get(name, {})
            if before and stamps.get(name) == stamp:
                result[name] = before
            elif "sha256" in before and before["bytes"] == stamp[0]:
                result[name] = {"bytes": stamp[0], "sha256": _hash_file(files[name])}
            else:
                result[name] = {"bytes": stamp[0], "modified": stamp[1]}
        return {"files": result}

    def location(self) -> Any:
        return {"path": self.settings.path, "files": _stamps(list_documents(self.settings))}


def _stamps(files: Mapping[str, str]) -> dict[str, list[Any]]:
    """Size and time of each file (name -> path)."""
    stamps: dict[str, list[Any]] = {}
    for name, path in files.items():
        filesystem, inner = _filesystem(path)
        info = filesystem.info(inner)
        modified = info.get("mtime") or info.get("LastModified") or info.get("ETag") or ""
        stamps[name] = [int(info["size"]), str(modified)]
    return stamps


def list_documents(corpus: CorpusSettings) -> dict[str, str]:
    """The corpus' files: name relative to the folder -> path or URL, sorted by name.

    Raises InputError where the folder is missing or holds no matching file.
    """
    from datatrove.io import get_datafolder

    if corpus.path is None:
        raise InputError("corpus.path: not set; name a folder or file of documents")
    filesystem, path = _filesystem(corpus.path)
    if filesystem.isfile(path):
        return {path.rsplit("/", 1)[-1]: corpus.path}
    if not filesystem.isdir(path):
        raise InputError(f"{corpus.path}: no such file or folder (corpus.path)")
    folder = get_datafolder(corpus.path)
    names = folder.list_files(recursive=True, glob_pattern=corpus.glob)
    if corpus.glob is None:
        names = [name for name in names if name.endswith(SUFFIXES)]
    if not names:
        what = corpus.glob or ", ".join("*" + suffix for suffix in SUFFIXES)
        raise InputError(f"{corpus.path}: holds no file that matches {what} (corpus.glob)")
    return {name: folder.resolve_paths(name) for name in sorted(names)}


class FileReader:
    """Iterates over one file's records; afterwards `sha256` is the hash of the file's bytes."""

    def __init__(self, path: str, name: str, settings: CorpusSettings) -> None:
        self.path, self.name, self.settings = path, name, settings
        self.sha256 = ""

    def __iter__(self) -> Iterator[Record | Rejected]:
        if self.name.endswith(".parquet"):
            self.sha256 = _hash_file(self.path)
            yield from self._parquet()
            return
        filesystem, path = _filesystem(self.path)
        with filesystem.open(path, "rb") as raw:
            hashing = _HashingStream(raw)
            lines = _lines(_decompress(hashing, self.name), self.settings.max_record_bytes)
            for number, line in enumerate(lines, start=1):
                if isinstance(line, _Damage):
                    yield _rejected(self.name, number, line.reason, line.detail, line.rest)
                elif isinstance(line, _LongLine):
                    detail = f"{line.n_bytes} bytes, more than {self.settings.max_record_bytes}"
                    reason = "record is too long"
                    yield Rejected(
                        self.name, number, reason, detail, line.head, line.n_bytes, line.sha256
                    )
                elif line.strip():
                    yield parse_record(line, self.name, number, self.settings)
            hashing.drain()
            self.sha256 = hashing.digest.hexdigest()

    def _parquet(self) -> Iterator[Record | Rejected]:
        number = 0
        filesystem, path = _filesystem(self.path)
        try:
            with filesystem.open(path, "rb") as raw, pq.ParquetFile(raw) as file:
                for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                    for row in _rows(batch):
                        number += 1
                        yield self._parquet_record(row, number)
        except (pa.ArrowException, OSError) as error:
            yield _rejected(self.name, number + 1, "damaged file", str(error), b"")

    def _parquet_record(self, row: dict[str, Any] | _BadRow, number: int) -> Record | Rejected:
        if isinstance(row, _BadRow):
            return _rejected(self.name, number, "invalid UTF-8", row.detail, row.raw)
        data = json.dumps(row, ensure_ascii=True, default=str).encode()
        if len(data) > self.settings.max_record_bytes:
            detail = f"{len(data)} bytes as JSON, more than {self.settings.max_record_bytes}"
            return _rejected(self.name, number, "record is too long", detail, data)
        return _record(row, data, self.name, number, self.settings)


@dataclass(frozen=True)
class _BadRow:
    """A row of Parquet with a string that is no UTF-8; `raw` is the row as text."""

    detail: str
    raw: bytes


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | _BadRow]:
    """The rows of a batch; Parquet says that its strings are UTF-8, but nobody checks it."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(len(batch)):
            one = batch.slice(number, 1)
            try:
                yield one.to_pylist()[0]
            except UnicodeDecodeError as error:
                yield _BadRow(f"at byte {error.start} of a string", _raw_row(one))
    else:
        yield from rows


def _raw_row(row: pa.RecordBatch) -> bytes:
    """A batch of one row as text, its strings as bytes."""
    values = (
        column.cast(pa.binary()).to_pylist()[0] if pa.types.is_string(column.type) else column
        for column in row.columns
    )
    return "\n".join(map("{}: {}".format, row.schema.names, values)).encode()


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
        return _rejected(file, number, "invalid UTF-8", f"at byte {error.start}", line)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _rejected(file, number, "invalid JSON", str(error), line)
    return _record(value, line, file, number, settings)


def _record(
    value: Any, raw: bytes, file: str, number: int, settings: CorpusSettings
) -> Record | Rejected:
    def reject(reason: str, detail: str) -> Rejected:
        return _rejected(file, number, reason, detail, raw)

    if not isinstance(value, dict):
        return reject("not an object", f"found {type(value).__name__}")
    text = _field(value, settings.text_field)
    if text is None:
        return reject("no text", f"the field '{settings.text_field}' is missing or null")
    if not isinstance(text, str):
        return reject("text is not a string", f"found {type(text).__name__}")
    if not _encodable(text):
        return reject("invalid UTF-8", "the text holds a lone surrogate")
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
        optional[name] = found or None
    if optional["lang"] is not None and not LANGUAGE_CODE.fullmatch(optional["lang"]):
        return reject("lang is no language code", f"found {optional['lang'][:80]!r}")
    return Record(
        id=identifier,
        text=text,
        lang=optional["lang"],
        source=optional["source"] or _without_suffix(file),
        group=optional["group"],
        file=file,
        line=number,
        raw=raw,
    )


def _rejected(file: str, line: int, reason: str, detail: str, raw: bytes) -> Rejected:
    digest = hashlib.sha256(raw).hexdigest()
    return Rejected(file, line, reason, detail, raw[:KEPT_BYTES], len(raw), digest)


def reject_record(record: Record, reason: str, detail: str) -> Rejected:
    """Quarantine a record that was read well but cannot stand (say, its id stood before)."""
    return _rejected(record.file, record.line, reason, detail, record.raw)


def _without_suffix(file: str) -> str:
    """A file's name without the suffix of its format; folders may have dots in their names."""
    suffix = max((s for s in SUFFIXES if file.endswith(s)), key=len, default="")
    return file.removesuffix(suffix)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _field(value: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    filesystem, inner = fsspec.core.url_to_fs(path)
    return filesystem, inner


def _hash_file(path: str) -> str:
    filesystem, inner = _filesystem(path)
    with filesystem.open(inner, "rb") as raw:
        stream = _HashingStream(raw)
        stream.drain()
    return stream.digest.hexdigest()


class _HashingStream:
    """A binary stream that hashes what is read from it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self.digest.update(data)
        return data

    def drain(self) -> None:
        while self.read(READ_BYTES):
            pass


@dataclass(frozen=True)
class _Damage:
    """The point from which a file cannot be read; `rest` is the unfinished line before it."""

    reason: str
    detail: str
    rest: bytes


@dataclass(frozen=True)
class _LongLine:
    head: bytes
    n_bytes: int
    sha256: str


def _decompress(stream: _HashingStream, name: str) -> Iterator[bytes | _Damage]:
    if name.endswith(".gz"):
        return _gunzip(stream)
    if name.endswith(".zst"):
        return _unzstd(stream)
    return iter(lambda: stream.read(READ_BYTES), b"")


def _gunzip(stream: _HashingStream) -> Iterator[bytes | _Damage]:
    # GzipFile reads concatenated members and checks their sums.
    with gzip.GzipFile(fileobj=stream, mode="rb") as file:  # type: ignore[call-overload]
        while True:
            try:
                # read() would lose what it holds already when the stream breaks off.
                data = file.read1(READ_BYTES)
            except EOFError:
                yield _Damage("truncated file", "the gzip stream ends too early", b"")
                return
            except (gzip.BadGzipFile, zlib.error) as error:
                yield _Damage("damaged file", str(error), b"")
                return
            if not data:
                return
            yield data


def _unzstd(stream: _HashingStream) -> Iterator[bytes | _Damage]:
    # The library's stream reader ends silently inside a frame; the decompressor object tells.
    decompressor: Any = None
    data = b""
    while data or (data := stream.read(READ_BYTES)):
        if decompressor is None:
            decompressor = zstandard.ZstdDecompressor().decompressobj()
        try:
            yield decompressor.decompress(data)
        except zstandard.ZstdError as error:
            yield _Damage("damaged file", str(error), b"")
            return
        data = b""
        if decompressor.eof:
            data, decompressor = decompressor.unused_data, None
    if decompressor is not None:
        yield _Damage("truncated file", "the zstd stream ends inside a frame", b"")


def _lines(
    chunks: Iterable[bytes | _Damage], max_bytes: int
) -> Iterator[bytes | _LongLine | _Damage]:
    """Split chunks at line ends; a line of over `max_bytes` is never held in memory as a whole."""
    held: list[bytes] = []
    n_held = 0
    long_digest: Any = None  # of the line at work, once it is over the limit
    head = b""
    long_bytes = 0

    def close() -> bytes | _LongLine:
        nonlocal held, n_held, long_digest
        if long_digest is None:
            line = b"".join(held)
            held, n_held = [], 0
            return line
        result = _LongLine(head, long_bytes, long_digest.hexdigest())
        long_digest = None
        return result

    def hold(piece: bytes) -> None:
        nonlocal held, n_held, long_digest, head, long_bytes
        if long_digest is not None:
            long_digest.update(piece)
            long_bytes += len(piece)
            return
        held.append(piece)
        n_held += len(piece)
        if n_held > max_bytes:
            whole = b"".join(held)
            held, n_held = [], 0
            long_digest = hashlib.sha256(whole)
            head, long_bytes = whole[:KEPT_BYTES], len(whole)

    for chunk in chunks:
        if isinstance(chunk, _Damage):
            rest = close()
            if isinstance(rest, _LongLine):
                yield rest
                rest = b""
            yield _Damage(chunk.reason, chunk.detail, rest)
            return
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            hold(chunk[start:end])
            yield close()
            start = end + 1
        if start < len(chunk):
            hold(chunk[start:])
    if held or long_digest is not None:
        yield close()
