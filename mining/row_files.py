"""Rows of Parquet and Arrow files (the latter as Hugging Face `save_to_disk` writes them)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mining.lines import Damage
from mining.remote import open_filesystem

ROW_SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 1024
ARROW_FILE = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class BadRow:
    """A row with a string that is no UTF-8; `raw` is the row as text."""

    detail: str
    raw: bytes


def read_rows(path: str) -> Iterator[dict[str, Any] | BadRow | Damage]:
    """The rows of a file; where it cannot be read further, one Damage as the last."""
    filesystem, inner = open_filesystem(path)
    try:
        with filesystem.open(inner, "rb") as raw:
            for batch in _parquet(raw) if path.endswith(".parquet") else _arrow(raw):
                yield from _rows(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's trouble, not the file's
        yield Damage("damaged file", str(error), b"")
    except _TruncatedError:
        yield Damage("truncated file", "the Arrow stream has no end mark", b"")


class _TruncatedError(Exception):
    pass


def _parquet(raw: IO[bytes]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(raw) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow(raw: IO[bytes]) -> Iterator[pa.RecordBatch]:
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
    """The rows of a batch; the formats say that strings are UTF-8, but nobody checks it."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(len(batch)):
            one = batch.slice(number, 1)
            try:
                yield one.to_pylist()[0]
            except UnicodeDecodeError as error:
                yield BadRow(f"at byte {error.start} of a string", _raw_row(one))
    else:
        yield from rows


def _raw_row(row: pa.RecordBatch) -> bytes:
    """A batch of one row as text, its strings as bytes."""
    values = (
        column.cast(pa.binary()).to_pylist()[0]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        else column
        for column in row.columns
    )
    return "\n".join(map("{}: {}".format, row.schema.names, values)).encode()
