from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mining.common.errors import InputError
from mining.documents import FileReader, Record, Rejected, list_documents, parse_record
from mining.lines import LongRecord
from mining.row_files import read_rows
from mining.settings import CorpusSettings
from tests.conftest import REPOSITORY

CORPUS = CorpusSettings(group_field="metadata.page", max_record_bytes=1 << 16)


def line(i: int, text: str = "hello") -> bytes:
    return json.dumps({"id": f"d{i}", "text": text, "lang": "en"}).encode() + b"\n"


def read(path: Path) -> tuple[list[Record], list[Rejected], FileReader]:
    reader = FileReader(str(path), path.name, CORPUS)
    items = list(reader)
    good = [item for item in items if isinstance(item, Record)]
    return good, [item for item in items if isinstance(item, Rejected)], reader


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.compress(data) if suffix == ".zst" else data


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_compression_gives_the_same_records_and_the_files_hash(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    parts = [b"".join(line(i) for i in range(3)), b"".join(line(i) for i in range(3, 6))]
    path.write_bytes(b"".join(compress(part, suffix) for part in parts))  # two members
    good, bad, reader = read(path)
    assert [r.id for r in good] == [f"d{i}" for i in range(6)]
    assert [r.line for r in good] == list(range(1, 7))
    assert not bad
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert good[0].source == "a"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_archive_gives_what_can_be_read_and_one_quarantined_record(
    tmp_path: Path, suffix: str
) -> None:
    data = compress(b"".join(line(i, f"{i * 7919:x}" * 50) for i in range(3000)), suffix)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(data[: len(data) * 2 // 3])
    good, bad, reader = read(path)
    assert [r.id for r in good] == [f"d{i}" for i in range(len(good))]
    assert len(bad) == 1
    assert bad[0].reason == "truncated file"
    assert bad[0].line == len(good) + 1
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_garbage_in_an_archive_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(line(0), suffix) + b"garbage that is no member")
    good, bad, _ = read(path)
    assert [r.id for r in good] == ["d0"]
    assert [r.reason for r in bad] == ["damaged file"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"id": "x", "text": "cut', "invalid JSON"),
        (b'{"id": "x", "text": "\xff\xfe"}', "invalid UTF-8"),
        (b'{"id": "x", "text": "\\ud800"}', "invalid JSON"),
        (b"[1, 2]", "not an object"),
        (b'{"id": "x"}', "no text"),
        (b'{"id": "x", "text": null}', "no text"),
        (b'{"id": "x", "text": 5}', "text is not a string"),
        (b'{"text": "t"}', "no id"),
        (b'{"id": "", "text": "t"}', "no id"),
        (b'{"id": true, "text": "t"}', "no id"),
        (b'{"id": "' + b"x" * 5000 + b'", "text": "t"}', "id is too long"),
        (b'{"id": "x", "text": "t", "source": "' + b"x" * 5000 + b'"}', "source is too long"),
        (b'{"id": "x", "text": "t", "lang": 3}', "lang is not a string"),
        (b"[" * 10_000, "invalid JSON"),
        (
            b'{"id": "x", "text": "t", "metadata": ' + b"[" * 2000 + b"]" * 2000 + b"}",
            "invalid JSON",
        ),
        (b"\0" * 500, "invalid JSON"),  # what a crash leaves of a file's end
        (b'{"id": "x", "text": "a\0b"}', "invalid JSON"),
        (b'{"id": "x", "text": "\xed\xa0\x80"}', "invalid UTF-8"),  # a lone surrogate in bytes
        ('{"id": "x", "text": "été"}'.encode("latin-1"), "invalid UTF-8"),
        ('{"id": "x", "text": "日本"}'.encode("shift_jis"), "invalid UTF-8"),
        ('{"id": "x", "text": "t"}'.encode("utf-16"), "invalid UTF-8"),
        (b'\xef\xbb\xbf{"id": "x", "text": "t"}', "invalid JSON"),  # belongs at a file's start
        (b'{"id": "x", "text": "' + b"y" * (1 << 17) + b'"}', "record is too long"),
    ],
)
def test_a_bad_record_is_quarantined_and_the_rest_is_read(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(0) + raw + b"\n" + line(1))
    good, bad, _ = read(path)
    assert [r.id for r in good] == ["d0", "d1"]
    assert [(r.reason, r.line, r.n_bytes) for r in bad] == [(reason, 2, len(raw))]
    assert bad[0].sha256 == hashlib.sha256(raw).hexdigest()
    assert bad[0].raw == raw[: 64 << 10]


@given(
    st.lists(st.sampled_from(["a", "aa", "é", "日", " ", "\n", "\t", "\u3000"]), max_size=60),
    st.integers(1, 40),
)
def test_a_record_with_a_word_beyond_the_limit_is_quarantined(
    parts: list[str], max_bytes: int
) -> None:
    text = "x" * 10 + "".join(parts)  # long enough to be looked at
    raw = json.dumps({"id": "i", "text": text, "lang": "en"}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mining.documents.MAX_WORD_BYTES", max_bytes)
        found = parse_record(raw, "a.jsonl", 7, CorpusSettings(path="."))
    longest = max(len(word.encode()) for word in re.split("[ \n]", text))
    if longest <= max_bytes:
        assert isinstance(found, Record)
    else:
        assert isinstance(found, Rejected)
        assert (found.reason, found.line, found.raw) == ("word is too long", 7, raw)


def test_what_real_corpora_hold_is_no_word_that_is_too_long() -> None:
    """Minified code, base64 and a book of Chinese without a space."""
    for text in ("x" * 1_000_000, "这是很长的书。" * 50_000, ("天" * 2000 + "\n") * 2000):
        raw = json.dumps({"id": "i", "text": text}).encode()
        assert isinstance(parse_record(raw, "a.jsonl", 1, CorpusSettings(path=".")), Record)
    raw = json.dumps({"id": "i", "text": "a" * (4 << 20)}).encode()
    assert isinstance(parse_record(raw, "a.jsonl", 1, CorpusSettings(path=".")), Rejected)


def test_odd_but_good_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": 7, "text": "bom", "metadata": {"page": "p"}}\r\n'
        b"\n   \n"
        b'{"id": "z", "text": "a\\u0000b", "source": "s"}'  # NUL, no line end
    )
    good, bad, _ = read(path)
    assert not bad
    assert [(r.id, r.text, r.group, r.source, r.line) for r in good] == [
        ("7", "bom", "p", "a", 1),
        ("z", "a\0b", None, "s", 4),
    ]


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    assert read(path)[:2] == ([], [])


def test_parquet_and_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"id": f"d{i}", "text": "t", "metadata": {"page": str(i)}} for i in range(3)]
    pq.write_table(pa.Table.from_pylist([*rows, {"id": "bad", "text": None}]), path)
    good, bad, _ = read(path)
    assert [(r.id, r.group) for r in good] == [("d0", "0"), ("d1", "1"), ("d2", "2")]
    assert [(r.reason, r.line) for r in bad] == [("no text", 4)]
    path.write_bytes(path.read_bytes()[:-20])
    good, bad, _ = read(path)
    assert not good
    assert [r.reason for r in bad] == ["damaged file"]


