"""Logs each finished stage of a run to Weights & Biases, from what lies in the stage's folder.

The trainings log themselves while they run; every other stage becomes a run of its own once it is
done: its settings, scalars, tables and figures, its inputs and its output. A stage that was logged
is not logged again; one that was done before W&B was there is logged by the next command.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.resampling import MEASURES
from launch.config import RunConfig, wandb_settings
from launch.pipeline import Job, Model, Plan
from launch.watch_stages import curves, figures, scalars, tables
from mining.common.files import dump_json, read_json
from mining.common.logs import log
from mining.common.manifest import MANIFEST, RUN, Manifest, mapping, read_manifest, read_note
from training.wandb_runs import (
    RunLabel,
    end_quietly,
    log_output,
    open_run,
    sync_hint,
    use_inputs,
    wandb_mode,
    warn,
)

LOGGED = "logged"
MAX_TAG = 64


class Watch:
    """Logs the stages that a command runs; does nothing after the first failure."""

    def __init__(self, config: RunConfig) -> None:
        self.settings = wandb_settings(config)
        self.plan = Plan(config)
        self.folder = Path(self.settings.folder or config.out)
        # Of several processes of a launcher the first one logs.
        first = os.environ.get("RANK", "0") == "0"
        self.mode = wandb_mode(self.settings) if first else "disabled"
        self._n_logged = 0

    def stage(self, job: Job) -> None:
        """Log a stage that is done, unless it was logged before."""
        if self.mode == "disabled" or job.stage == "train":
            return
        try:
            manifest = read_manifest(job.folder, job.stage)
            where = model_of(job, self.plan.models())
            label = self._label(job, where)
            note = self.folder / "wandb" / LOGGED / label.id
            if note.exists():
                return
            self._log(job, manifest, label, where)
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
            self._n_logged += 1
        except Exception as error:  # nothing that W&B does may stop a run
            warn(job.name, error)
            self.mode = "disabled"

    def close(self) -> None:
        """Say where the runs are."""
        if self._n_logged:
            where = sync_hint(self.folder) if self.mode == "offline" else self.settings.project
            log.info("W&B: %d runs %s; %s", self._n_logged, self.mode, where)

    def _label(self, job: Job, where: Mapping[str, Any]) -> RunLabel:
        tags = (where["arm"][:MAX_TAG], f"seed-{where['seed']}") if where else ()
        return RunLabel(wandb_id(job.folder, self.settings.group), job.name, job.stage, tags)

    def _log(self, job: Job, manifest: Manifest, label: RunLabel, where: Mapping[str, Any]) -> None:
        assert self.mode != "disabled"
        config = {
            **manifest.settings,
            **where,
            "stage": job.stage,
            "code_version": manifest.code_version,
        }
        run = open_run(self.settings, self.mode, self.folder, label, config)
        failed = True
        try:
            use_inputs(run, job.folder)
            self._log_content(run, job, manifest, where)
            log_output(run, job.folder)
            failed = False
        finally:
            end_quietly(run, failed)

    def _log_content(
        self, run: Any, job: Job, manifest: Manifest, where: Mapping[str, Any]
    ) -> None:
        import wandb

        run.define_metric("layer")
        run.define_metric("layers/*", step_metric="layer")
        run.define_metric("step")
        for measure in MEASURES:
            run.define_metric(f"{measure}/*", step_metric="step")
        for row in curves(job.stage, job.folder):
            run.log(row)
        found = scalars(job.stage, job.folder, manifest)
        shown: dict[str, Any] = {**found, **({"step": where["step"]} if "step" in where else {})}
        for name, table in tables(job.stage, job.folder, manifest, self.plan).items():
            shown[f"tables/{name}"] = wandb.Table(columns=table.columns, data=table.rows)
        for path in figures(job.folder):
            shown[f"figures/{path.stem}"] = wandb.Image(str(path))
        run.log(shown)


def wandb_id(folder: Path, group: str | None) -> str:
    """The id of a finished stage's run: that piece of work's own, so that no other has it."""
    identity = {"group": group, "run": read_json(folder / RUN)}
    return hashlib.sha256(dump_json(identity).encode()).hexdigest()[:16]


def model_of(job: Job, models: Iterable[Model]) -> dict[str, Any]:
    """Which model a stage is about, for the run's config; empty where it is about all.

    `arm` is the series of a checkpoint, else the model's own name; `step` of training, where known.
    """
    name = job.name.partition("/")[2]
    found = next((one for one in models if name == f"{one.label}/{one.seed}"), None)
    if found is None:
        return {}
    where: dict[str, Any] = {
        "arm": found.series or found.label, "seed": found.seed, "model": found.label,
    }  # fmt: skip
    step = found.step if found.step is not None else _steps_trained(job.folder)
    return where if step is None else {**where, "step": step}


def _steps_trained(folder: Path) -> int | None:
    """The steps of the training that made the model which a stage read."""
    place = mapping(mapping(read_note(folder / RUN).get("inputs")).get("model"))
    trained = Path(place["path"]) / MANIFEST if "path" in place else None
    if trained is None or not trained.is_file():
        return None
    steps = read_json(trained)["counts"].get("steps")
    return None if steps is None else int(steps)
