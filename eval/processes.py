"""Several processes of `accelerate launch` or `torchrun` that share one stage's work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

# The first process writes the tables while the others wait: longer than the ten minutes after which
# NCCL takes a process for lost. The launcher ends all when one fails.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process's place (`rank`) among `size`, and the device that is its own."""

    rank: int
    size: int
    device: str

    def share(self, value: Any) -> Any:
        """The value that the first process has (it must be picklable)."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Return when every process is here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def join_processes(device: str) -> Processes:
    """Meet the other processes, if the launcher started any; `device` is the setting's value.

    Each process takes the GPU of its local rank, unless the setting names one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes(0, 1, device)
    from accelerate import PartialState

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    state = PartialState(cpu=not on_gpu, timeout=TIMEOUT)
    own = f"cuda:{state.local_process_index}" if device in ("auto", "cuda") and on_gpu else device
    return Processes(state.process_index, state.num_processes, own)
