"""How several processes train one model: each holding all of it (DDP), or a shard each.

The loop drives every kind alike:

    parallel = prepare(accelerator, loss_of, settings)
    with parallel.accumulating(last):
        loss = parallel.module(tokens) / pieces
        parallel.backward(loss)
    norm = parallel.step()

What a process holds is described by slices, flat runs of elements of a parameter, in which all
kinds are alike: a checkpoint made by one is continued by another, by any number of processes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.loss import NextTokenLoss
from training.model import make_optimizer
from training.settings import TrainSettings


def flat(tensor: Tensor) -> Tensor:
    """The elements of a tensor that lie in this process, as one dimension, without a copy."""
    local: Any = tensor.detach()
    here: Tensor = local.to_local() if hasattr(local, "to_local") else local
    return here.view(-1)


@dataclass(frozen=True)
class Slice:
    """A part of a parameter that this process steps.

    Elements `start` to `start + length` of the flattened parameter `name` (`numel` elements) are
    those from `place` on of `owner`, flattened, which is what the optimizer steps.
    """

    name: str
    numel: int
    start: int
    length: int
    owner: Tensor
    place: int

    def of(self, tensor: Tensor) -> Tensor:
        """A flat view of the elements in `tensor`, which is `owner` or laid out as it is."""
        return flat(tensor)[self.place : self.place + self.length]

    def share(self, rank: int, world: int) -> Slice:
        """The part of it that process `rank` writes where all hold the whole."""
        low, high = self.length * rank // world, self.length * (rank + 1) // world
        return replace(self, start=self.start + low, length=high - low, place=self.place + low)


@dataclass(frozen=True)
class Holding:
    """What one process holds of a training: its slices, and small things that all hold.

    `replicated` says that every process holds all slices. `optimizer` has its state by owner.
    """

    rank: int
    world: int
    replicated: bool
    slices: list[Slice]
    optimizer: Optimizer
    buffers: dict[str, Tensor]


class Parallel(Protocol):
    """A model, its loss and its optimizer in training, over all processes.

    `optimizer` is torch's AdamW: rates are set in its `param_groups`.
    """

    module: Any
    optimizer: Optimizer

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Surrounds forward and backward of a micro-batch; `last` is the last one of the step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss, the mean over the processes."""
        ...

    def step(self, wants: Callable[[Tensor], bool]) -> Tensor:
        """Clip, update and drop the gradients; return their norm before clipping.

        No update where `wants` says no to the norm.
        """
        ...

    def trial(self, tokens: Tensor) -> None:
        """Take as much memory as a step will for a micro-batch of `tokens`, and change nothing."""
        ...

    def holding(self) -> Holding:
        """What this process saves and loads."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The model's whole state_dict on the first process, empty elsewhere.

        All processes call it together. Not a copy where the first process holds it all.
        """
        ...


def prepare(accelerator: Any, loss_of: NextTokenLoss, settings: TrainSettings) -> Parallel:
    """Put the model on its devices in the way that `accelerator` was started for."""
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        from training.zero import Zero

        return Zero(accelerator, loss_of, settings)
    return (Fsdp if kind == "FSDP" else Plain)(accelerator, loss_of, settings)


def kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state_dict."""
    kept = set(model.state_dict())
    return {name: tensor for name, tensor in model.named_buffers() if name in kept}


def whole_slices(model: nn.Module) -> list[Slice]:
    """Slices of a process that holds everything; tied parameters once."""
    named = model.named_parameters()
    return [Slice(name, p.numel(), 0, p.numel(), p, 0) for name, p in named]


class Plain:
    """One process, or several that each hold everything and average their gradients (DDP)."""

    def __init__(self, accelerator: Any, loss_of: NextTokenLoss, settings: TrainSettings) -> None:
        self._accelerator, self._model = accelerator, loss_of.model
        self._place(loss_of)
        self.optimizer: Optimizer = make_optimizer(loss_of.model, settings, accelerator.device)
        self.module, self._stepper = accelerator.prepare(loss_of, self.optimizer)
        self._trained = list(loss_of.model.parameters())
        self._limit = math.inf if settings.grad_clip is None else settings.grad_clip

    def _place(self, loss_of: NextTokenLoss) -> None:
        loss_of.to(self._accelerator.device)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See Parallel; the processes exchange gradients once a step."""
        waits: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(self.module)
        return contextlib.nullcontext() if last else waits

    def backward(self, loss: Tensor) -> None:
        """See Parallel."""
        # Not accelerator.backward, which divides by what accelerate's own configuration says.
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, wants: Callable[[Tensor], bool]) -> Tensor:
        """See Parallel."""
        norm: Any = torch.nn.utils.clip_grad_norm_(self._trained, self._limit)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if wants(whole):
            self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        return whole

    def trial(self, tokens: Tensor) -> None:
        """See Parallel; on a GPU with room for the moments, which come with the first update."""
        try:
            gpu = tokens.device.type == "cuda"
            # A resumed training has its moments already.
            new = [p for p in self._trained if p not in self.optimizer.state]
            moments = [torch.empty_like(flat(p)) for p in new * 2 if gpu]
            with self.accumulating(last=False):
                self.backward(self.module(tokens))
            del moments
        finally:
            self._stepper.zero_grad(set_to_none=True)

    def holding(self) -> Holding:
        """See Parallel."""
        return self._holding(True, whole_slices(self._model))

    def weights(self) -> dict[str, Tensor]:
        """See Parallel."""
        if not self._accelerator.is_main_process:
            return {}
        named = {name: p.detach() for name, p in self._model.named_parameters()}
        return named | kept_buffers(self._model)

    def _holding(self, replicated: bool, slices: list[Slice]) -> Holding:
        here = self._accelerator
        buffers = kept_buffers(self._model)
        rank, world = here.process_index, here.num_processes
        return Holding(rank, world, replicated, slices, self.optimizer, buffers)


class Fsdp(Plain):
    """Weights, gradients and optimizer state sharded by rows (FSDP2), a unit per block."""

    def _place(self, loss_of: NextTokenLoss) -> None:
        # The blocks move one by one when they are sharded. What stands outside of them (embedding,
        # head, last norm) is the root's unit, which is whole during forward, as the loss needs.
        model: Any = loss_of.model
        plugin = self._accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = sorted(model._no_split_modules)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See Parallel; gradients are sharded after every micro-batch, as memory asks for."""
        return contextlib.nullcontext()

    def holding(self) -> Holding:
        """See Parallel."""
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        slices = []
        for name, p in self._sharded():
            rows = p.shape[0]
            # As torch.chunk cuts: all but the last shards have this many rows.
            first = min(rank * -(-rows // world), rows)
            start = first * (p.numel() // rows)
            slices.append(Slice(name, p.numel(), start, p.to_local().numel(), p, 0))
        return self._holding(False, slices)

    def weights(self) -> dict[str, Tensor]:
        """See Parallel."""
        whole: dict[str, Tensor] = {}
        for name, p in self._sharded():
            tensor = p.full_tensor().detach()
            if self._accelerator.is_main_process:
                whole[name] = tensor.cpu()
        return whole | kept_buffers(self._model) if whole else whole

    def _sharded(self) -> list[tuple[str, Any]]:
        # After a validation the root's unit may still be whole.
        self.module.reshard()
        return list(self._model.named_parameters())
