"""The `train` stage: one arm of a mix and one seed in, a Hugging Face model out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mining.common.errors import InputError, MismatchError, SettingsError
from mining.common.files import read_json, remove_tree
from mining.common.logs import log
from mining.common.manifest import (
    MANIFEST,
    RUN,
    code_version,
    mapping,
    read_manifest,
    read_note,
)
from mining.common.stage import (
    IDENTITY,
    WORK,
    FilesInput,
    Input,
    NamedInput,
    StageInput,
    StageRun,
    begin,
    describe_differences,
    settings_dict,
)
from mining.common.tokenizer import Tokenizer, load_tokenizer
from training.metrics import NoTracker, Recorder, Tracker, start_tracker
from training.settings import (
    Duration,
    ModelSettings,
    TrainSettings,
    WandbSettings,
    snapshot_folder,
)
from training.wandb_runs import RunLabel

if TYPE_CHECKING:
    from training.guards import Watchdog

CHECKPOINTS = "checkpoints"
KEEP_EVERY = "keep_every"
ALL = "all"  # all validation languages together


class Score(Protocol):
    """A score of the model in training, given by who starts it: training knows no evaluation.

    `files` are what the figures depend on beside the model.
    """

    files: Mapping[str, Path]

    def __call__(self, net: Any, tokenizer: Tokenizer) -> dict[str, float]:
        """Figures of a transformers model on its device; may leave it in evaluation mode."""
        ...


@dataclass(frozen=True)
class _Given:
    """What one training is given; see run_train."""

    settings: TrainSettings
    wandb: WandbSettings
    out: Path
    mix: Path
    arm: str
    seed: int
    score: Score | None

    def title(self) -> str:
        """What messages call it."""
        return f"train {self.arm}/{self.seed}"


def run_train(
    settings: TrainSettings,
    wandb: WandbSettings,
    out: Path,
    mix: Path,
    arm: str,
    seed: int,
    score: Score | None = None,
) -> None:
    """Train on `mix`/`arm` into `out`: model/, snapshots/, metrics.jsonl, timings.jsonl, wandb/.

    `score` is called each `score_every` steps on the first process.
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
    settings.micro_batch(world_size)  # or it raises, while nothing is touched
    given = _Given(settings, wandb, out, mix, arm, seed, score)
    run = _begin(given) if rank == 0 else None
    if run is None and world_size == 1:
        return
    try:
        _train_together(given, run)
    finally:
        if run is not None:
            # A stopped training leaves its folder to the next one at once, whoever still holds the
            # error.
            run.lock.close()


def _begin(given: _Given) -> StageRun | None:
    """Open the stage; None where this training is finished."""
    settings, out = given.settings, given.out
    inputs: dict[str, Input] = {
        "mix": StageInput(given.mix, "mix"),
        **data_inputs(settings, given.mix, given.arm),
    }
    if settings.model.path is not None:
        inputs["model"] = model_input(settings.model)
    if settings.model.optimizer is not None:
        inputs["optimizer"] = FilesInput.folder(Path(settings.model.optimizer))
    if given.score is not None and settings.score_every:
        inputs["task"] = FilesInput(given.score.files)
    recorded = {**settings_dict(settings), "arm": given.arm, "seed": given.seed}
    refuse_changes(out, recorded, inputs)
    run = begin("train", out, recorded, inputs)
    if run is None:
        _prune_finished(out)
    return run


def _train_together(given: _Given, run: StageRun | None) -> None:
    """What all processes do, also where the training is done before, which only the first knows."""
    from accelerate.utils import broadcast_object_list

    from training.distributed import open_accelerator
    from training.guards import watchdog

    # Where processes do not find each other, they hang from the beginning.
    with (
        watchdog(given.title(), given.settings.stuck_after_seconds) as dog,
        open_accelerator(given.settings) as accelerator,
    ):
        dog.beat("the start of the processes")
        going = [run is not None]
        broadcast_object_list(going)
        if going[0]:
            dog.beat("the first words between the processes")
            tracker = NoTracker() if run is None else _tracker(given, run)
            finished = False
            try:
                counts = _train(accelerator, given, tracker, dog, first=run is not None)
                dog.stop()  # the first process works on, and the others wait however long it takes
                if run is not None:
                    unhashed = ("timings.jsonl", "wandb/", f"{CHECKPOINTS}/")
                    run.finish(counts, unhashed, noted={KEEP_EVERY: given.settings.keep_every})
                    tracker.made(given.out)
                    _prune_finished(given.out)
                finished = True
            finally:
                tracker.close(failed=not finished)
        accelerator.wait_for_everyone()


def _prune_finished(out: Path) -> None:
    """Remove the checkpoints that a finished training does not keep.

    Its own keep_every counts, which it noted, whatever is set when a later start finds it finished.
    """
    if (out / CHECKPOINTS).is_dir():
        from training.checkpoint import prune

        noted = read_note(out / RUN)
        if KEEP_EVERY in noted:
            prune(out / CHECKPOINTS, 0, noted[KEEP_EVERY])


