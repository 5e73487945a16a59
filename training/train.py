"""The `train` stage: one arm of a mix and one seed in, a Hugging Face model out."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mining.common.errors import InputError, SettingsError
from mining.common.files import dump_json, remove_tree
from mining.common.logs import log
from mining.common.stage import (
    WORK,
    FilesInput,
    Input,
    NamedInput,
    StageInput,
    StageRun,
    begin,
    read_manifest,
    settings_dict,
)
from mining.common.tokenizer import load_tokenizer
from training.settings import (
    Duration,
    ModelSettings,
    TrainSettings,
    WandbSettings,
    snapshot_folder,
)

CHECKPOINTS = "checkpoints"


def run_train(
    settings: TrainSettings, wandb: WandbSettings, out: Path, mix: Path, arm: str, seed: int
) -> None:
    """Train on `mix`/`arm` into `out`: model/, snapshots/, metrics.jsonl, timings.jsonl, wandb/.

    Runs in every process of `torchrun` or `accelerate launch` alike; all see the same folders. A
    rerun after a kill, by any number of processes that share the work in any way, resumes
    from the newest valid checkpoint; on one CPU process, with the same number of threads, to the
    same bits. Raises InputError for a mix without the arm, MismatchError for a checkpoint of
    another tokenizer, SettingsError where batch or length do not fit, DivergedError and
    StoppedError from the loop.
    """
    read_manifest(mix, "mix")
    if not (mix / arm / "tokens.ds").is_file():
        arms = sorted(path.parent.name for path in mix.glob("*/tokens.ds"))
        raise InputError(f"{mix}: has no arm '{arm}'; its arms are {', '.join(arms)}")
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    run: StageRun | None = None
    if rank == 0:
        inputs: dict[str, Input] = {"mix": StageInput(mix, "mix")}
        if settings.model.path is not None:
            inputs["model"] = model_input(settings.model)
        run = begin("train", out, {**settings_dict(settings), "arm": arm, "seed": seed}, inputs)
        if run is None and world_size == 1:
            return

    from accelerate.utils import broadcast_object_list

    from training.checkpoint import prune
    from training.distributed import start_accelerator, stop_accelerator
    from training.loop import check_batch

    share = settings.global_batch_sequences // world_size
    accelerator = start_accelerator(settings, share // check_batch(settings, world_size))
    try:
        going = [run is not None]
        broadcast_object_list(going)
        if going[0]:
            counts = _train(accelerator, settings, wandb, out, mix, arm, seed, run)
            if run is not None:
                run.finish(counts, unhashed=("timings.jsonl", "wandb/", f"{CHECKPOINTS}/"))
                prune(out / CHECKPOINTS, 0, settings.keep_every)
        accelerator.wait_for_everyone()
    finally:
        stop_accelerator(accelerator)


def model_input(model: ModelSettings) -> Input:
    """The checkpoint to continue from: a folder by its content, a hub id by name and revision."""
    assert model.path is not None
    if Path(model.path).exists():
        return FilesInput.folder(Path(model.path))
    if model.revision is None:
        log.warning("train: %s has no revision, so what it names may change", model.path)
    return NamedInput(f"{model.path}@{model.revision or 'main'}")


def resolve_precision(settings: TrainSettings, device: Any) -> str:
    """ "float32" or "bf16": what `precision` means on this device."""
    import torch

    if settings.precision != "auto":
        return settings.precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "float32"


def _train(
    accelerator: Any,
    settings: TrainSettings,
    wandb: WandbSettings,
    out: Path,
    mix: Path,
    arm: str,
    seed: int,
    run: StageRun | None,
) -> dict[str, Any]:
    from training.data import Sequences
    from training.loop import Job, run_loop
    from training.metrics import NoTracker, Recorder
    from training.model import build_model, check_length, export_model, parameters
    from training.validation import read_validation

    tokenizer = load_tokenizer(mix / "tokenizer")
    length, batch = settings.sequence_length, settings.global_batch_sequences
    sequences = Sequences(mix / arm / "tokens.ds", tokenizer.vocab_size, length)
    model = build_model(settings.model, tokenizer, seed)
    check_length(model, length)
    n_steps = Duration.parse(settings.duration).steps(len(sequences), length, batch)
    if settings.snapshots and settings.snapshots[-1] > n_steps:
        raise SettingsError(
            f"snapshots: found {settings.snapshots[-1]}, expected at most the {n_steps} steps of "
            f"this training (duration {settings.duration})"
        )

    counts = {
        "parameters": parameters(model),
        "parameters_without_embedding": parameters(model, embeddings=False),
    }

    def export_snapshot(step: int, weights: dict[str, Any]) -> None:
        aside, final = out / WORK / "snapshot", out / snapshot_folder(step)
        export_model(model, weights, tokenizer, mix / "tokenizer", aside)
        final.parent.mkdir(exist_ok=True)
        remove_tree(final)
        aside.rename(final)

    job = Job(
        title=f"train {arm}/{seed}",
        settings=settings,
        seed=seed,
        n_steps=n_steps,
        precision=resolve_precision(settings, accelerator.device),
        sequences=sequences,
        validation=read_validation(mix / "validation", tokenizer, settings.validation_tokens),
        checkpoints=out / CHECKPOINTS,
        export_snapshot=export_snapshot,
    )
    tracker = NoTracker() if run is None else _tracker(wandb, out, run, job.title)
    recorder = Recorder(out, tracker, active=run is not None)
    finished = False
    try:
        weights = run_loop(accelerator, model, job, recorder)
        finished = True
    finally:
        tracker.close(failed=not finished)
    if run is None:
        return {}
    export_model(model, weights, tokenizer, mix / "tokenizer", out / "model")
    return {
        "steps": job.n_steps,
        "tokens": job.n_steps * batch * length,
        "sequences": len(sequences),
        "epochs": round(job.n_steps * batch / len(sequences), 4),
        **counts,
        "precision": job.precision,
        "device": accelerator.device.type,
        "fingerprint": tokenizer.fingerprint,
        **final_losses(out / "metrics.jsonl"),
    }


def final_losses(metrics: Path) -> dict[str, Any]:
    """The last training loss and, per language, the last validation loss of a metrics.jsonl."""
    train_loss: float | None = None
    validation: dict[str, float] = {}
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] == "train":
                train_loss = record["loss"]
            else:
                validation[record["lang"]] = record["loss"]
    return {"train_loss": train_loss, "validation_loss": validation}


def _tracker(wandb: WandbSettings, out: Path, run: StageRun, name: str) -> Any:
    from training.metrics import start_tracker

    identity = {"settings": run.settings, "inputs": run.inputs}
    run_id = hashlib.sha256(dump_json(identity).encode()).hexdigest()[:16]
    return start_tracker(wandb, out, run_id, name.removeprefix("train "), run.settings)
