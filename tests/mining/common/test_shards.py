"""Token shards: read as written, and everything else refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining.common.errors import InputError, MismatchError
from mining.common.shards import (
    ShardInfo,
    common_info,
    list_shards,
    read_columns,
    read_shard,
    shard_info,
    write_shard,
)


def write(path: Path, fingerprint: str, n: int = 300) -> None:
    columns = {
        "id": [f"d{k}" for k in range(n)], "lang": ["en"] * n, "source": ["s"] * n,
        "group": pa.array([None] * n, pa.string()), "n_chars": [5] * n,
        "tokens": [[k * k % 977, k] for k in range(n)],
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    write_shard(path, pa.table(columns), ShardInfo("token", fingerprint))


def test_shards_of_two_tokenizers_are_told_with_both_fingerprints(tmp_path: Path) -> None:
    for k, fingerprint in enumerate(("a" * 64, "a" * 64, "b" * 64)):
        write(tmp_path / f"{k:05d}.parquet", fingerprint)
    paths = list_shards(tmp_path)
    assert common_info(paths[:2]) == ShardInfo("token", "a" * 64)
    named = f"00000.parquet.*{'a' * 64}.*00002.parquet.*{'b' * 64}"
    with pytest.raises(MismatchError, match=named):
        common_info(paths)


def test_other_files_are_no_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no token shards"):
        list_shards(tmp_path)
    path = tmp_path / "00000.parquet"
    for other in (pa.table({"id": ["a"], "tokens": [[1]]}), pa.table({"x": [1.5]})):
        pq.write_table(other, path)
        with pytest.raises(InputError, match=r"00000\.parquet: not a token shard"):
            list(read_shard(path))
    write(path, "f")
    some = {"pivots_format": "1", "unit": "token"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(some), path)
    with pytest.raises(InputError, match=r"00000\.parquet: not a token shard"):
        shard_info(path)
    for data in (b"", b"PAR1", b"text" * 100):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"00000\.parquet: not a readable Parquet file"):
            shard_info(path)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_bit_that_flips_is_noticed_and_the_file_named(tmp_path: Path, place: float) -> None:
    path = tmp_path / "00000.parquet"
    write(path, "f")
    row_group = pq.read_metadata(path).row_group(0)
    column = row_group.column(row_group.num_columns - 1)
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset + int(place * column.total_compressed_size)] ^= 4
    path.write_bytes(bytes(data))
    for read in (lambda: list(read_shard(path)), lambda: read_columns(path, ["tokens"])):
        with pytest.raises(InputError, match=re.escape(f"{path}: is damaged")):
            read()
    assert read_columns(path, ["id"]).num_rows == 300  # the other columns' pages are whole
