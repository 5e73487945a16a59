"""Documents from Hugging Face datasets and from anywhere that fsspec reaches."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from mining.common.errors import InputError, MissingDependencyError
from mining.common.manifest import read_manifest
from mining.common.stage import FilesInput
from mining.documents import FileReader, Record, Rejected, list_documents
from mining.engine_settings import EngineSettings
from mining.remote import file_stamp, open_filesystem
from mining.row_files import read_rows
from mining.settings import CorpusSettings, TokenizeSettings
from mining.tokenize import run_tokenize
from tests.conftest import REPOSITORY, folder_bytes

ROWS = [
    {"id": f"d{k}", "text": f"text {k} cat", "lang": "en", "metadata": {"page": f"p{k}"}}
    for k in range(7)
]


def read_all(corpus: CorpusSettings) -> tuple[list[Record], list[Rejected]]:
    items = [
        item
        for name, path in list_documents(corpus).items()
        for item in FileReader(path, name, corpus)
    ]
    good = [item for item in items if isinstance(item, Record)]
    return good, [item for item in items if isinstance(item, Rejected)]


def save_dataset(folder: Path, rows: list[dict[str, Any]] = ROWS) -> CorpusSettings:
    """Two splits as `save_to_disk` writes them, and the cache file that a later step leaves."""
    train = datasets.Dataset.from_list(rows[:5])
    test = datasets.Dataset.from_list(rows[5:])
    saved = datasets.DatasetDict({"train": train, "test": test})
    saved.save_to_disk(folder, num_shards={"train": 2, "test": 1})
    (folder / "train" / "cache-0123.arrow").write_bytes(b"not part of the dataset")
    return CorpusSettings(path=str(folder), group_field="metadata.page")


def test_a_saved_dataset_is_read_whole_and_nothing_else(tmp_path: Path) -> None:
    corpus = save_dataset(tmp_path / "saved")
    assert list(list_documents(corpus)) == [
        "test/data-00000-of-00001.arrow",
        "train/data-00000-of-00002.arrow",
        "train/data-00001-of-00002.arrow",
    ]
    good, bad = read_all(corpus)
    assert not bad
    found = sorted((r.id, r.text, r.lang, r.group) for r in good)
    assert found == [(r["id"], r["text"], r["lang"], r["metadata"]["page"]) for r in ROWS]
    only = CorpusSettings(path=str(tmp_path / "saved"), glob="train/*.arrow")
    assert len(read_all(only)[0]) == 5
    (tmp_path / "saved" / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"data-00001-of-00002\.arrow is missing"):
        list_documents(corpus)


def test_a_hub_folder_of_parquet_and_jsonl_is_read_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    renamed = [{"content": r["text"], "language": r["lang"]} for r in ROWS]
    pq.write_table(
        pa.Table.from_pylist(renamed[:4]), tmp_path / "data/train-00000-of-00001.parquet"
    )
    lines = "".join(json.dumps(r) + "\n" for r in renamed[4:])
    (tmp_path / "data" / "extra.jsonl").write_text(lines)
    corpus = CorpusSettings(
        path=str(tmp_path), text_field="content", lang_field="language", id_field=None
    )
    good, bad = read_all(corpus)
    assert not bad
    assert sorted(r.text for r in good) == [r["text"] for r in ROWS]
    assert good[0].id == "data/extra.jsonl:1"  # the dataset has no ids: file and line
    assert len({r.id for r in good}) == len(ROWS)


def test_damaged_arrow_files_give_what_can_be_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    path = tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.slice(0, 4))
        writer.write_table(table.slice(4))
    whole = path.read_bytes()
    corpus = CorpusSettings(path=str(path))
    assert len(read_all(corpus)[0]) == 7

    path.write_bytes(whole[:-8])  # the library takes this for a whole stream
    good, bad = read_all(corpus)
    assert (len(good), [(r.reason, r.line) for r in bad]) == (7, [("truncated file", 8)])
    path.write_bytes(whole[:-200])
    good, bad = read_all(corpus)
    assert (len(good), [(r.reason, r.line) for r in bad]) == (4, [("damaged file", 5)])
    path.write_bytes(b"")
    good, bad = read_all(corpus)
    assert (good, [r.line for r in bad]) == ([], [1])

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert len(read_all(corpus)[0]) == 7


def test_a_url_gives_the_same_bytes_as_the_local_folder(
    tmp_path: Path,
    write_jsonl: Callable[[Path, Iterable[dict[str, Any]]], Path],
    word_tokenizer: Callable[[Iterable[str]], Path],
) -> None:
    local = tmp_path / "docs"
    save_dataset(local / "saved")
    write_jsonl(local / "lines.jsonl.gz", [{"id": "x", "text": "a cat"}, {"id": "y"}])
    pq.write_table(pa.Table.from_pylist([{"id": "z", "text": "cat z"}]), local / "rows.parquet")
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/pivots-test", recursive=True)
    tokenizer = word_tokenizer(["cat", "text"])
    engine = EngineSettings(workers=1)
    found = {}
    try:
        for name, path in (
            ("local", str(local)),
            ("file", f"file://{local}"),
            ("memory", "memory://pivots-test"),
        ):
            out = tmp_path / name
            run_tokenize(TokenizeSettings(), CorpusSettings(path=path), out, tokenizer, engine)
            found[name] = folder_bytes(out)
    finally:
        memory.rm("/pivots-test", recursive=True)
    assert found["file"] == found["local"]
    assert found["memory"] == found["local"]
    counts = read_manifest(tmp_path / "local", "tokenize").counts
    assert (counts["records"], counts["documents"]) == (10, 9)
    assert counts["quarantined"] == {"no text": 1}


def test_the_hub_is_a_file_system_too_and_a_missing_one_says_what_to_install() -> None:
    from huggingface_hub import HfFileSystem

    filesystem, path = open_filesystem("hf://datasets/somebody/corpus/data")
    assert isinstance(filesystem, HfFileSystem)
    assert path == "datasets/somebody/corpus/data"
    with pytest.raises(InputError, match="nowhere://x"):
        open_filesystem("nowhere://x")
    try:
        import s3fs  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="s3fs"):
            open_filesystem("s3://bucket/corpus")


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in (f"file://{tmp_path}/a", "memory://pivots-stamp"):
        with fsspec.open(path, "wb") as handle:
            handle.write(b"one")
        before = file_stamp(path)
        with fsspec.open(path, "wb") as handle:
            handle.write(b"two")
        assert before[0] == 3
        assert before != file_stamp(path)
    memory.rm("/pivots-stamp")


class _Breaking(LocalFileSystem):
    """A file system whose files can be read a few times only, as over a network that goes away."""

    protocol = "breaking"
    cachable = False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        raw = Path(path).open("rb")  # noqa: SIM115 (closed with the process)
        reads = itertools.count()

        class File(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                if next(reads) > 3:
                    raise FSTimeoutError
                return raw.read(size)

            def seek(self, offset: int, whence: int = 0) -> int:
                return raw.seek(offset, whence)

            def tell(self) -> int:
                return raw.tell()

        return File()


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_network_that_fails_is_no_damage_of_the_file(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"text": [f"text {k}" * 9 for k in range(9000)]})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=1000)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    fsspec.register_implementation("breaking", _Breaking, clobber=True)
    with pytest.raises(FSTimeoutError):
        list(read_rows(f"breaking://{path}", 1 << 20))


@pytest.mark.parametrize(
    "state", ["[" * 200_000, '{"_data_files": [{"filename": 1}, {"filename": "b"}]}']
)
def test_a_dataset_state_that_is_none_is_named(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    (tmp_path / "a.arrow").write_bytes(b"")
    with pytest.raises(InputError, match="names no _data_files"):
        list_documents(CorpusSettings(path=str(tmp_path)))


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).write_text("{}")
    for read in (
        lambda: list_documents(CorpusSettings(path=str(tmp_path))),
        lambda: FilesInput.folder(tmp_path),
    ):
        with pytest.raises(InputError, match=r"caf.xe9.jsonl' is not UTF-8; rename"):
            read()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_kilobytes_that_spell_gigabytes_take_bounded_memory(tmp_path: Path, suffix: str) -> None:
    """A dictionary says a text of a mebibyte once, and each of 2,000 rows says it again."""
    column = pa.DictionaryArray.from_arrays(np.zeros(2000, np.int32), ["a " * (1 << 19)])
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": column}), path, compression="zstd")
    else:
        with pa.ipc.new_stream(path, pa.schema([("text", column.type)])) as writer:
            writer.write_table(pa.table({"text": column}))
    assert path.stat().st_size < 2 << 20
    script = (
        "import sys\n"
        "from launch.bench.timing import memory_status\n"
        "from mining.documents import FileReader\n"
        "from mining.settings import CorpusSettings\n"
        "from mining.tokenize import _batches\n"
        "before = memory_status('VmHWM')\n"
        "reader = FileReader(sys.argv[1], sys.argv[1], CorpusSettings(id_field=None))\n"
        "sizes = [len(batch) for batch in _batches((item, '') for item in reader)]\n"
        "print((memory_status('VmHWM') - before) // 1024, max(sizes), sum(sizes))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    held, largest, n_rows = map(int, done.stdout.split())
    assert (largest, n_rows) == (64, 2000)
    assert held < 512