def test_parquet_of_another_schema_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["u", "v"], "n": [[1], [2]]}), path)
    good, bad, _ = read(path)
    assert not good
    assert [(r.reason, r.line) for r in bad] == [("no text", 1), ("no text", 2)]
    pq.write_table(pa.table({"id": ["a"], "text": [[1, 2]], "lang": ["en"]}), path)
    assert [r.reason for r in read(path)[1]] == ["text is not a string"]


@pytest.mark.parametrize("kept", [False, True])
def test_parquet_with_a_corrupted_page(tmp_path: Path, kept: bool) -> None:
    """In the second row group: compressed, or with a checksum; the first and third are read."""
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [f"d{i}" for i in range(60)], "text": [f"text {i}" for i in range(60)]})
    pq.write_table(
        table, path, row_group_size=20, use_dictionary=False, write_page_checksum=kept,
        compression="none" if kept else "zstd",
    )  # fmt: skip
    column = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    # The last byte of the page: of a text, or of a compressed frame's content.
    end = column.data_page_offset + column.total_compressed_size
    data[end - 1 if kept else end - 20 : end] = b"x" * (1 if kept else 20)
    path.write_bytes(bytes(data))
    good, bad, _ = read(path)
    assert [r.id for r in good] == [f"d{i}" for i in (*range(20), *range(40, 60))]
    assert [(r.reason, r.line) for r in bad] == [("damaged file", 21)]
    assert bad[0].detail.startswith("row group 1, 20 of 20 rows: ")


