"""What a training wrote, as tests compare it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mining.common.manifest import read_manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Every hashed output and the manifest."""
    names = [*read_manifest(folder).outputs, "manifest.json"]
    return {name: (folder / name).read_bytes() for name in names}


def lines(out: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
