"""AdamW's state as a file of its own, for a training that continues another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mining.common.errors import InputError, MismatchError
from mining.common.files import atomic_path
from training.checkpoint import MOMENTS

FILE = "optimizer.safetensors"


def save_moments(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of every trained parameter, named KIND.PARAMETER as in a checkpoint."""
    tensors = {
        f"{kind}.{name}": optimizer.state[parameter][kind].detach().contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for kind in MOMENTS
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_moments(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Put a file's state into `optimizer`, in place.

    MismatchError where it is not of this model.
    """
    try:
        tensors = load_file(path)
    except Exception as error:  # the library's own type is not public
        raise InputError(f"{path}: no optimizer state in safetensors ({error})") from None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = {kind: tensors.get(f"{kind}.{name}") for kind in MOMENTS}
        moment = found["exp_avg"]
        if any(value is None for value in found.values()) or moment.shape != parameter.shape:  # type: ignore[union-attr]
            shape = "nothing" if moment is None else f"the shape {tuple(moment.shape)}"
            raise MismatchError(
                f"{path}: has {shape} for {name}, expected {tuple(parameter.shape)}; use the state "
                "that was written beside this checkpoint, or set train.model.optimizer to null"
            )
        optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in found.items()}  # type: ignore[union-attr]