def data_inputs(settings: TrainSettings, mix: Path, arm: str) -> dict[str, Input]:
    """The token files of the arm and of the further sources, by content."""
    from training.data import TokenFilesInput, source_files

    inputs: dict[str, Input] = {"arm": TokenFilesInput({"tokens.ds": mix / arm / "tokens.ds"})}
    for number, source in enumerate(settings.sources, start=1):
        files = {path.name: path for path in source_files(source)}
        inputs[f"source-{number}"] = TokenFilesInput(files)
    return inputs


def refuse_changes(out: Path, settings: dict[str, Any], inputs: dict[str, Input]) -> None:
    """MismatchError where `out` holds checkpoints of a training of other settings or inputs.

    A stage whose settings or inputs changed starts anew; a training may have taken weeks, so it
    says what changed and touches nothing.
    """
    work = out / WORK
    places = ((work / IDENTITY, work / RUN), (out / MANIFEST, out / RUN))
    noted, noted_run = next((pair for pair in places if pair[0].is_file()), (None, out / RUN))
    if noted is None or not any((out / CHECKPOINTS).glob("step-*")):
        return
    found = mapping(read_json(noted))
    before = {key: found.get(key) for key in ("code_version", "settings", "inputs")}
    seen = mapping(read_note(noted_run).get("inputs"))
    old = mapping(before["inputs"])
    now = {
        "code_version": code_version(),
        "settings": json.loads(json.dumps(settings)),
        "inputs": {k: item.identity(old.get(k), seen.get(k)) for k, item in inputs.items()},
    }
    if differences := describe_differences(before, now):
        raise MismatchError(
            f"{out}: holds checkpoints of another training ({'; '.join(differences)}); "
            "bring that back to continue, or remove the folder to start anew"
        )


def model_input(model: ModelSettings) -> Input:
    """The checkpoint to continue from: a folder by its content, a hub id by name and revision."""
    assert model.path is not None
    if Path(model.path).exists():
        return FilesInput.folder(Path(model.path))
    if model.revision is None:
        log.warning("train: %s has no revision, so what it names may change", model.path)
    return NamedInput(f"{model.path}@{model.revision or 'main'}")


def _train(
    accelerator: Any, given: _Given, tracker: Tracker, dog: Watchdog, first: bool
) -> dict[str, Any]:
    """Train and export; the counts of the stage on the `first` process."""
    from training.data import Sequences
    from training.distributed import resolve_precision
    from training.groups import find_groups
    from training.loop import Job, run_loop
    from training.model import (
        build_model,
        check_attention,
        check_borders,
        check_length,
        export_model,
        parameters,
    )
    from training.validation import read_validation

    settings, out, mix, arm, score = given.settings, given.out, given.mix, given.arm, given.score
    tokenizer = load_tokenizer(mix / "tokenizer")
    length, batch = settings.sequence_length, settings.global_batch_sequences
    sequences = Sequences(
        mix / arm / "tokens.ds",
        tokenizer.vocab_size,
        length,
        settings.sources,
        settings.arm_weight,
    )
    precision = resolve_precision(settings, accelerator.device)
    check_attention(settings.model, precision, accelerator.device)
    model = build_model(settings.model, tokenizer, given.seed)
    dog.beat("the making of the model")
    check_length(model, length)
    if settings.document_borders == "masked":
        check_borders(model)
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
        tracker.artifact("snapshot", final)

    job = Job(
        title=given.title(),
        settings=settings,
        seed=given.seed,
        n_steps=n_steps,
        precision=precision,
        sequences=sequences,
        end_of_text=tokenizer.eos_id if settings.document_borders == "masked" else None,
        groups=find_groups(mix / arm, sequences, settings.sources),
        validation=read_validation(mix / "validation", tokenizer, settings.validation_tokens),
        checkpoints=out / CHECKPOINTS,
        export_snapshot=export_snapshot,
        score=None if score is None else lambda: score(model, tokenizer),
    )
    recorder = Recorder(out, tracker, active=first)
    weights = run_loop(accelerator, model, job, recorder, dog)
    if not first:
        return {}
    export_model(model, weights, tokenizer, mix / "tokenizer", out / "model")
    tracker.artifact("weights", out / "model")
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
    """The last losses of a metrics.jsonl: in training, and of validation by language.

    Validation has its bits per byte as well, also those of all languages ("all"), and logs them.
    """
    train_loss: float | None = None
    losses: dict[str, float] = {}
    bits: dict[str, float] = {}
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] == "train":
                train_loss = record["loss"]
            elif record["kind"] == "validation":
                lang = record.get("lang", ALL)
                losses[lang] = record["loss"]
                if "bits_per_byte" in record:
                    bits[lang] = record["bits_per_byte"]
    if bits:
        shown = ", ".join(f"{lang} {value:.4f}" for lang, value in bits.items())
        log.info("train: validation in bits a byte: %s", shown)
    return {
        "train_loss": train_loss,
        "validation_loss": losses,
        "validation_bits_per_byte": bits,
    }


def _tracker(given: _Given, run: StageRun) -> Tracker:
    wandb, arm, seed = given.wandb, given.arm, given.seed
    label = RunLabel(run.id, given.title(), "train", (arm, f"seed-{seed}"))
    folder = given.out if wandb.folder is None else Path(wandb.folder)
    tracker = start_tracker(wandb, folder, label, run.settings)
    tracker.uses(given.mix)
    tracker.artifact("config", run.work / IDENTITY)
    return tracker
