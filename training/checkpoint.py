"""Checkpoints of a training in progress: whole or not there, and checked before they are used.

A checkpoint is a folder `step-00000500` with `model.safetensors`, `optimizer.safetensors`,
`state.json` and, written last, `manifest.json` with the SHA-256 of the others. It is written under
another name and renamed. One that was torn or whose bits changed is passed over with a warning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mining.common.errors import InputError
from mining.common.files import dump_json, read_json, remove_tree, sha256_file
from mining.common.logs import log
from training.model import named_tensors

FORMAT_VERSION = 1
PREFIX = "step-"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class TrainerState:
    """Where the training stands after `step` steps.

    `metrics_bytes` is the length of metrics.jsonl then; `pending` holds for each step since its
    last line loss, gradient norm, and sums and counts by language (training.loss.sums_by_group);
    nothing for a step that was skipped. Random numbers need no state: every step draws from its own
    seed.
    """

    step: int
    metrics_bytes: int
    pending: list[tuple[float, ...]]


def save_checkpoint(
    folder: Path, state: TrainerState, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write a checkpoint under `folder`, then remove all but the `keep` newest; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{state.step:08d}"
    aside = folder / f".{final.name}.tmp"
    remove_tree(aside)
    aside.mkdir()
    weights = {name: tensor.detach().contiguous() for name, tensor in named_tensors(model)}
    save_file(weights, aside / "model.safetensors")
    save_file(_optimizer_tensors(model, optimizer), aside / "optimizer.safetensors")
    (aside / "state.json").write_text(dump_json(asdict(state)), encoding="utf-8")
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(aside.iterdir())
    }
    manifest = {"format_version": FORMAT_VERSION, "files": files}
    (aside / "manifest.json").write_text(dump_json(manifest), encoding="utf-8")
    for path in aside.iterdir():
        _sync(path)
    _sync(aside)
    remove_tree(final)
    aside.rename(final)
    _sync(folder)
    for old in _folders(folder)[keep:]:
        remove_tree(old)
    return final


def newest_checkpoint(
    folder: Path, accept: Callable[[TrainerState], str | None] = lambda state: None
) -> tuple[Path, TrainerState] | None:
    """The newest valid checkpoint under `folder` and its state, or None.

    `accept` returns the reason why a state cannot be used, or None. Checkpoints passed over are
    logged with the reason.
    """
    for path in _folders(folder):
        try:
            state = _read_checked(path)
        except InputError as error:
            log.warning("train: passes over the checkpoint %s: %s", path.name, error)
            continue
        reason = accept(state)
        if reason is None:
            return path, state
        log.warning("train: passes over the checkpoint %s: %s", path.name, reason)
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state into `model` and `optimizer`, in place."""
    weights = load_file(path / "model.safetensors")
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            tensor.copy_(weights[name])
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in _trained(model, optimizer):
        entry = {kind: moments[f"{kind}.{name}"] for kind in MOMENTS}
        # A fused kernel on a GPU keeps the step count beside the weights.
        optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in entry.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": optimizer.state[parameter][kind].detach().contiguous()
        for name, parameter in _trained(model, optimizer)
        for kind in MOMENTS
    }


def _trained(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterable[tuple[str, nn.Parameter]]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in model.named_parameters() if id(p) in trained]


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders by name, newest first."""
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True) if folder.is_dir() else []


def _read_checked(path: Path) -> TrainerState:
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise InputError("its manifest is of another format")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise InputError(f"{name} is missing or torn")
        if sha256_file(file) != entry["sha256"]:
            raise InputError(f"{name} differs from its hash")
    raw: dict[str, Any] = read_json(path / "state.json")
    if set(raw) != {f.name for f in fields(TrainerState)}:
        raise InputError("state.json has other keys than this version writes")
    pending = [tuple(float(value) for value in row) for row in raw["pending"]]
    return TrainerState(raw["step"], raw["metrics_bytes"], pending)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
