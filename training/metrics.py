"""What a training writes down: metrics.jsonl (values), timings.jsonl (speed), and W&B.

metrics.jsonl holds values that a rerun reproduces; a resumed run first cuts it to the length that
its checkpoint noted. Times are kept apart, in a file outside the stage's hashes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mining.common.files import write_json
from mining.common.logs import log
from training.settings import WandbSettings
from training.wandb_runs import (
    RunLabel,
    end_quietly,
    log_output,
    open_run,
    stage_artifact,
    sync_hint,
    use_artifact,
    wandb_mode,
    warn,
)

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
NONFINITE = "nonfinite"


class Tracker(Protocol):
    """Somewhere else that records go to."""

    def log(self, record: dict[str, Any]) -> None:
        """Take one record of metrics.jsonl or timings.jsonl."""
        ...

    def artifact(self, kind: str, path: Path) -> None:
        """Note a file, with its content, or a folder, by where it lies."""
        ...

    def uses(self, stage: Path) -> None:
        """Note the folder of a finished stage that is read."""
        ...

    def made(self, stage: Path) -> None:
        """Note the folder of the training itself, finished."""
        ...

    def close(self, failed: bool) -> None:
        """End, and say whether the training failed."""
        ...


class NoTracker:
    """Takes records nowhere."""

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def artifact(self, kind: str, path: Path) -> None:
        """Do nothing."""

    def uses(self, stage: Path) -> None:
        """Do nothing."""

    def made(self, stage: Path) -> None:
        """Do nothing."""

    def close(self, failed: bool) -> None:
        """Do nothing."""


class Recorder:
    """Writes the records of one training; on every process but the first it does nothing."""

    def __init__(self, out: Path, tracker: Tracker, active: bool) -> None:
        self.path, self.tracker, self.active = out / METRICS, tracker, active
        self._timings = out / TIMINGS

    def size(self) -> int:
        """Bytes of metrics.jsonl, which are on the disk when this returns."""
        if not self.active or not self.path.is_file():
            return 0
        with self.path.open("rb+") as handle:
            os.fsync(handle.fileno())
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes of metrics.jsonl."""
        if self.active:
            self.path.touch()
            os.truncate(self.path, size)

    def metric(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        self._write(self.path, {"kind": kind, **values})

    def timing(self, kind: str, **values: Any) -> None:
        """Append one line to timings.jsonl."""
        self._write(self._timings, {"kind": kind, **values})

    def nonfinite(
        self, step: int, loss: float, norm: float, sequences: list[dict[str, Any]]
    ) -> Path:
        """Write down the batch of a step whose loss or gradient is not finite; its file."""
        path = self.path.parent / NONFINITE / f"step-{step:06d}.json"
        if self.active:
            values = {"step": step, "loss": str(loss), "grad_norm": str(norm)}
            write_json(path, {**values, "sequences": sequences})
        return path

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        if not self.active:
            return
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record, allow_nan=False) + "\n")
        self.tracker.log(record)


def start_tracker(
    settings: WandbSettings, folder: Path, label: RunLabel, config: dict[str, Any]
) -> Tracker:
    """The W&B run of a training, or nothing where it is disabled or cannot be had.

    A training that is resumed continues the run, whose id is the training's own.
    Raises MissingDependencyError only where online or offline is asked for by name and the package
    is missing.
    """
    mode = wandb_mode(settings)
    if mode == "disabled":
        return NoTracker()
    try:
        run = open_run(settings, mode, folder, label, config)
        # Not W&B's own step: a resumed run repeats steps, which that would refuse.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
    except Exception as error:  # nothing that W&B does may stop a training
        warn("train: no run", error)
        return NoTracker()
    hint = f"; {sync_hint(folder)}" if mode == "offline" else ""
    log.info("train: W&B %s, run %s%s", mode, label.id, hint)
    return WandbTracker(run)


class WandbTracker:
    """Sends records to a W&B run until the first failure, which is logged."""

    def __init__(self, run: Any) -> None:
        self._run: Any = run

    def log(self, record: dict[str, Any]) -> None:
        """Send one record, its values named by kind and language."""
        lang = f"{record['lang']}/" if "lang" in record else ""
        prefix = f"{record['kind']}/{lang}"
        apart = ("kind", "lang", "step", "tokens")
        values = {prefix + key: value for key, value in record.items() if key not in apart}
        values |= {key: record[key] for key in ("step", "tokens") if key in record}
        self._send(lambda run: run.log(values))

    def artifact(self, kind: str, path: Path) -> None:
        """Log an artifact KIND-RUN: a file is copied, a folder (weights) only referred to."""

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
            if path.is_file():
                artifact.add_file(str(path))
            else:
                artifact.add_reference(path.resolve().as_uri(), checksum=False)
            run.log_artifact(artifact, aliases=[path.name])

        self._send(send)

    def uses(self, stage: Path) -> None:
        """Name a finished stage as an input."""
        self._send(lambda run: use_artifact(run, stage_artifact(stage)))

    def made(self, stage: Path) -> None:
        """Log the finished training as an output, which evaluations name as their input."""
        self._send(lambda run: log_output(run, stage))

    def close(self, failed: bool) -> None:
        """End the run."""
        if self._run is not None:
            end_quietly(self._run, failed)
        self._run = None

    def _send(self, send: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:  # nothing that W&B does may stop a training
            warn("train", error)
            run, self._run = self._run, None
            end_quietly(run, failed=False)
