from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from mining.common.errors import InputError, SettingsError
from mining.corpus_files import holds, reaches
from mining.documents import list_documents
from mining.inputs import CorpusInput
from mining.settings import CorpusSettings
from mining.token_settings import TokenFilesSettings


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def names(path: Path, glob: str | None = None) -> list[str]:
    return list(list_documents(CorpusSettings(path=str(path), glob=glob)))


def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "c", "en/a.jsonl", "z/y.jsonl")
    touch(tmp_path / "else", "deep/b.jsonl")
    (root / "fr").symlink_to("../else")
    (root / "aa").symlink_to("z")  # the folder keeps its own name
    (root / "en" / "loop").symlink_to("..")
    (root / "again").symlink_to("../else/deep")
    (root / "file.jsonl").symlink_to("../else/deep/b.jsonl")
    (tmp_path / "else" / "deep" / "itself").symlink_to(".")
    # `again` comes before what lies below `fr`, as both are links in the corpus' own folder.
    found = ["again/b.jsonl", "en/a.jsonl", "file.jsonl", "z/y.jsonl"]
    assert names(root) == found
    assert names(root, "**/*.jsonl") == found
    assert names(root, "fr/*/*.jsonl") == ["fr/deep/b.jsonl"]
    assert names(root, "*.jsonl") == ["file.jsonl"]
    (tmp_path / "link").symlink_to("c")
    assert names(tmp_path / "link") == found
    (root / "again").unlink()
    assert names(root)[-2:] == ["fr/deep/b.jsonl", "z/y.jsonl"]


def test_files_passed_over_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = touch(
        tmp_path, "a.jsonl", "b.jsonl.xz", "c.bz2", "d.json", "E.JSONL", "f/g.parquet_old",
        "README.txt", "LICENSE", "SHA256SUMS.txt", "a.jsonl.md5", ".h.json", ".git/i.json",
        "dataset_info.json", "notes.md",
    )  # fmt: skip
    (root / "fr").symlink_to("nowhere")
    assert names(root) == ["a.jsonl"]
    assert names(root) == ["a.jsonl"]
    [message] = [record.getMessage() for record in caplog.records]
    assert "passed over 6 file(s): E.JSONL, b.jsonl.xz, c.bz2, ... (documents are" in message
    assert names(root, "*.jsonl") == ["a.jsonl"]  # a pattern is a choice
    assert len(caplog.records) == 1
    (root / "a.jsonl").unlink()
    with pytest.raises(InputError, match=r"no file that matches .* there are 6 file"):
        names(root)


def test_names_that_end_as_those_of_dolma_are_read(tmp_path: Path) -> None:
    files = ["a.json.gz", "b.json.zst", "c.ndjson"]
    assert names(touch(tmp_path, *files)) == files


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "broken link", "link to itself"])
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    root = touch(tmp_path / "c", "a.jsonl")
    os.mkfifo(tmp_path / "pipe")
    odd = root / "b.jsonl"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"link to a pipe": "../pipe", "broken link": "no"}.get(kind, "b.jsonl"))
    with pytest.raises(InputError, match=r"b\.jsonl is no regular file"):
        names(root)
    assert names(root, "a*") == ["a.jsonl"]
    with pytest.raises(InputError, match="pipe: is no regular file"):
        names(tmp_path / "pipe")


def test_a_pipe_in_a_list_of_token_files_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "list.txt").write_text("pipe.npy\n")
    token_files = TokenFilesSettings(layout="sequences", files=str(tmp_path / "list.txt"))
    corpus = CorpusSettings(path=str(tmp_path), token_files=token_files)
    with pytest.raises(InputError, match=r"pipe\.npy: is no regular file"):
        CorpusInput(corpus).identity(None, None)


@pytest.mark.parametrize("glob", ["../x/*.jsonl", "en/../*.jsonl", "/data/*.jsonl", ""])
def test_a_pattern_that_leaves_the_folder_is_refused(glob: str) -> None:
    with pytest.raises(SettingsError, match=r"glob: found .* expected a pattern of names in"):
        CorpusSettings(path="c", glob=glob)


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_pattern_that_is_none_is_named(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{touch(tmp_path, 'a.jsonl')}"
    if scheme:
        fsspec.filesystem("memory").pipe_file(f"{tmp_path}/a.jsonl", b"")
    with pytest.raises(InputError, match=r"corpus\.glob: \*\*\.jsonl is no pattern"):
        list_documents(CorpusSettings(path=root, glob="**.jsonl"))


@pytest.mark.parametrize(
    ("glob", "folder", "expected"),
    [
        (None, "run", True),
        ("*.jsonl", "", True),
        ("*.jsonl", "run", False),
        (".jsonl", "run", False),
        ("*/*.jsonl", "run", True),
        ("*/*.jsonl", "run/count", False),
        ("en/*.jsonl", "run", False),
        ("**/*.jsonl", "run/count", True),
        ("**", "run/count", True),
        ("en/**", "run", False),
        ("r[tu]n/**", "run/count", True),
    ],
)
def test_how_deep_a_pattern_reaches(glob: str | None, folder: str, expected: bool) -> None:
    assert reaches(glob, [part for part in folder.split("/") if part]) == expected


def test_which_folders_are_the_corpus_own(tmp_path: Path) -> None:
    root, link = touch(tmp_path / "c", "a.jsonl"), tmp_path / "link"
    link.symlink_to("c")
    for path in (str(root), f"file://{root}", str(link), f"{root}/../c"):
        assert holds(CorpusSettings(path=path), link / "run")
        assert not holds(CorpusSettings(path=path), tmp_path / "c2")
        assert not holds(CorpusSettings(path=path, glob="*.jsonl"), root / "run")
    assert not holds(CorpusSettings(path=None), root)
    assert not holds(CorpusSettings(path=f"s3://{root}"), root / "run")
