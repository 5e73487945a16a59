"""Token shards: one Parquet file per input file, one row per document.

Columns: `id` (string, unique in the corpus), `lang` (string), `source` (string), `group` (string or
null; documents of one group, such as the translations of one page, never stand on both sides of the
validation split), `n_chars` (int64, Unicode code points), `tokens` (list of uint32, without special
tokens). The file's metadata carries the format version, the unit (`token` or `word`) and the
fingerprint of the tokenizer or vocabulary whose ids these are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.errors import InputError, MismatchError
from mining.common.files import atomic_path

FORMAT = b"1"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("lang", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("n_chars", pa.int64(), nullable=False),
        pa.field("tokens", pa.list_(pa.uint32()), nullable=False),
    ]
)
ROWS_PER_GROUP = 4096
# Each page with a checksum, so that a reader notices a bit that changed on a disk.
WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@dataclass(frozen=True)
class ShardInfo:
    """What a shard's metadata says: `unit` is "token" or "word", `fingerprint` a hex SHA-256."""

    unit: str
    fingerprint: str


@dataclass(frozen=True)
class TokenBatch:
    """Some documents of a shard.

    `tokens` uint32 [n_tokens] holds the documents' tokens one after another; document d's are
    `tokens[offsets[d]:offsets[d + 1]]`, `offsets` int64 [n_docs + 1]. The lists have n_docs
    entries; `n_chars` is int64 [n_docs].
    """

    id: list[str]
    lang: list[str]
    source: list[str]
    group: list[str | None]
    n_chars: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.id)


def write_table(path: Path, table: pa.Table, metadata: dict[str, str] | None = None) -> None:
    """Write a Parquet file atomically in the project's encoding (zstd): same table, same bytes."""
    if metadata:
        table = table.replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=1 << 20, **WRITE_OPTIONS)


def write_shard(path: Path, table: pa.Table, info: ShardInfo) -> None:
    """Write documents (a table of SCHEMA) as a shard, atomically."""
    metadata = {
        "pivots_format": FORMAT.decode(),
        "unit": info.unit,
        "fingerprint": info.fingerprint,
    }
    table = table.cast(SCHEMA).replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_PER_GROUP, **WRITE_OPTIONS)


def shard_metadata(info: ShardInfo) -> dict[str, str]:
    """The Parquet metadata of a shard."""
    return {"pivots_format": FORMAT.decode(), "unit": info.unit, "fingerprint": info.fingerprint}


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder (`<number>.parquet`), by number; InputError where there is none."""
    # By length first: names have five digits, and more from the 100,000th on.
    paths = sorted(folder.glob("[0-9]*.parquet"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise InputError(f"{folder}: holds no token shards (*.parquet)")
    return paths


def shard_info(path: Path) -> ShardInfo:
    """The unit and fingerprint of a shard; InputError where it is none of this format."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from None
    metadata = schema.metadata or {}
    named = {b"unit", b"fingerprint"} <= metadata.keys()
    if metadata.get(b"pivots_format") != FORMAT or not named or not schema.equals(SCHEMA):
        raise InputError(
            f"{path}: not a token shard (format {FORMAT.decode()}); write it with `pivots tokenize`"
        )
    return ShardInfo(metadata[b"unit"].decode(), metadata[b"fingerprint"].decode())


def common_info(paths: Sequence[Path]) -> ShardInfo:
    """The unit and fingerprint that all shards share; MismatchError names two that differ."""
    first = shard_info(paths[0])
    for path in paths[1:]:
        if (info := shard_info(path)) != first:
            raise MismatchError(f"{paths[0]} is of {first}, but {path} of {info}")
    return first


def read_shard(path: Path) -> Iterator[TokenBatch]:
    """Yield a shard's documents in batches of at most ROWS_PER_GROUP, in order."""
    shard_info(path)
    with open_table(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
            yield as_batch(batch)


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a stage, its pages held against their checksums while they are read.

    Raises InputError where it is damaged.
    """
    with _naming(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


def read_columns(
    path: Path, columns: Sequence[str] | None = None, as_codes: Sequence[str] = ()
) -> pa.Table:
    """Some columns of a Parquet file of a stage, or all; InputError where it is damaged.

    Strings of the columns `as_codes` are read as codes of a dictionary, as they are stored.
    """
    with _naming(path):
        return pq.read_table(
            path,
            columns=None if columns is None else list(columns),
            read_dictionary=list(as_codes),
            page_checksum_verification=True,
        )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, TimeoutError | ConnectionError):
            raise  # not all of them have a number
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's or the network's trouble, not the file's
        raise InputError(
            f"{path}: is damaged ({error}); `pivots verify` finds what else is, then remove the "
            "stage's manifest.json and run the stage again"
        ) from None


def as_batch(batch: pa.RecordBatch) -> TokenBatch:
    """View an Arrow record batch of SCHEMA as a TokenBatch."""
    lists = batch.column("tokens")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return TokenBatch(
        id=batch.column("id").to_pylist(),
        lang=batch.column("lang").to_pylist(),
        source=batch.column("source").to_pylist(),
        group=batch.column("group").to_pylist(),
        n_chars=batch.column("n_chars").to_numpy(),
        offsets=offsets - offsets[0],
        tokens=lists.values.to_numpy()[offsets[0] : offsets[-1]],
    )
