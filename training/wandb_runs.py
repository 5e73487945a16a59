"""Runs and artifacts of Weights & Biases, as the trainer and the launcher log them.

A stage's artifact holds its manifest and the small files beside it, so that equal work is one
version whoever logs it: what one run logs as its output is what the next one names as its input,
and W&B draws the chain. No corpus, shard or weight is ever uploaded.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mining.common.errors import InputError, MissingDependencyError
from mining.common.files import dump_json, sha256_file
from mining.common.logs import log
from mining.common.manifest import MANIFEST, RUN, Manifest, mapping, read_manifest, read_note
from training.settings import WandbSettings

# Beside the manifest, where a stage has them: what people open in W&B.
SMALL_FILES = ("summary.json", "arms.json", "report.html")
MAX_FILE_BYTES = 10_000_000
HASH_SHOWN = 12


@dataclass(frozen=True)
class RunLabel:
    """How a run is named and filed in W&B; runs of one `id` are one run, however often opened."""

    id: str
    name: str
    job_type: str
    tags: tuple[str, ...] = ()


def wandb_mode(settings: WandbSettings) -> Literal["offline", "online", "disabled"]:
    """The mode that auto means here: disabled where the package is missing, with a line about it.

    Raises MissingDependencyError where online or offline is asked for by name without it.
    """
    mode = settings.mode
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "")
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        known: dict[str, Literal["offline", "online", "disabled"]] = {
            "offline": "offline", "online": "online", "disabled": "disabled",
        }  # fmt: skip
        mode = known.get(wanted, "online" if has_key else "offline")
    if mode == "disabled":
        return mode
    try:
        import wandb  # noqa: F401
    except ImportError:
        if settings.mode == "auto":
            log.info("no W&B (not installed; pip install 'semantic-pivots[wandb]')")
            return "disabled"
        raise MissingDependencyError(
            f"wandb.mode is {settings.mode}, but wandb is not installed; "
            "pip install 'semantic-pivots[wandb]', or set wandb.mode to disabled"
        ) from None
    return mode


def open_run(
    settings: WandbSettings,
    mode: Literal["offline", "online"],
    folder: Path,
    label: RunLabel,
    config: Mapping[str, Any],
) -> Any:
    """Start or continue a run, whose files go to `folder`/wandb. Raises what W&B raises."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        name=label.name,
        job_type=label.job_type,
        tags=list(label.tags),
        id=label.id,
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=dict(config),
        # A run never waits long for W&B: what is not sent by then is on disk for `wandb sync`.
        settings=wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=True,  # it would hold the command line as it was given
            init_timeout=60,
            finish_timeout=120,
        ),
    )


def sync_hint(folder: Path) -> str:
    """What sends the offline runs below `folder` to W&B."""
    place = shlex.quote(str(folder))
    return f"to send it, with WANDB_API_KEY set: wandb sync {place}/wandb/offline-run-*"


def log_output(run: Any, folder: Path) -> None:
    """Log a finished stage's folder as an output of the run."""
    run.log_artifact(stage_artifact(folder), aliases=["latest", _manifest_hash(folder)])


def use_inputs(run: Any, folder: Path) -> None:
    """Log what a finished stage read as inputs of the run."""
    manifest = read_manifest(folder)
    places = mapping(read_note(folder / RUN).get("inputs"))
    seen: set[Path] = set()
    for name, entry in sorted(manifest.inputs.items()):
        stage = _stage_of(entry, mapping(places.get(name)))
        if stage is None:
            use_artifact(run, _named_artifact(name, entry))
        elif stage not in seen:
            seen.add(stage)
            use_artifact(run, stage_artifact(stage))


def use_artifact(run: Any, artifact: Any) -> None:
    """Name an artifact as an input of the run; logged first where W&B does not have it yet."""
    # The public method refuses offline, and online waits for the service without a limit, since it
    # gives back what that has. What it does for a new artifact is this.
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def stage_artifact(folder: Path) -> Any:
    """The artifact of a finished stage: its manifest and small files."""
    import wandb

    manifest = read_manifest(folder)
    artifact = wandb.Artifact(
        artifact_name(folder, manifest),
        type="model" if manifest.stage == "train" else manifest.stage,
        metadata={
            "manifest_sha256": sha256_file(folder / MANIFEST),
            "folder": str(folder.resolve()),
            "code_version": manifest.code_version,
            "bytes": sum(entry["bytes"] for entry in manifest.outputs.values()),
        },
    )
    artifact.add_file(str(folder / MANIFEST))
    for name in SMALL_FILES:
        if name in manifest.outputs and manifest.outputs[name]["bytes"] <= MAX_FILE_BYTES:
            artifact.add_file(str(folder / name))
    return artifact


def artifact_name(folder: Path, manifest: Manifest) -> str:
    """`count`, `train-pivot-0`: the stage and, where it is run for each model, which of them."""
    parts = folder.resolve().parts
    stage = manifest.stage
    after = parts[len(parts) - parts[::-1].index(stage) :] if stage in parts else ()
    return safe_name("-".join((stage, *after)))


def safe_name(text: str) -> str:
    """`text` with the characters that a name in W&B may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100]


def _stage_of(entry: Any, place: Mapping[str, Any]) -> Path | None:
    """The finished stage that an input is, or in whose folder its files lie; None for others."""
    if "manifest_sha256" in entry:
        path = Path(place.get("path", ""))
        same = (path / MANIFEST).is_file()
        same = same and sha256_file(path / MANIFEST) == entry["manifest_sha256"]
        return path if same else None
    found = [place["path"]] if "path" in place else list(place.get("paths", {}).values())
    if not found or "://" in found[0]:
        return None
    first = Path(found[0])
    return next((one for one in (first, *first.parents) if _is_stage(one)), None)


def _is_stage(folder: Path) -> bool:
    """Whether a stage of ours is finished there; other programs have manifests too."""
    try:
        read_manifest(folder)
    except (InputError, TypeError, OSError):
        return False
    return True


def _named_artifact(name: str, entry: Any) -> Any:
    """Something that no stage made: files by their hashes, or a name; the content stays here."""
    import wandb

    kind = "files" if "files" in entry else "stage" if "manifest_sha256" in entry else "hub"
    label = str(entry.get("name", name))
    artifact = wandb.Artifact(safe_name(label), type=kind)
    with artifact.new_file("input.json") as file:
        file.write(dump_json(entry))
    return artifact


def _manifest_hash(folder: Path) -> str:
    return sha256_file(folder / MANIFEST)[:HASH_SHOWN]


def warn(what: str, error: Exception) -> None:
    """The one line about a failure: nothing that W&B does may stop a run."""
    log.warning("W&B: %s (%s: %s); goes on without", what, type(error).__name__, error)


def end_quietly(run: Any, failed: bool = False) -> None:
    """End a run, whatever state it is in."""
    try:
        run.finish(exit_code=int(failed))
    except Exception as error:  # nothing that W&B does may stop a run
        warn("a run did not end well", error)
