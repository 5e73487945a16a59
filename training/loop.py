"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mining.common.logs import log, progress
from mining.common.seeds import child_seed
from training.checkpoint import (
    TrainerState,
    check_checkpoint,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from training.control import SharedStop, deterministic, seed_generators, stop_on_sigterm
from training.data import Sequences
from training.errors import BEGIN_ANEW, DivergedError, StoppedError
from training.groups import LossGroups
from training.guards import SkipCount, SpikeWatch, Watchdog, dry_run, memory_told
from training.loss import NextTokenLoss
from training.metrics import Recorder
from training.model import compile_blocks
from training.order import DataOrder, process_share
from training.parallel import prepare
from training.reader import open_reader
from training.schedule import learning_rate
from training.settings import TrainSettings
from training.speed import Clock
from training.validation import ValidationSet, validate


@dataclass(frozen=True)
class Job:
    """All that one training is given.

    `end_of_text` is the token before which attention stops; None lets it cross the borders of
    documents. Training loss is told apart by `groups`, where it is known.
    """

    title: str
    settings: TrainSettings
    seed: int
    n_steps: int
    precision: str
    sequences: Sequences
    end_of_text: int | None
    groups: LossGroups | None
    validation: list[ValidationSet]
    checkpoints: Path
    export_snapshot: Callable[[int, dict[str, torch.Tensor]], None]
    score: Callable[[], dict[str, float]] | None

    def order(self) -> DataOrder:
        """The order of the sequences; each user has its own, as it keeps a cache."""
        batch = self.settings.global_batch_sequences
        return DataOrder(self.seed, len(self.sequences), batch, self.sequences.mixture)


def run_loop(
    accelerator: Any, model: Any, job: Job, recorder: Recorder, dog: Watchdog
) -> dict[str, torch.Tensor]:
    """Train `model` in place to the job's last step, from the newest valid checkpoint if any.

    `dog` hears of everything that was done. Returns the weights on the first process, an empty
    dictionary on the others, which may each hold but a shard of them.
    Raises DivergedError at a loss or gradient that is not finite, StoppedError after SIGTERM (a
    checkpoint is saved first).
    """
    settings, device = job.settings, accelerator.device
    world, rank = accelerator.num_processes, accelerator.process_index
    micro = settings.micro_batch(world)
    tokens_per_step = settings.global_batch_sequences * settings.sequence_length
    share = (rank, world, micro)

    model.train()
    clock = Clock(model, settings.sequence_length, tokens_per_step, job.precision, device, world)
    names = job.groups.names if job.groups is not None else ()
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.compile:
        compile_blocks(model)
    found = _find_checkpoint(accelerator, job, recorder)
    dog.beat("the search for a checkpoint")
    if found is not None:
        load_weights(found[0], model)
    # From here on `model` may be in shards: what needs it whole asks `parallel`.
    loss_of = NextTokenLoss(model, job.precision, job.end_of_text, len(names))
    parallel = prepare(accelerator, loss_of, settings)

    pending: list[Any] = []  # a row for each step since the last line (TrainerState)
    start = 0
    if found is not None:
        path, state = found
        load_optimizer(path, parallel.holding())
        start, pending = state.step, list(state.pending)
        log.info("%s: resumes after step %d of %d", job.title, start, job.n_steps)
    elif settings.model.optimizer is not None:
        given = Path(settings.model.optimizer)
        if accelerator.is_main_process:
            check_checkpoint(given)
        accelerator.wait_for_everyone()  # DeepSpeed's own group gives up after ten minutes
        load_optimizer(given, parallel.holding())
    dog.beat("the sharing of the model")
    spikes = SpikeWatch(() if found is None else found[1].recent)
    skips = SkipCount(accelerator, settings.on_nonfinite == "skip")

    def run_validation(step: int) -> None:
        length = settings.sequence_length
        for record in validate(
            accelerator, parallel.module, job.validation, length, micro, dog.beat
        ):
            if not math.isfinite(record["loss"]):
                raise DivergedError(
                    f"validation after step {step}: loss {record['loss']} on {record['lang']}; the "
                    f"weights are not usable. {BEGIN_ANEW}"
                )
            recorder.metric("validation", step=step, tokens=step * tokens_per_step, **record)
            if accelerator.is_main_process and "bits_per_byte" in record and "lang" not in record:
                bits = record["bits_per_byte"]
                log.info("%s: %.4f bits a byte in validation after step %d", job.title, bits, step)
        dog.beat(f"the validation after step {step}")

    def run_score(step: int) -> None:
        if accelerator.is_main_process and job.score is not None:
            # Its many shapes are not worth compiling, and would use up what torch compiles at most.
            with torch.compiler.set_stance("force_eager"):
                values = job.score()
            recorder.metric("score", step=step, tokens=step * tokens_per_step, **values)
            model.train()
        accelerator.wait_for_everyone()
        dog.beat(f"the score after step {step}")

    def save(step: int) -> None:
        now = TrainerState(step, recorder.size(), pending, spikes.recent())
        keep = (settings.keep_checkpoints, settings.keep_every)
        path = save_checkpoint(job.checkpoints, now, parallel.holding(), *keep)
        if accelerator.is_main_process:
            recorder.tracker.artifact("checkpoint", path)
        dog.beat(f"the checkpoint of step {step}")

    with (
        progress(job.title, job.n_steps - start, "steps") as ticker,
        stop_on_sigterm() as asked,
        deterministic(device),
        open_reader(job.sequences, job.order(), share, device, job.groups) as reader,
    ):
        if start < job.n_steps:
            ids = process_share(job.order().ids(start), *share)[0]
            tokens = torch.from_numpy(job.sequences.batch(ids)).to(device)
            dry_run(parallel, tokens)
            dog.beat("the trial batch")
        if start == 0:
            run_validation(0)
            if settings.score_every:
                run_score(0)
        stop = SharedStop(accelerator, asked, start)
        clock.start(start)
        for step in range(start, job.n_steps):
            # Dropout, where a model has any, draws from the step's own seed.
            seed_generators(child_seed(job.seed, "step", step, rank), device)
            rate = learning_rate(settings, step, job.n_steps)
            for group in parallel.optimizer.param_groups:
                group["lr"] = rate

            step_loss = torch.zeros((), device=device)
            step_groups = torch.zeros(2 * len(names), device=device)
            pieces = reader.step(step)
            # The trial is forward only under ZeRO, and no optimizer has its state before a step.
            with memory_told(micro, settings.sequence_length):
                for number, piece in enumerate(pieces, start=1):
                    with parallel.accumulating(last=number == len(pieces)):
                        found = parallel.module(*piece)
                        loss = (found[0] if names else found) / len(pieces)
                        parallel.backward(loss)
                    if names:
                        step_groups += found[1]
                    step_loss += loss.detach()
                norm = parallel.step(functools.partial(skips.wants, step_loss))
            pending.append(torch.cat([torch.stack([step_loss, norm.float()]), step_groups]))

            done = step + 1
            ticker.advance()
            dog.beat(f"step {done}")
            is_last = done == job.n_steps
            line_due = done % settings.log_every == 0 or is_last
            checkpoint_due = done % settings.checkpoint_every == 0 or is_last
            validation_due = settings.validate_every and done % settings.validate_every == 0
            score_due = settings.score_every and (done % settings.score_every == 0 or is_last)
            snapshot_due = done in settings.snapshots
            uses_weights = checkpoint_due or validation_due or score_due or snapshot_due
            stopping = stop.after(done)
            if line_due or uses_weights or stopping:
                # Here the loop waits for the device, which is behind with the steps since then.
                pending = _settle(accelerator, pending)
                pending = _save_nonfinite(job, recorder, pending, done)
                skips.check(done)
            if line_due:
                _write_line(recorder, names, pending, done, tokens_per_step, rate)
                for place, loss, usual in spikes.see(done - len(pending), pending):
                    recorder.timing("spike", step=place, loss=loss, usual=usual)
                speed = clock.lap(done, job.n_steps) | {"data_wait": round(reader.lap(), 6)}
                recorder.timing("timing", step=done, **speed)
                shown = f"loss {pending[-1][0]:.3f} " if pending[-1] else ""
                ticker.note(f"{shown}{speed['tokens_per_second']:,.0f} tokens/s")
                pending = []
            if validation_due or is_last:
                run_validation(done)
            if score_due:
                run_score(done)
            if snapshot_due:
                # Before the checkpoint: a kill between the two repeats the snapshot, or it would
                # never be made.
                weights = parallel.weights()
                if accelerator.is_main_process:
                    job.export_snapshot(done, weights)
                accelerator.wait_for_everyone()  # as before the given optimizer state is read
                dog.beat(f"the snapshot of step {done}")
            if checkpoint_due or stopping:
                save(done)
            if stopping and not is_last:
                raise StoppedError(
                    f"{job.title}: stopped by SIGTERM after step {done} of {job.n_steps}; "
                    "a checkpoint is saved, and the same command continues"
                )
            if uses_weights:
                clock.start(done)
    return parallel.weights()


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


def _settle(accelerator: Any, pending: list[Any]) -> list[Any]:
    """Turn the pending rows that are tensors into numbers, the mean over the processes."""
    fresh = [row for row in pending if isinstance(row, torch.Tensor)]
    if not fresh:
        return pending
    rows = accelerator.reduce(torch.stack(fresh), "mean").tolist()
    numbers = [tuple(row) for row in rows]
    return [*pending[: len(pending) - len(fresh)], *numbers]


def _save_nonfinite(
    job: Job, recorder: Recorder, pending: list[tuple[float, ...]], done: int
) -> list[tuple[float, ...]]:
    """Write down the batches of steps whose loss or gradient is not finite, and empty their rows.

    Where such a step is not skipped, DivergedError names the first.
    """
    rows = []
    for step, row in enumerate(pending, start=done - len(pending) + 1):
        if all(map(math.isfinite, row)):
            rows.append(row)
            continue
        rows.append(())
        loss, norm = row[:2]
        ids = job.order().ids(step - 1)
        file = recorder.nonfinite(step, loss, norm, job.sequences.describe(ids))
        said = f"step {step}: loss {loss}, gradient norm {norm} on the sequences {ids.tolist()}"
        if job.settings.on_nonfinite == "stop":
            raise DivergedError(
                f"{said} ({file}); the last checkpoint before it is kept. With train.on_nonfinite "
                f"skip the same command goes on from there without such batches. {BEGIN_ANEW}"
            )
        log.warning("%s: skipped %s (%s)", job.title, said, file)
    return rows


def _write_line(
    recorder: Recorder,
    names: Sequence[str],
    pending: list[tuple[float, ...]],
    done: int,
    tokens_per_step: int,
    rate: float,
) -> None:
    """The means of the steps since the last line, without skipped ones, which are counted."""
    used = [row for row in pending if row]
    values: dict[str, Any] = {"step": done, "tokens": done * tokens_per_step}
    if used:
        loss, norm, *table = (sum(column) / len(used) for column in zip(*used, strict=True))
        values["loss"] = round(loss, 6)
        by_group = zip(names, table[: len(names)], table[len(names) :], strict=True)
        if seen := {name: round(nats / n, 6) for name, nats, n in by_group if n}:
            values["loss_by"] = seen
    values["lr"] = float(f"{rate:.8g}")
    if used:
        values["grad_norm"] = round(norm, 6)
    if skipped := len(pending) - len(used):
        values["skipped"] = skipped
    recorder.metric("train" if used else "skipped", **values)