MEASURED = """
import resource, sys
from mining.documents import read_records
from mining.settings import CorpusSettings
path = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [getattr(r, "reason", "good") for r in read_records(path, path, CorpusSettings(path=path))]
print(sorted(set(found)), len(found))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(("mebibytes", "rows"), [(20, 64), (80, 1)])
def test_a_few_bytes_that_spell_gigabytes_in_rows(
    tmp_path: Path, suffix: str, mebibytes: int, rows: int
) -> None:
    """One long string that all rows share, and one that is over the limit of a record."""
    text = pa.array(["a " * (mebibytes << 19)])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)
    table = pa.table({"id": [f"d{i}" for i in range(rows)], "text": column})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path, compression="zstd", store_schema=False)
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(path, table.schema, options=options) as writer:
            writer.write_table(table)
    assert path.stat().st_size < 100_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    kinds, peak = done.stdout.splitlines()
    assert kinds == f"['{'good' if rows > 1 else 'record is too long'}'] {rows}"
    assert int(peak) < 15 * mebibytes


@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=12)), min_size=1, max_size=20),
    limit=st.integers(20, 60),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_the_same_whatever_is_shared(
    tmp_path: Path, texts: list[str | None], limit: int
) -> None:
    """As a dictionary or not, taken at once or one by one; those over the limit are long."""
    table = pa.table({"text": pa.array(texts, pa.string()), "n": list(range(len(texts)))})
    paths = [tmp_path / f"{name}.parquet" for name in "abcd"]
    pq.write_table(table, paths[0], use_dictionary=False)
    pq.write_table(table, paths[1], row_group_size=3)
    for path, encoding in zip(
        paths[2:], ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"), strict=True
    ):
        pq.write_table(table, path, use_dictionary=False, column_encoding={"text": encoding})
    expected = table.to_pylist()
    for path in paths:
        assert list(read_rows(str(path), 1 << 20)) == expected
        for row, found in zip(expected, read_rows(str(path), limit), strict=True):
            size = len((row["text"] or "").encode())
            if size > limit:
                assert isinstance(found, LongRecord)
                assert found.n_bytes == size
                spelled = f"text: {row['text']}\nn: -\n".encode()
                assert found.head == spelled
                assert found.sha256 == hashlib.sha256(spelled).hexdigest()
            else:
                assert found == row


def test_listing_takes_files_folders_globs_and_urls(tmp_path: Path) -> None:
    for name in ("en/b.jsonl.gz", "en/a.jsonl", "fr/c.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def names(path: str, glob: str | None = None) -> list[str]:
        return list(list_documents(CorpusSettings(path=path, glob=glob)))

    assert names(str(tmp_path)) == ["en/a.jsonl", "en/b.jsonl.gz", "fr/c.parquet"]
    assert names(str(tmp_path), "en/*.gz") == ["en/b.jsonl.gz"]
    assert names(str(tmp_path / "en" / "a.jsonl")) == ["a.jsonl"]
    assert names(f"file://{tmp_path}/en") == ["a.jsonl", "b.jsonl.gz"]
    with pytest.raises(InputError, match="no file that matches"):
        names(str(tmp_path), "*.nothing")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match=r"empty: holds no file that matches .*\*\.jsonl"):
        names(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no such file or folder"):
        names(str(tmp_path / "missing"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(lambda t: json.dumps({"id": "i", "text": t}).encode(), st.text(max_size=9)),
        ),
        max_size=12,
    )
)
def test_no_record_is_lost_whatever_the_bytes(tmp_path: Path, lines: list[bytes]) -> None:
    """As many records come out as lines with content go in, each from its own line."""
    path = tmp_path / "a.jsonl"
    data = b"\n".join(lines)
    path.write_bytes(data)
    good, bad, _ = read(path)
    expected = [n for n, raw in enumerate(data.split(b"\n"), start=1) if raw.strip()]
    assert sorted([r.line for r in good] + [r.line for r in bad]) == expected


def test_parquet_strings_that_are_no_utf8_and_long_rows_are_quarantined(tmp_path: Path) -> None:
    borders, data = np.array([0, 2, 5, 7], dtype=np.int32), b"ok\xff\xfeagu"
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(borders.tobytes()), pa.py_buffer(data)]
    )
    table = pa.table({"id": ["a", "b", "c"], "text": texts})
    long = pa.table({"id": ["d"], "text": ["x" * (1 << 17)]})
    with pq.ParquetWriter(tmp_path / "f.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(long)
    good, bad, _ = read(tmp_path / "f.parquet")
    assert [(r.id, r.text) for r in good] == [("a", "ok"), ("c", "gu")]
    assert [(r.line, r.reason) for r in bad] == [(2, "invalid UTF-8"), (4, "record is too long")]
    assert rb"b'\xff\xfea'" in bad[0].raw
    assert (len(bad[1].raw), bad[1].n_bytes > 1 << 17) == (1 << 16, True)


@pytest.mark.parametrize("lang", ["../../x", "a/b", ".", "fr\n", "x" * 65])
def test_a_language_that_is_no_code_is_quarantined(tmp_path: Path, lang: str) -> None:
    """Languages name files further on."""
    (tmp_path / "f.jsonl").write_text(json.dumps({"id": "1", "text": "t", "lang": lang}))
    good, bad, _ = read(tmp_path / "f.jsonl")
    assert not good
    assert bad[0].reason == "lang is no language code"


def test_a_source_from_the_files_name_keeps_the_dots_of_folders() -> None:
    record = parse_record(b'{"id": "1", "text": "t"}', "v1.7/en.0.json.gz", 1, CORPUS)
    assert isinstance(record, Record)
    assert record.source == "v1.7/en.0"


@pytest.mark.parametrize("checked", [False, True])
def test_zstd_frames_of_every_kind(tmp_path: Path, checked: bool) -> None:
    """Skippable and empty frames, frames without a size, with a checksum, of raw blocks."""
    lines = [line(i, f"{i * 7919:x}" * 40) for i in range(60)]
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes().hex()
    lines[7] = line(7, noise[:60_000])
    streaming = zstandard.ZstdCompressor(write_checksum=checked).compressobj()
    data = (
        zstandard.ZstdCompressor(write_checksum=checked).compress(b"".join(lines[:20]))
        + (0x184D2A53).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"xxxxx"
        + zstandard.compress(b"")
        + streaming.compress(b"".join(lines[20:40])) + streaming.flush()
        + zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"".join(lines[40:]))
    )  # fmt: skip
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(data)
    good, bad, _ = read(path)
    assert [r.id for r in good] == [f"d{i}" for i in range(60)]
    assert not bad


@pytest.mark.parametrize(("suffix", "mib"), [("", 32), (".gz", 32), (".zst", 100)])
def test_a_long_line_is_read_in_bounded_memory(tmp_path: Path, suffix: str, mib: int) -> None:
    read_long_line(tmp_path, suffix, mib << 20)


def read_long_line(tmp_path: Path, suffix: str, n_bytes: int) -> None:
    """Read a line between two others; of zstd, some kilobytes spell all of it."""
    path = tmp_path / f"a.jsonl{suffix}"
    opened: dict[str, Callable[[Path, str], Any]] = {
        "": Path.open,
        ".gz": partial(gzip.open, compresslevel=1),
        ".zst": zstandard.open,
    }
    piece, digest = b"a" * (1 << 20), hashlib.sha256()
    with opened[suffix](path, "wb") as handle:
        handle.write(line(0))
        for _ in range(n_bytes >> 20):
            handle.write(piece)
            digest.update(piece)
        handle.write(b"\n" + line(1))
    script = (
        "import sys\n"
        "from launch.bench.timing import memory_status\n"
        "from mining.documents import FileReader\n"
        "from mining.settings import CorpusSettings\n"
        "before = memory_status('VmHWM')\n"
        "corpus = CorpusSettings(max_record_bytes=1 << 20)\n"
        "items = list(FileReader(sys.argv[1], sys.argv[1], corpus))\n"
        "more = memory_status('VmHWM') - before\n"
        "print(more // 1024, [getattr(i, 'id', None) for i in items])\n"
        "print(items[1].reason, items[1].n_bytes, items[1].sha256, len(items[1].raw))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    held, ids = first.split(" ", 1)
    assert ids == "['d0', None, 'd1']"
    assert int(held) < 16
    assert second == f"record is too long {n_bytes} {digest.hexdigest()} {64 << 10}"


def test_an_arrow_file_with_wrong_offsets_is_not_followed(tmp_path: Path) -> None:
    """The library would read memory that is not the file's."""
    borders = np.array([0, 2, 1 << 30, 5], dtype=np.int32)
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(borders.tobytes()), pa.py_buffer(b"okabc")]
    )
    batch = pa.RecordBatch.from_arrays([pa.array(["a", "b", "c"]), texts], ["id", "text"])
    path = tmp_path / "f.arrow"
    with pa.ipc.new_stream(path, batch.schema) as writer:
        writer.write_batch(batch)
    good, bad, _ = read(path)
    assert [r.id for r in good] == ["a"]
    assert [(r.line, r.reason) for r in bad] == [(2, "damaged row"), (3, "damaged row")]


def test_parquet_values_that_python_does_not_have(tmp_path: Path) -> None:
    """A date after the year 9999, as other programs write it."""
    when = pa.array([0, 1 << 62], pa.timestamp("us"))
    pq.write_table(
        pa.table({"id": ["a", "b"], "text": ["t", "u"], "when": when}), tmp_path / "f.parquet"
    )
    good, bad, _ = read(tmp_path / "f.parquet")
    assert [r.id for r in good] == ["a"]
    assert [(r.line, r.reason) for r in bad] == [(2, "damaged row")]
    assert b"text: b'u'" in bad[0].raw


def test_ids_that_are_huge_numbers(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(
        '{"id": 18446744073709551615, "text": "t"}\n'
        '{"id": 123456789012345678901234567890, "text": "no integer of 64 bits"}\n'
        '{"id": -5, "text": "u"}\n{"id": 1.5, "text": "v"}\n'
    )
    good, bad, _ = read(tmp_path / "f.jsonl")
    assert [r.id for r in good] == ["18446744073709551615", "-5"]
    assert [(r.line, r.reason) for r in bad] == [(2, "no id"), (4, "no id")]
