"""Rows of Parquet and Arrow files (the latter as Hugging Face `save_to_disk` writes them)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mining.lines import Damage
from mining.remote import open_filesystem

ROW_SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 64  # few, as a dictionary can spell a long string again in each row
ARROW_FILE = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
# What the libraries raise for values that are not what the file says.
BAD_VALUES = (pa.ArrowException, ValueError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class BadRow:
    """A row whose values are not what the file says; `raw` is the row as text."""

    reason: str
    detail: str
    raw: bytes


def read_rows(path: str) -> Iterator[dict[str, Any] | BadRow | Damage]:
    """The rows of a file; where it cannot be read further, one Damage as the last."""
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as raw:
        file = _Watched(raw)
        try:
            for batch in _parquet(file) if path.endswith(".parquet") else _arrow(file):
                yield from _rows(batch)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if file.trouble is not None:
                raise file.trouble from None
            yield Damage("damaged file", str(error), b"")
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
        self.trouble: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._raw.read(size)
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


def _parquet(raw: _Watched) -> Iterator[pa.RecordBatch]:
    # Of files whose writer gave their pages checksums, as those of Java do.
    with pq.ParquetFile(raw, page_checksum_verification=True) as file:
        # Each by itself: a batch across two of them is lost as a whole where the second is damaged.
        for group in range(file.num_row_groups):
            yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])


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


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch; nobody else checks that its bytes are what the format says.

    Unchecked, a damaged Arrow file makes the library read memory that is not the file's.
    """
    try:
        rows = _checked(batch)
    except BAD_VALUES:
        for number in range(len(batch)):
            one = batch.slice(number, 1)
            try:
                yield from _checked(one)
            except UnicodeDecodeError as error:
                yield BadRow("invalid UTF-8", f"at byte {error.start} of a string", _raw_row(one))
            except BAD_VALUES as error:
                reason = "invalid UTF-8" if "UTF8" in str(error) else "damaged row"
                yield BadRow(reason, str(error), _raw_row(one))
    else:
        yield from rows


def _checked(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    batch.validate(full=True)
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


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
