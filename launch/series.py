"""Several checkpoints of one model: what an entry of `models` may name, and in which order."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from mining.common.errors import SettingsError
from mining.common.names import is_file_name

STEP = re.compile(r"(?:step|checkpoint)\D*?(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a series: `name` is its revision or folder, `step` its training step."""

    name: str
    source: str
    revision: str | None
    step: int


def split_revision(source: str) -> tuple[str, str | None]:
    """`id@revision` in its parts; a folder, whose name may hold an "@" too, has no revision.

    Raises SettingsError where a revision of a folder is asked for.
    """
    if Path(source).exists() or "@" not in source:
        return source, None
    name, revision = source.rsplit("@", 1)
    if Path(name).is_dir():
        raise SettingsError(
            f"models: found {source!r}, expected no revision, as {name} is a folder; revisions are "
            "the hub's"
        )
    return name, revision


def checkpoints(label: str, source: str) -> list[Checkpoint]:
    """The checkpoints that `source` names, by step; empty where it is a single model.

    A series is a hub id with several revisions (`id@step1000,step2000`), or a folder that is no
    model itself and holds folders of models (`step-100/`, `checkpoint-500/`, with or without a
    `model/` inside). The step is the first number after "step" or "checkpoint" in the name. Raises
    SettingsError where a name has none, or two have the same.
    """
    path = Path(source)
    if path.is_dir():
        if _is_model(path):
            return []
        folders = sorted(p for p in path.iterdir() if p.is_dir() and _is_model(p))
        found = [Checkpoint(p.name, _source(p), None, _step(label, p.name)) for p in folders]
    else:
        name, revision = split_revision(source)
        names = (revision or "").split(",")
        if len(names) < 2:
            return []
        for one in names:
            if not is_file_name(one):
                raise SettingsError(
                    f"models.{label}: found the revision {one!r}, expected a name without slashes, "
                    "as each checkpoint has a folder of this name"
                )
        found = [Checkpoint(one, name, one, _step(label, one)) for one in names]
    found.sort(key=lambda one: one.step)
    for first, second in itertools.pairwise(found):
        if first.step == second.step:
            raise SettingsError(
                f"models.{label}: found {first.name} and {second.name}, both of step {first.step}, "
                "expected one checkpoint a step"
            )
    return found


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "model/config.json"))


def _source(folder: Path) -> str:
    return str(folder if (folder / "config.json").is_file() else folder / "model")


def _step(label: str, name: str) -> int:
    match = STEP.search(name)
    if match is None:
        raise SettingsError(
            f"models.{label}: found the checkpoint {name!r}, expected a step in its name, such as "
            "step1000-tokens4B or checkpoint-500"
        )
    return int(match[1])
