"""Reads the files of an offline W&B run back, for tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, LAST = 1, 4


@dataclass
class OfflineRun:
    """What one .wandb file holds: artifacts as (name, type, digest), nested keys joined by /."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    used: set[tuple[str, str, str]] = field(default_factory=set)
    made: set[tuple[str, str, str]] = field(default_factory=set)
    exit_code: int | None = None

    def values(self) -> dict[str, Any]:
        """The last value of each key of the history."""
        return {key: value for record in self.history for key, value in record.items()}

    def file(self, key: str) -> Path:
        """The file of a table or image that was logged."""
        path: str = self.values()[f"{key}/path"]
        return self.folder / "files" / path

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table that was logged."""
        content = json.loads(self.file(f"tables/{name}").read_text("utf-8"))
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def read_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs in `folder`/wandb, in the order in which they were begun."""
    files = (folder / "wandb").glob("offline-run-*/*.wandb")
    return [_read(path) for path in sorted(files, key=lambda path: path.stat().st_ctime_ns)]


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    found = OfflineRun(path.parent)
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.name, found.job_type = run.run_id, run.display_name, run.job_type
            found.group, found.tags = run.run_group, tuple(run.tags)
            found.config |= {u.key: json.loads(u.value_json) for u in run.config.update}
        elif kind == "history":
            items = record.history.item
            found.history.append({
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in items
            })  # fmt: skip
        elif kind == "artifact":
            artifact = record.artifact
            place = found.used if artifact.use_after_commit else found.made
            place.add((artifact.name, artifact.type, artifact.digest))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind seven bytes of W&B's own."""
    assert data[:4] == b":W&B"
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += HEADER
        parts += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
