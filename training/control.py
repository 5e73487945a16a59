"""What surrounds the training loop: stopping on a signal, seeds and repeatable kernels."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

SECONDS_TO_AGREE = 1.0


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process, while the block runs.

    Outside the main thread, where signals cannot be caught, it is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class SharedStop:
    """Whether any process was asked to stop, which they ask each other about every second."""

    def __init__(self, accelerator: Any, event: threading.Event, step: int) -> None:
        """`event` is this process's own; `step` steps are done."""
        self._accelerator, self._event = accelerator, event
        self._step, self._since, self._next = step, time.monotonic(), step + 1

    def after(self, step: int) -> bool:
        """Whether to stop after `step` steps. All processes ask after each step.

        Asking waits for the device, so that it is done each SECONDS_TO_AGREE only, by the step time
        that all agree on.
        """
        here = self._accelerator
        if here.num_processes == 1:
            return self._event.is_set()
        if step < self._next:
            return False
        now = time.monotonic()
        said = [float(self._event.is_set()), (now - self._since) / (step - self._step)]
        stops, seconds = here.reduce(torch.tensor(said, device=here.device), "sum").tolist()
        steps = max(1, round(SECONDS_TO_AGREE * here.num_processes / seconds))
        self._step, self._since, self._next = step, now, step + steps
        return bool(stops > 0)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device`.

    torch.manual_seed writes down the whole stack for each kind of device that torch knows and this
    process does not use (0.2 ms), here in each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, let torch use only kernels that repeat bit for bit; elsewhere change nothing."""
    if device.type != "cpu":
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds bugs of others and costs time; every value here is written first.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled
