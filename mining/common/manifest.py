"""The manifest of a finished stage: what it was made from, by content hash, and what it holds.

`manifest.json` names inputs and outputs by content hash, the settings, the code's version and the
counts, has a hash of all that, and is the same bytes for the same work. Times, host, versions and
paths go to `run.json`, which is outside the hashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mining.common.errors import InputError, MismatchError
from mining.common.files import read_json, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
RUN = "run.json"
HASH = "sha256"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The record of a finished stage; see the module's text."""

    stage: str
    format_version: int
    code_version: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    counts: dict[str, Any]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a stage's manifest, which makes the stage finished."""
    value = dataclasses.asdict(manifest)
    write_json(folder / MANIFEST, value | {HASH: _content_hash(value)})


def _content_hash(value: Mapping[str, Any]) -> str:
    rest = {key: entry for key, entry in value.items() if key != HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, stage: str | None = None) -> Manifest:
    """The manifest of a finished stage's folder.

    Raises InputError where the folder is missing, unfinished, of another stage or of a format that
    this version does not know, and where a bit of the manifest has changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "is not finished (it has no manifest.json)" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder}: {what}; run `pivots {stage or 'STAGE'}` first")
    raw = read_json(path)
    fault = manifest_fault(raw)
    if fault is not None:
        raise InputError(f"{path}: not a manifest of this project ({fault})")
    if stage is not None and raw["stage"] != stage:
        raise InputError(f"{path}: is of stage '{raw['stage']}', expected '{stage}'")
    del raw[HASH]
    return Manifest(**raw)


def is_of_other_format(raw: Any) -> bool:
    """Whether a JSON value is the manifest of a version before or after this one."""
    found = mapping(raw).get("format_version")
    return isinstance(found, int) and found != FORMAT_VERSION


def manifest_fault(raw: Any) -> str | None:
    """Why a JSON value cannot be a Manifest; None where it can."""
    types = {
        "stage": str, "format_version": int, "code_version": str, "settings": dict, "inputs": dict,
        "outputs": dict, "counts": dict, HASH: str,
    }  # fmt: skip
    if not isinstance(raw, dict):
        return f"found {type(raw).__name__}"
    if HASH in raw and raw[HASH] != _content_hash(raw):
        return "its content differs from its own hash; remove it and run the stage again"
    if is_of_other_format(raw):
        return f"format {raw['format_version']}, this version reads {FORMAT_VERSION}"
    if set(raw) != set(types):
        return f"keys {sorted(raw)}"
    for key, expected in types.items():
        if not isinstance(raw[key], expected):
            return f"{key} is {type(raw[key]).__name__}"
    for name, entry in raw["outputs"].items():
        fields = entry if isinstance(entry, dict) else {}
        sound = isinstance(fields.get("bytes"), int) and isinstance(fields.get("sha256"), str)
        if not sound or Path(name).is_absolute() or ".." in Path(name).parts:
            return f"the output {name!r:.80} is no file below it"
    for name, entry in raw["inputs"].items():
        if not is_identity(entry):
            return f"the input {name!r:.80} is nothing that a stage reads"
    return None


def is_identity(entry: Any) -> bool:
    """Whether a JSON value is the identity that one of the inputs above has."""
    kinds = {("manifest_sha256", "stage"): str, ("files",): dict, ("name",): str}
    kind = kinds.get(tuple(sorted(entry))) if isinstance(entry, dict) else None
    if kind is None or not all(isinstance(value, kind) for value in entry.values()):
        return False
    return all(map(is_file_entry, entry.get("files", {}).values()))


def is_file_entry(entry: Any) -> bool:
    """Whether a JSON value says of a file what FilesInput does, or how `record_hashes` left it."""
    fields = mapping(entry)
    digest = fields.get("sha256", "0" * 64)
    return (
        isinstance(fields.get("bytes"), int)
        and re.fullmatch("[0-9a-f]{64}", str(digest)) is not None
    )


def missing_outputs(out: Path, outputs: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, entry in outputs.items():
        path = out / name
        if not path.is_file():
            lines.append(f"output {name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            lines.append(f"output {name} has {path.stat().st_size} bytes, not {entry['bytes']}")
    return lines


def require_same(what: str, found: Mapping[str, object]) -> None:
    """Raise MismatchError unless all values are equal; `found` maps a place to what it says."""
    if len(set(found.values())) > 1:
        listed = "; ".join(f"{place} has {value}" for place, value in found.items())
        raise MismatchError(f"{what} differs: {listed}. Use inputs that were made from each other")


def code_version() -> str:
    """The installed version of the project."""
    return metadata.version("semantic-pivots")


def read_note(path: Path) -> dict[str, Any]:
    """A run.json, which stands outside the hashes and only helps: empty where it is damaged."""
    try:
        return mapping(read_json(path))
    except InputError:
        return {}


def mapping(value: Any) -> dict[str, Any]:
    """A value of run.json that should be an object."""
    return value if isinstance(value, dict) else {}
