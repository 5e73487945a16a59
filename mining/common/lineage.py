"""What finished folders say of themselves: whether their files are intact, and what led to them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mining.common.errors import InputError
from mining.common.files import dump_json, sha256_file
from mining.common.manifest import MANIFEST, RUN, mapping, read_manifest, read_note


def verify_outputs(folder: Path) -> None:
    """Compare every output of a finished stage with its hash; InputError names the file."""
    for name, entry in read_manifest(folder).outputs.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: recorded in the manifest but missing; run the stage again")
        if sha256_file(path) != entry["sha256"]:
            raise InputError(
                f"{path}: content differs from its manifest; remove {folder / MANIFEST} and run "
                "the stage again"
            )


def lineage(folder: Path) -> list[str]:
    """The chain that led to a stage's folder, one line a step, inputs indented below."""
    return _lineage(folder, (), None)


def _lineage(folder: Path, led_to: tuple[Path, ...], expected: str | None) -> list[str]:
    """The lines of a folder; `led_to` are the folders from the first one to it."""
    indent = "  " * len(led_to)
    manifest = read_manifest(folder)
    digest = sha256_file(folder / MANIFEST)
    changed = "" if expected in (None, digest) else "  (CHANGED since it was read)"
    line = f"{indent}{manifest.stage} {digest[:12]} {folder}{changed}"
    if folder.resolve() in led_to:
        before = led_to[-1] / RUN
        return [f"{line}  (LOOP: {before} has a wrong path for this input)"]
    lines = [line]
    led_to = (*led_to, folder.resolve())
    indent += "  "
    places = mapping(read_note(folder / RUN).get("inputs"))
    for name, entry in sorted(manifest.inputs.items()):
        if "manifest_sha256" in entry:
            path = Path(str(mapping(places.get(name)).get("path", "")))
            if (path / MANIFEST).is_file():
                lines += _lineage(path, led_to, entry["manifest_sha256"])
            else:
                lines.append(f"{indent}{entry['stage']} {entry['manifest_sha256'][:12]} (gone)")
        elif "files" in entry:
            total = sum(item["bytes"] for item in entry["files"].values())
            combined = hashlib.sha256(dump_json(entry).encode()).hexdigest()[:12]
            count = len(entry["files"])
            lines.append(f"{indent}{name} {combined} {count} file(s), {total} bytes")
        else:
            lines.append(f"{indent}{name} {entry['name']}")
    return lines
