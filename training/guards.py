"""What keeps a long training from being lost: a trial batch, bad losses, a process that hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mining.common.errors import SettingsError
from mining.common.logs import log
from training.errors import BEGIN_ANEW, DivergedError
from training.parallel import Parallel

STUCK_EXIT_CODE = 75
MAX_SKIPS = 10
SPIKE_DEVIATIONS = 6.0
SPIKE_WINDOW, SPIKE_FIRST = 256, 32


def dry_run(parallel: Parallel, tokens: Tensor) -> None:
    """Take a micro-batch forward and backward and forget it, so that memory errors come at once.

    All micro-batches have one shape. Weights, gradients, optimizer and random numbers are left as
    they were. Raises SettingsError where memory is short.
    """
    devices = [tokens.device] if tokens.device.type == "cuda" else []
    with memory_told(tokens.shape[0], tokens.shape[1] - 1), torch.random.fork_rng(devices=devices):
        parallel.trial(tokens)


@contextlib.contextmanager
def memory_told(n_sequences: int, length: int) -> Iterator[None]:
    """Where memory is short, the error is a SettingsError that says which setting asks for it."""
    try:
        yield
    except RuntimeError as error:
        # A CPU's allocator has no error of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise SettingsError(
            f"micro_batch_sequences: {n_sequences} sequences of {length} tokens do not fit into "
            f"the device's memory ({str(error).splitlines()[0]}); lower it, or set "
            "train.activation_checkpointing"
        ) from None


class SkipCount:
    """Whether steps are to be skipped (`active`), and how many were in a row."""

    def __init__(self, accelerator: Any, active: bool) -> None:
        self._accelerator, self._active, self._in_a_row = accelerator, active, 0

    def wants(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether a step of this loss and gradient norm may update the weights.

        Where steps are skipped, they must be finite in every process, which waits for the device.
        """
        if not self._active:
            return True
        bad = (~torch.isfinite(torch.stack([loss.detach(), norm.float()]))).any().float()
        fine = bool(self._accelerator.reduce(bad, "sum").item() == 0)
        self._in_a_row = 0 if fine else self._in_a_row + 1
        return fine

    def check(self, done: int) -> None:
        """DivergedError where the last MAX_SKIPS steps or more were skipped."""
        if self._in_a_row >= MAX_SKIPS:
            raise DivergedError(
                f"step {done}: the last {self._in_a_row} steps had a loss or gradient that is not "
                f"finite. {BEGIN_ANEW}"
            )


class SpikeWatch:
    """Notices losses far above those of the last steps.

    Far is SPIKE_DEVIATIONS times 1.4826 medians of the absolute deviation (a standard deviation for
    normal values) above the median; both hardly move for a single spike.
    """

    def __init__(self, recent: Sequence[float] = ()) -> None:
        """`recent` are the losses that another watch had seen last."""
        self._last = deque(recent, maxlen=SPIKE_WINDOW)

    def recent(self) -> list[float]:
        """The last losses, for a watch that goes on where this one stands."""
        return list(self._last)

    def see(self, done: int, rows: Sequence[Sequence[float]]) -> list[tuple[int, float, float]]:
        """Take the rows (loss first; empty for a skipped step) of the steps after `done`.

        The spikes among them: step, its loss, the usual loss.
        """
        spikes = []
        for step, row in enumerate(rows, start=done + 1):
            if not row:
                continue
            if len(self._last) >= SPIKE_FIRST:
                usual = statistics.median(self._last)
                deviation = 1.4826 * statistics.median(abs(x - usual) for x in self._last)
                if row[0] > usual + SPIKE_DEVIATIONS * max(deviation, 1e-6):
                    spikes.append((step, row[0], usual))
                    log.warning(
                        "train: step %d has loss %.4f, where the last %d steps had %.4f",
                        step, row[0], len(self._last), usual,
                    )  # fmt: skip
            self._last.append(row[0])
        return spikes


class Watchdog:
    """Ends the process when no `beat` comes for `seconds`."""

    def __init__(self, title: str, seconds: float, place: str) -> None:
        self._title, self._seconds, self._place = title, seconds, place
        self._what, self._since = "the start", time.monotonic()
        self._over = threading.Event()

    def beat(self, what: str) -> None:
        """Say what was just done."""
        self._what, self._since = what, time.monotonic()

    def watch(self) -> None:
        """Wait for the end or for silence; runs in a thread."""
        while not self._over.wait(min(5.0, self._seconds / 4)):
            silent = time.monotonic() - self._since
            if silent > self._seconds:
                log.error(
                    "%s: %s has done nothing for %.0f s since %s, so it ends itself; another "
                    "process may have died, or the data or the network may hang. The same command "
                    "continues from the last checkpoint (train.stuck_after_seconds). Where its "
                    "threads stand:",
                    self._title, self._place, silent, self._what,
                )  # fmt: skip
                # The real one: what stands in for it may be no file.
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                os._exit(STUCK_EXIT_CODE)

    def stop(self) -> None:
        """No silence counts any more."""
        self._over.set()


@contextlib.contextmanager
def watchdog(title: str, seconds: float | None) -> Iterator[Watchdog]:
    """A watchdog over the block; with null seconds it never barks."""
    rank, world_size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    dog = Watchdog(title, seconds or math.inf, f"process {rank or 0} of {world_size or 1}")
    thread = threading.Thread(target=dog.watch, name="watchdog", daemon=True)
    if seconds is not None:
        thread.start()
    try:
        yield dog
    finally:
        dog.stop()
