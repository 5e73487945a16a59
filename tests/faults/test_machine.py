"""What machines do: disks that are full or read-only, files that vanish, bits that flip."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mining.common.manifest import MANIFEST, read_manifest
from tests.conftest import folder_bytes
from tests.faults.harness import CHAIN, SECRET, Chain, is_done, pivots, wait_until_at_work
from tests.mining.test_documents import read_long_line

pytestmark = pytest.mark.faults
FULL, BUSY, DAMAGED = 7, 4, 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, of 64 KiB."""
    # Only root may mount. A limit of file sizes or a quota gives other errors than a full disk, and
    # the project's code is not at fault where a user lacks the right: what needs it is left out.
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        # Containers take the right from root too, and nothing in them can give it back.
        pytest.skip("no file system can be mounted here, as in a container without CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize("stage", CHAIN)
def test_a_full_disk_is_told_and_nothing_half_written_counts(
    chain: Chain, small_disk: Path, stage: str
) -> None:
    log = small_disk.parent / "logs"
    log.mkdir()
    expected = chain.base / chain.part(stage)
    size = sum(len(data) for data in folder_bytes(expected).values())
    codes = []
    # From too little for the lock's own text to almost enough.
    for share in (0.1, 0.5, 0.9):
        remount(small_disk, f"size={max(8 << 10, int(size * share))}")
        started = chain.start(stage, small_disk / "run", log=log / f"{share}")
        codes.append(started.process.wait(timeout=1800))
        text = started.log.read_text()
        if is_done(small_disk / "run" / chain.part(stage)):
            break  # it needs less than its files' sizes add up to
        assert codes[-1] == FULL, text[-2000:]
        assert "No space left on device" in text
        assert "Traceback" not in text
    assert FULL in codes
    remount(small_disk, "size=512m")
    chain.start(stage, small_disk / "run", log=log / "again").finish()
    assert not chain.differences(stage, small_disk / "run")


@pytest.mark.parametrize("stage", ["tokenize", "count", "train", "report"])
def test_a_read_only_output_is_told(chain: Chain, small_disk: Path, stage: str) -> None:
    remount(small_disk, "ro")
    started = chain.start(stage, small_disk / "run", log=small_disk.parent / "log")
    assert started.process.wait(timeout=600) == FULL
    assert "Read-only file system" in started.log.read_text()
    assert "Traceback" not in started.log.read_text()


def test_a_document_file_that_vanishes_is_named_and_missed_by_nobody(
    chain: Chain, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in (chain.base / "world" / "documents").iterdir():
        shutil.copy2(path, corpus)
    names = sorted(path.name for path in corpus.iterdir())
    options = ("--corpus.path", str(corpus), "--engine.workers", "1")
    chain.start("tokenize", tmp_path / "whole", "local", *options).finish()
    out = tmp_path / "run"
    started = chain.start("tokenize", out, "local", *options)
    parts = out / "tokenize" / ".work" / "parts"
    while not parts.is_dir():
        assert started.process.poll() is None
        time.sleep(0.001)
    away = tmp_path / names[-1]
    (corpus / names[-1]).rename(away)
    assert started.process.wait(timeout=600) == FULL
    text = started.log.read_text()
    assert names[-1] in text
    assert "No such file" in text
    assert "Traceback" not in text
    away.rename(corpus / names[-1])
    chain.start("tokenize", out, "local", *options).finish()
    assert folder_bytes(out / "tokenize") == folder_bytes(tmp_path / "whole" / "tokenize")


def test_of_two_commands_on_one_output_the_second_says_who_holds_it(
    chain: Chain, tmp_path: Path
) -> None:
    first = chain.start("train", tmp_path / "run", log=tmp_path / "one")
    assert wait_until_at_work(first, tmp_path / "run" / chain.part("train"))
    second = chain.start("train", tmp_path / "run", log=tmp_path / "two")
    assert second.process.wait(timeout=600) == BUSY
    assert f"`pivots train` (process {first.process.pid} on " in second.log.read_text()
    first.finish()
    assert not chain.differences("train", tmp_path / "run")


@pytest.mark.parametrize("stage", CHAIN)
def test_a_flipped_bit_is_found_by_its_checksum_and_named(
    chain: Chain, tmp_path: Path, stage: str
) -> None:
    """One bit in one file of each kind that the stage writes, and in its manifest."""
    folder = tmp_path / "copy"
    shutil.copytree(chain.base / chain.part(stage), folder)
    kinds = {Path(name).suffix: name for name in read_manifest(folder).outputs}
    draw = random.Random(stage)
    assert kinds
    for name in (*kinds.values(), MANIFEST):
        path = folder / name
        good = path.read_bytes()
        if not good:
            continue
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        started = pivots(tmp_path / "log", "verify", str(folder))
        assert started.process.wait(timeout=600) == DAMAGED
        told = "" if name == MANIFEST else ": content differs from its manifest"
        assert f"{path}{told}" in started.log.read_text()
        path.write_bytes(good)
    pivots(tmp_path / "log", "verify", str(folder)).finish()


def test_no_secret_of_the_environment_is_in_any_output(chain: Chain, tmp_path: Path) -> None:
    """Manifests, run.json, reports, logs and W&B's own files (which are compressed or not)."""
    started = chain.start(
        "train", tmp_path / "run", "local", "--wandb.mode", "offline", "--verbose"
    )
    started.finish()
    assert list((tmp_path / "run").rglob("*.wandb"))
    files = [path for root in (chain.root, tmp_path) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 100
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files, of a name that is short enough for sockets in it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_what_lies_about_is_readable_by_nobody_else(
    chain: Chain, tmp_path: Path, scratch: Path
) -> None:
    """Under a private umask no stage widens the rights of a file, and nothing is left in /tmp."""
    before = os.umask(0o077)
    try:
        for stage in ("tokenize", "count", "train", "report"):
            chain.start(stage, tmp_path / "run", TMPDIR=str(scratch)).finish()
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    left = [path.name for path in scratch.rglob("*") if path.is_file()]
    assert not left


def test_temporary_files_are_private_while_a_stage_works(
    chain: Chain, tmp_path: Path, scratch: Path
) -> None:
    """Under the usual umask: whatever appears in the shared folder is for its owner alone."""
    rights: dict[str, int] = {}
    before = os.umask(0o022)
    try:
        # Its processes are forked from one that they reach by a socket in there.
        started = chain.start("tokenize", tmp_path / "run", TMPDIR=str(scratch))
    finally:
        os.umask(before)
    while started.process.poll() is None:
        for entry in os.scandir(scratch):
            with contextlib.suppress(FileNotFoundError):
                rights[entry.name] = entry.stat().st_mode & 0o777
        time.sleep(0.002)
    started.finish()
    assert rights
    assert {name: right for name, right in rights.items() if right & 0o077} == {}


def test_a_shard_of_which_a_bit_flipped_stops_the_next_stage(chain: Chain, tmp_path: Path) -> None:
    copy = tmp_path / "tokenize"
    shutil.copytree(chain.base / "tokenize", copy)
    path = max((copy / "tokens").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    started = chain.start("count", tmp_path / "run", "local", f"--inputs.tokenize={copy}")
    assert started.process.wait(timeout=600) == DAMAGED
    assert f"{path}: is damaged" in started.log.read_text()
    assert not is_done(tmp_path / "run" / "count")


def test_other_peoples_names_lead_nowhere(chain: Chain, tmp_path: Path) -> None:
    """Ids, sources, groups and languages that are paths: text in a table, or in quarantine."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    ways = [
        "../../escaped",
        "/tmp/escaped-by-an-id",
        "..",
        "a/../../../b",
        "x\0y",
        "~root",
        "C:\\x",
    ]
    lines = [
        json.dumps(
            {"id": f"{way}{k}", "text": f"LA text {k}", "lang": "la", "source": way, "group": way}
        )
        for k, way in enumerate(ways)
    ]
    lines += [json.dumps({"id": f"l{k}", "text": "t", "lang": way}) for k, way in enumerate(ways)]
    (corpus / "a.jsonl").write_text("\n".join(lines))
    out = tmp_path / "run"
    chain.start("tokenize", out, "local", "--corpus.path", str(corpus)).finish()
    counts = read_manifest(out / "tokenize").counts
    assert counts["documents"] == len(ways)
    assert counts["quarantined"] == {"lang is no language code": len(ways)}
    assert {p.name for p in tmp_path.iterdir()} == {"corpus", "run"}
    assert {p.name for p in out.iterdir()} == {"log", "run.log", "tokenize"}
    assert (out / "tokenize" / MANIFEST).is_file()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_of_a_gigabyte(tmp_path: Path, suffix: str) -> None:
    read_long_line(tmp_path, suffix, 1 << 30)
