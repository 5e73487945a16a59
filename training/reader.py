"""Reads the batches ahead of the training, in a thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from training.data import Sequences
from training.groups import LossGroups
from training.order import DataOrder, process_share


class Reader:
    """The micro-batches of this process, step by step; the next step is read during this one.

    `waited` counts the seconds that training had to wait for a step that was not read yet.
    """

    def __init__(
        self,
        sequences: Sequences,
        order: DataOrder,
        share: tuple[int, int, int],
        device: torch.device,
        groups: LossGroups | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        """`share` is this process's rank, the number of processes, sequences of a micro-batch."""
        self._sequences, self._order, self._share = sequences, order, share
        self._groups = groups
        self._device, self._pool = device, pool
        self._ahead: tuple[int, Future[list[list[Tensor]]]] | None = None
        self.waited = 0.0

    def step(self, step: int) -> list[list[Tensor]]:
        """Step `step`'s micro-batches on the device.

        Each is [tokens int64 [micro, length + 1]], and with groups also those of the predicted
        tokens, int64 [micro, length].
        """
        since = time.perf_counter()
        if self._ahead is not None and self._ahead[0] == step:
            pieces = self._ahead[1].result()
        else:
            pieces = self._pool.submit(self._read, step).result()
        self.waited += time.perf_counter() - since
        self._ahead = step + 1, self._pool.submit(self._read, step + 1)
        return [[t.to(self._device, non_blocking=True) for t in piece] for piece in pieces]

    def lap(self) -> float:
        """Seconds waited since the last lap."""
        waited, self.waited = self.waited, 0.0
        return waited

    def _read(self, step: int) -> list[list[Tensor]]:
        # One thread only, so that the order's cache is never written by two.
        pieces = []
        for ids in process_share(self._order.ids(step), *self._share):
            arrays = [self._sequences.batch(ids)]
            if self._groups is not None:
                arrays.append(self._groups.of(ids))
            tensors = [torch.from_numpy(array) for array in arrays]
            pinned = self._device.type == "cuda"
            pieces.append([t.pin_memory() for t in tensors] if pinned else tensors)
        return pieces


@contextmanager
def open_reader(
    sequences: Sequences,
    order: DataOrder,
    share: tuple[int, int, int],
    device: torch.device,
    groups: LossGroups | None,
) -> Iterator[Reader]:
    """A reader whose thread ends with the block."""
    pool = ThreadPoolExecutor(1, "reader")
    try:
        yield Reader(sequences, order, share, device, groups, pool)
    finally:
        pool.shutdown(cancel_futures=True)
