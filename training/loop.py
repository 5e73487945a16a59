"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mining.common.errors import SettingsError
from mining.common.logs import log, progress
from mining.common.seeds import child_seed
from training.checkpoint import (
    TrainerState,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from training.control import deterministic, stop_on_sigterm
from training.data import DataOrder, Sequences, process_share
from training.errors import DivergedError, StoppedError
from training.loss import NextTokenLoss
from training.metrics import Recorder
from training.parallel import prepare
from training.schedule import learning_rate
from training.settings import TrainSettings
from training.speed import Clock
from training.validation import ValidationSet, validate


@dataclass(frozen=True)
class Job:
    """All that one training is given."""

    title: str
    settings: TrainSettings
    seed: int
    n_steps: int
    precision: str
    sequences: Sequences
    validation: list[ValidationSet]
    checkpoints: Path
    export_snapshot: Callable[[int, dict[str, torch.Tensor]], None]


def run_loop(accelerator: Any, model: Any, job: Job, recorder: Recorder) -> dict[str, torch.Tensor]:
    """Train `model` in place to the job's last step, from the newest valid checkpoint if any.

    Returns the weights on the first process, an empty dictionary on the others, which may each
    hold but a shard of them.
    Raises DivergedError at a loss or gradient that is not finite, StoppedError after SIGTERM (a
    checkpoint is saved first).
    """
    settings, device = job.settings, accelerator.device
    world, rank = accelerator.num_processes, accelerator.process_index
    micro = check_batch(settings, world)
    tokens_per_step = settings.global_batch_sequences * settings.sequence_length
    order = DataOrder(job.seed, len(job.sequences), settings.global_batch_sequences)

    model.train()
    clock = Clock(model, settings.sequence_length, tokens_per_step, job.precision, device, world)
    if settings.compile:
        model.base_model.compile()
    found = _find_checkpoint(accelerator, job, recorder)
    if found is not None:
        load_weights(found[0], model)
    # From here on `model` may be in shards: what needs it whole asks `parallel`.
    parallel = prepare(accelerator, NextTokenLoss(model, job.precision), settings)

    pending: list[Any] = []  # (loss, gradient norm) of each step since the last line
    start = 0
    if found is not None:
        path, state = found
        load_optimizer(path, parallel.holding())
        start, pending = state.step, list(state.pending)
        log.info("%s: resumes after step %d of %d", job.title, start, job.n_steps)

    def run_validation(step: int) -> None:
        length = settings.sequence_length
        for record in validate(accelerator, parallel.module, job.validation, length, micro):
            if not math.isfinite(record["loss"]):
                raise DivergedError(
                    f"validation after step {step}: loss {record['loss']} on {record['lang']}; the "
                    "weights are not usable. Lower train.learning_rate or lengthen the warm-up"
                )
            recorder.metric("validation", step=step, tokens=step * tokens_per_step, **record)

    def save(step: int) -> None:
        now = TrainerState(step, recorder.size(), pending)
        keep = (settings.keep_checkpoints, settings.keep_every)
        save_checkpoint(job.checkpoints, now, parallel.holding(), *keep)

    with (
        progress(job.title, job.n_steps - start, "steps") as ticker,
        stop_on_sigterm() as stop,
        deterministic(device),
    ):
        if start == 0:
            run_validation(0)
        clock.start(start)
        for step in range(start, job.n_steps):
            # Dropout, where a model has any, draws from the step's own seed.
            torch.manual_seed(child_seed(job.seed, "step", step, rank))
            rate = learning_rate(settings, step, job.n_steps)
            for group in parallel.optimizer.param_groups:
                group["lr"] = rate

            step_loss = torch.zeros((), device=device)
            pieces = process_share(order.ids(step), rank, world, micro)
            for number, ids in enumerate(pieces, start=1):
                tokens = torch.from_numpy(job.sequences.batch(ids))
                if device.type == "cuda":
                    tokens = tokens.pin_memory().to(device, non_blocking=True)
                with parallel.accumulating(last=number == len(pieces)):
                    loss = parallel.module(tokens) / len(pieces)
                    parallel.backward(loss)
                step_loss += loss.detach()
            norm = parallel.step()
            pending.append((step_loss, norm))

            done = step + 1
            ticker.advance()
            is_last = done == job.n_steps
            line_due = done % settings.log_every == 0 or is_last
            checkpoint_due = done % settings.checkpoint_every == 0 or is_last
            stopping = stop.is_set() if world == 1 else line_due and _agree(accelerator, stop)
            if line_due or checkpoint_due or stopping:
                # The only points that wait for the device.
                pending = _settle(accelerator, pending, done, order)
            if line_due:
                mean_loss, mean_norm = (
                    sum(column) / len(pending) for column in zip(*pending, strict=True)
                )
                recorder.metric(
                    "train",
                    step=done,
                    tokens=done * tokens_per_step,
                    loss=round(mean_loss, 6),
                    lr=float(f"{rate:.8g}"),
                    grad_norm=round(mean_norm, 6),
                )
                pending = []
                speed = clock.lap(done)
                recorder.timing(step=done, **speed)
                ticker.note(f"loss {mean_loss:.3f} {speed['tokens_per_second']:,.0f} tokens/s")
            validation_due = settings.validate_every and done % settings.validate_every == 0
            if validation_due or is_last:
                run_validation(done)
            snapshot_due = done in settings.snapshots
            if snapshot_due:
                # Before the checkpoint: a kill between the two repeats the snapshot, or it would
                # never be made.
                weights = parallel.weights()
                if accelerator.is_main_process:
                    job.export_snapshot(done, weights)
            if checkpoint_due or stopping:
                save(done)
            if stopping and not is_last:
                raise StoppedError(
                    f"{job.title}: stopped by SIGTERM after step {done} of {job.n_steps}; "
                    "a checkpoint is saved, and the same command continues"
                )
            if validation_due or checkpoint_due or snapshot_due:
                clock.start(done)
    return parallel.weights()


def check_batch(settings: TrainSettings, world_size: int) -> int:
    """Sequences of one micro-batch; SettingsError where the batch does not divide evenly."""
    share, rest = divmod(settings.global_batch_sequences, world_size)
    micro = settings.micro_batch_sequences or share
    if rest or share % micro:
        raise SettingsError(
            f"global_batch_sequences: found {settings.global_batch_sequences}, expected a multiple "
            f"of {world_size} process(es) times micro_batch_sequences ({micro})"
        )
    return micro


def _find_checkpoint(
    accelerator: Any, job: Job, recorder: Recorder
) -> tuple[Path, TrainerState] | None:
    """The checkpoint that all processes resume from; cuts metrics.jsonl to what it had then."""
    from accelerate.utils import broadcast_object_list

    found = None
    if accelerator.is_main_process:
        size = recorder.size()

        def reason_against(state: TrainerState) -> str | None:
            return None if state.metrics_bytes <= size else "metrics.jsonl is shorter than it was"

        found = newest_checkpoint(job.checkpoints, reason_against)
        recorder.cut(found[1].metrics_bytes if found else 0)
    shared: list[tuple[Path, TrainerState] | None] = [found]
    broadcast_object_list(shared)
    return shared[0]


def _agree(accelerator: Any, stop: Any) -> bool:
    """Whether any process was asked to stop."""
    flag = torch.tensor(float(stop.is_set()), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


def _settle(accelerator: Any, pending: list[Any], done: int, order: DataOrder) -> list[Any]:
    """Turn the pending (loss, norm) tensors into numbers, the mean over the processes.

    DivergedError names the first step of them that is not finite, and its sequences.
    """
    fresh = [pair for pair in pending if isinstance(pair[0], torch.Tensor)]
    if not fresh:
        return pending
    stacked = torch.stack([torch.stack([loss, norm.float()]) for loss, norm in fresh])
    numbers = [tuple(row) for row in accelerator.reduce(stacked, "mean").tolist()]
    for place, (loss, norm) in enumerate(numbers):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            step = done - len(numbers) + place
            raise DivergedError(
                f"step {step + 1}: loss {loss}, gradient norm {norm} on the sequences "
                f"{order.ids(step).tolist()}; the last checkpoint before it is kept. Lower "
                "train.learning_rate or lengthen the warm-up"
            )
    return [*pending[: len(pending) - len(fresh)], *numbers]
