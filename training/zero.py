"""DeepSpeed ZeRO: optimizer state (1), gradients (2) and weights (3) in shards."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.loss import NextTokenLoss
from training.model import make_optimizer
from training.parallel import Holding, Slice, kept_buffers
from training.settings import TrainSettings


class Zero:
    """See training.parallel.Parallel. The engine averages, clips and steps; the loop accumulates.

    torch's AdamW steps flat pieces of many parameters at once: the owners of the slices.
    """

    def __init__(self, accelerator: Any, loss_of: NextTokenLoss, settings: TrainSettings) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self._accelerator, self._model = accelerator, loss_of.model
        self._stage = int(settings.parallel.removeprefix("zero"))
        if self._stage == 3:
            # The loss takes the head's weight without calling the head.
            model: Any = loss_of.model
            head = model.get_output_embeddings().weight
            deepspeed.zero.register_external_parameter(loss_of, head)
        else:
            loss_of.to(accelerator.device)
        # By the weights' shapes, which shards do not have.
        self.optimizer: Optimizer = make_optimizer(loss_of.model, settings, accelerator.device)
        if self._stage == 3:
            # Piece by piece: a device may have no room for the whole.
            deepspeed.zero.Init(module=loss_of, dtype=torch.float32)
        self.module, _ = accelerator.prepare(loss_of, self.optimizer)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """See Parallel."""
        self.module.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See Parallel."""
        self.module.backward(loss, scale_wrt_gas=False)

    def step(self, wants: Callable[[Tensor], bool]) -> Tensor:
        """See Parallel. The engine decides: a gradient that is not finite changes nothing, has the
        norm inf, and `wants` only hears of it.
        """
        self.module.step()
        found = self.module.get_global_grad_norm()
        norm = torch.as_tensor(found, dtype=torch.float32, device=self._accelerator.device)
        wants(norm)
        return norm

    def trial(self, tokens: Tensor) -> None:
        """See Parallel; forward only, as the engine would keep the gradients for its next step."""
        with torch.no_grad():
            self.module(tokens)

    def holding(self) -> Holding:
        """See Parallel."""
        slices = self._slices_of_stage_3() if self._stage == 3 else self._slices()
        here = self._accelerator
        buffers = kept_buffers(self._model)
        rank, world = here.process_index, here.num_processes
        return Holding(rank, world, False, slices, self.optimizer, buffers)

    def weights(self) -> dict[str, Tensor]:
        """See Parallel."""
        import deepspeed

        whole: dict[str, Tensor] = {}
        for name, p in self._model.named_parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=self._stage == 3):
                if self._accelerator.is_main_process:
                    whole[name] = p.detach().to("cpu", copy=self._stage == 3)
        return whole | kept_buffers(self._model) if whole else whole

    def _slices(self) -> list[Slice]:
        owners = self.module.optimizer.single_partition_of_fp32_groups
        slices = []
        for name, p in self._model.named_parameters():
            # None where all of the parameter lies in other processes.
            part: Any = p._hp_mapping  # type: ignore[attr-defined]
            if part is not None:
                owner = owners[part.param_group_index]
                here, there = part.lp_fragment_address, part.hp_fragment_address
                slices.append(Slice(name, p.numel(), here.start, here.numel, owner, there.start))
        return slices

    def _slices_of_stage_3(self) -> list[Slice]:
        sharder = self.module.optimizer
        slices = []
        for name, parameter in self._model.named_parameters():
            p: Any = parameter
            group, place, length = sharder.grad_position[sharder.get_param_id(p)]
            start = self._accelerator.process_index * length
            # The last shard is filled up to the length of the others.
            inside = max(0, min(length, p.ds_numel - start))
            owner = sharder.fp32_partitioned_groups_flat[group]
            slices.append(Slice(name, p.ds_numel, start, inside, owner, place))
        return slices
