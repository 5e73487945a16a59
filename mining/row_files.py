"""Rows of Parquet and Arrow files (the latter as Hugging Face `save_to_disk` writes them)."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mining.lines import KEPT_BYTES, Damage, LongRecord
from mining.remote import open_filesystem

ROW_SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 64
# More than that is turned into Python's objects row by row: a dictionary or a compressed page can
# spell a long string again and again in a few bytes.
BATCH_BYTES = 8 << 20
ARROW_FILE = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
# What the libraries raise for values that are not what the file says.
BAD_VALUES = (pa.ArrowException, ValueError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class BadRow:
    """A row whose values are not what the file says; `raw` is the row as text."""

    reason: str
    detail: str
    raw: bytes


def read_rows(path: str, max_bytes: int) -> Iterator[dict[str, Any] | BadRow | LongRecord | Damage]:
    """The rows of a file; a Damage for each part of it that cannot be read.

    A row whose strings have more than `max_bytes` is a LongRecord, and never a whole object.
    """
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as raw:
        file = _Watched(raw)
        try:
            for batch in _parquet(file) if path.endswith(".parquet") else _arrow(file):
                if isinstance(batch, Damage):
                    yield batch
                else:
                    yield from _rows(batch, max_bytes)
        except DAMAGE as error:
            yield file.damage(error)
        except _TruncatedError:
            yield Damage("truncated file", "the Arrow stream has no end mark", b"")


class _TruncatedError(Exception):
    pass


class _Watched(io.RawIOBase):
    """A file that keeps the error of its own reading: the disk's or the network's, not the file's.

    The library raises OSErrors for damage as well, and a bad place to go to is damage.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._end = raw.seek(0, 2)
        raw.seek(0)
        self.trouble: OSError | None = None

    def damage(self, error: Exception, where: str = "") -> Damage:
        """What an error of the library's means for the file; raises one of reading itself."""
        if self.trouble is not None:
            raise self.trouble from None
        return Damage("damaged file", f"{where}{error}", b"")

    def read(self, size: int = -1) -> bytes:
        try:
            # Damaged lengths ask for more than any machine has.
            return self._raw.read(size if size < 0 else min(size, self._end))
        except OSError as error:
            self.trouble = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _parquet(raw: _Watched) -> Iterator[pa.RecordBatch | Damage]:
    # Of files whose writer gave their pages checksums, as those of Java do.
    with pq.ParquetFile(raw, page_checksum_verification=True) as file:
        names = [field.name for field in file.schema_arrow if _is_text(field.type)]
        raw.seek(0)
        # As a dictionary, so that a string that many rows share is there once.
        with pq.ParquetFile(raw, page_checksum_verification=True, read_dictionary=names) as shared:
            # Each by itself: what is damaged in one takes nothing from the others.
            for group in range(file.num_row_groups):
                yield from _row_group(raw, (shared, file), group)


def _row_group(
    raw: _Watched, ways: tuple[pq.ParquetFile, ...], group: int
) -> Iterator[pa.RecordBatch | Damage]:
    """Batches of a row group by the first way that the library has for its encodings."""
    n_rows, found = ways[0].metadata.row_group(group).num_rows, 0
    row_bytes = ways[0].metadata.row_group(group).total_byte_size // max(1, n_rows)
    size = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
    for way in ways:
        try:
            for batch in way.iter_batches(batch_size=size, row_groups=[group]):
                found += len(batch)
                yield batch
            return
        except DAMAGE as error:
            # Of differences from value to value the library makes no dictionary.
            if "Not yet implemented" in str(error) and way is ways[0] and not found:
                continue
            where = f"row group {group}, {n_rows - found} of {n_rows} rows: "
            yield raw.damage(error, where)
            return


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _arrow(raw: _Watched) -> Iterator[pa.RecordBatch]:
    if raw.read(len(ARROW_FILE)) == ARROW_FILE:
        file = pa.ipc.open_file(raw)
        for number in range(file.num_record_batches):
            yield from _pieces(file.get_batch(number))
        return
    # The library takes a stream that breaks off between two batches for a whole one.
    size = raw.seek(0, 2)
    raw.seek(max(0, size - len(ARROW_STREAM_END)))
    whole = raw.read() == ARROW_STREAM_END
    raw.seek(0)
    for batch in pa.ipc.open_stream(raw):
        yield from _pieces(batch)
    if not whole:
        raise _TruncatedError


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(batch), BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _rows(batch: pa.RecordBatch, max_bytes: int) -> Iterator[dict[str, Any] | BadRow | LongRecord]:
    """The rows of a batch; nobody else checks that its bytes are what the format says.

    Unchecked, a damaged Arrow file makes the library read memory that is not the file's.
    """
    rows = None
    with contextlib.suppress(*BAD_VALUES):
        batch.validate(full=True)
        if _spelled_bytes(batch) <= min(BATCH_BYTES, max_bytes):
            rows = _decoded(batch).to_pylist()
    if rows is not None:
        yield from rows
        return
    for number in range(len(batch)):
        one = batch.slice(number, 1)
        try:
            one = _decoded(one)
            one.validate(full=True)
            n_bytes = _spelled_bytes(one)
            yield _long_row(one, n_bytes) if n_bytes > max_bytes else one.to_pylist()[0]
        except UnicodeDecodeError as error:
            yield BadRow("invalid UTF-8", f"at byte {error.start} of a string", _raw_row(one))
        except BAD_VALUES as error:
            reason = "invalid UTF-8" if "UTF8" in str(error) else "damaged row"
            yield BadRow(reason, str(error), _raw_row(one))


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without dictionaries, whose other values are no matter of these rows."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _spelled_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of a checked batch's strings, those of dictionaries once for each row."""
    total = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and _has_length(column.type.value_type):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
        elif _has_length(column.type):
            lengths = pc.binary_length(column)
        else:
            continue
        total += pc.sum(lengths).as_py() or 0
    return total


def _has_length(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )  # fmt: skip


def _long_row(row: pa.RecordBatch, n_bytes: int) -> LongRecord:
    """A batch of one row: its strings by name, of which the beginning is kept."""
    digest, head = hashlib.sha256(), b""
    for name, column in zip(row.schema.names, row.columns, strict=True):
        value = column[0].as_buffer() if _has_length(column.type) and column[0].is_valid else b"-"
        for piece in (f"{name}: ".encode(), value, b"\n"):
            digest.update(piece)
            head += bytes(memoryview(piece)[: KEPT_BYTES - len(head)])
    return LongRecord(head, n_bytes, digest.hexdigest())


def _raw_row(row: pa.RecordBatch) -> bytes:
    """A batch of one row as text, its strings as bytes, what cannot be read as the reason."""
    lines = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        value: Any = column
        try:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                column.validate()
                value = column.cast(pa.binary()).to_pylist()[0]
            else:
                column.validate(full=True)
        except BAD_VALUES as error:
            value = f"({error})"
        lines.append(f"{name}: {value}")
    return "\n".join(lines).encode()
