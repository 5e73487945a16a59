"""Checkpoints of a training in progress: whole or not there, and checked before they are used.

A checkpoint is a folder `step-00000500`. Every process writes the elements of weights and AdamW
moments that it holds into its own `shard-00000-of-00002.safetensors`; the first one adds
`state.json` and, last, `manifest.json` with the SHA-256 of all files. The folder is written under
another name and renamed. One that was torn or whose bits changed is passed over with a warning.

A shard's tensors are flat runs of elements, named `PARAMETER:weight:START`, also `exp_avg` and
`exp_avg_sq`. So any number of processes, sharing the work in any way, reads what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mining.common.errors import InputError, MismatchError
from mining.common.files import dump_json, read_json, remove_tree, sha256_file, sync
from mining.common.logs import log
from mining.common.names import is_file_name
from training.parallel import Holding, flat, kept_buffers

FORMAT_VERSION = 2
PREFIX = "step-"
MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"


@dataclass(frozen=True)
class TrainerState:
    """Where the training stands after `step` steps.

    `metrics_bytes` is the length of metrics.jsonl then; `pending` holds for each step since its
    last line loss, gradient norm, and sums and counts by language (training.loss.sums_by_group);
    nothing for a step that was skipped. `recent` are the losses before those, which spikes are
    measured by (training.guards.SpikeWatch). Random numbers need no state: every step draws from
    its own seed.
    """

    step: int
    metrics_bytes: int
    pending: list[tuple[float, ...]]
    recent: list[float] = field(default_factory=list)


def save_checkpoint(
    folder: Path, state: TrainerState, holding: Holding, keep: int, keep_every: int | None = None
) -> Path:
    """Write a checkpoint under `folder`, remove old ones (see `prune`), return its path.

    All processes call it together and see the same `folder`; the first one's `state` counts.
    """
    final = folder / f"{PREFIX}{state.step:08d}"
    aside = folder / f".{final.name}.tmp"
    first = holding.rank == 0
    if first:
        remove_tree(aside)
        aside.mkdir(parents=True)
    _gather(holding, None)
    shard = aside / f"shard-{holding.rank:05d}-of-{holding.world:05d}.safetensors"
    save_file(_tensors(holding), shard)
    sync(shard)
    entries = _gather(holding, (shard.name, _entry(shard)))
    if first:
        (aside / "state.json").write_text(dump_json(asdict(state)), encoding="utf-8")
        files = {"state.json": _entry(aside / "state.json"), **dict(entries)}
        manifest = {"format_version": FORMAT_VERSION, "files": files}
        (aside / "manifest.json").write_text(dump_json(manifest), encoding="utf-8")
        for path in (aside / "state.json", aside / "manifest.json", aside):
            sync(path)
        remove_tree(final)
        aside.rename(final)
        sync(folder)
        for other in _folders(folder):
            if other.name > final.name:
                # Passed over when this training resumed: it must not push out valid ones.
                remove_tree(other)
        prune(folder, keep, keep_every)
    _gather(holding, None)
    return final


def prune(folder: Path, keep: int, keep_every: int | None) -> None:
    """Remove all checkpoints but the `keep` newest and those of a multiple of `keep_every` steps.

    Without any left, `folder` goes as well.
    """
    for old in _folders(folder)[keep:]:
        if keep_every is None or int(old.name.removeprefix(PREFIX)) % keep_every:
            remove_tree(old)
    if folder.is_dir() and not any(folder.iterdir()):
        remove_tree(folder)


def newest_checkpoint(
    folder: Path, accept: Callable[[TrainerState], str | None] = lambda state: None
) -> tuple[Path, TrainerState] | None:
    """The newest valid checkpoint under `folder` and its state, or None where there is none at all.

    `accept` returns the reason why a state cannot be used, or None. Checkpoints passed over are
    logged with the reason. InputError where that leaves none: weeks of training must not begin anew
    by themselves.
    """
    reasons = []
    for path in _folders(folder):
        try:
            state = _read_checked(path)
        except InputError as error:
            # As text: a kept log record would keep the error's frames, and with them the lock.
            reason: str | None = str(error)
        else:
            reason = accept(state)
            if reason is None:
                return path, state
        log.warning("train: passes over the checkpoint %s: %s", path.name, reason)
        reasons.append(f"{path.name}: {reason}")
    if reasons:
        raise InputError(
            f"{folder}: holds checkpoints, but none that can be used ({'; '.join(reasons)}); bring "
            "one back to continue, or remove the folder to begin anew"
        )
    return None


def check_checkpoint(path: Path) -> None:
    """InputError, which names the folder, where a checkpoint is torn or was changed."""
    try:
        _read_checked(path)
    except InputError as error:
        raise InputError(f"{path}: not a whole checkpoint ({error})") from None


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into `model`, in place, before it is shared among processes."""
    stored = _Stored(path)
    buffers = kept_buffers(model)
    for name, tensor in [*model.named_parameters(), *buffers.items()]:
        what = "buffer" if name in buffers else "weight"
        # A buffer may be of integers; what a slice holds is of the parameter's type.
        flat(tensor).copy_(stored.read(name, what, 0, tensor.numel()))


def load_optimizer(path: Path, holding: Holding) -> None:
    """Put a checkpoint's optimizer state into that of `holding`, in place.

    MismatchError where it is not of this model.
    """
    stored = _Stored(path)
    updates = float(stored.read(UPDATES, "count", 0, 1))
    if not updates:
        return
    state = holding.optimizer.state
    for part in holding.slices:
        if (found := stored.numel(part.name, MOMENTS[0])) != part.numel:
            raise MismatchError(
                f"{path}: has AdamW's state of {found} elements for {part.name}, expected "
                f"{part.numel}; use a checkpoint of this model"
            )
        if part.owner not in state:
            # A fused kernel on a GPU keeps the count of updates beside the weights.
            count = torch.tensor(updates, dtype=torch.float32, device=part.owner.device)
            zeros = {kind: torch.zeros_like(part.owner) for kind in MOMENTS}
            state[part.owner] = {"step": count, **zeros}
        for kind in MOMENTS:
            values = stored.read(part.name, kind, part.start, part.length)
            part.of(state[part.owner][kind]).copy_(values)


class _Stored:
    """The tensors of a checkpoint, read piece by piece from all its shards."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        for file in sorted(path.glob("shard-*.safetensors")):
            # Memory-mapped: only what is asked for is read.
            handle: Any = safe_open(file, framework="pt")
            for key in handle.keys():  # noqa: SIM118, not a dictionary
                name, what, start = key.rsplit(":", 2)
                run = handle.get_slice(key)
                self._runs.setdefault((name, what), []).append(
                    (int(start), run.get_shape()[0], run)
                )
        for runs in self._runs.values():
            runs.sort(key=lambda run: run[0])

    def numel(self, name: str, what: str) -> int:
        """Number of elements in all shards."""
        return sum(count for _, count, _ in self._runs.get((name, what), []))

    def read(self, name: str, what: str, start: int, length: int) -> Tensor:
        """Elements `start` to `start + length`, flat; InputError where some are in no shard."""
        pieces, at, end = [], start, start + length
        for low, count, run in self._runs.get((name, what), []):
            high = min(end, low + count)
            if low <= at < high:
                pieces.append(run[at - low : high - low])
                at = high
        if at < end or not pieces:
            if length == 0:
                return torch.empty(0)
            raise InputError(
                f"{self._path}: holds no element {at} of {name} ({what}); it is of another model"
            )
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _tensors(holding: Holding) -> dict[str, Tensor]:
    """What this process writes: nothing of it is written by another one."""
    slices = holding.slices
    if holding.replicated:
        slices = [part.share(holding.rank, holding.world) for part in slices]
    state = holding.optimizer.state
    tensors: dict[str, Tensor] = {}
    for part in slices:
        if part.length:
            tensors[f"{part.name}:weight:{part.start}"] = part.of(part.owner)
            for kind in MOMENTS if part.owner in state else ():
                tensors[f"{part.name}:{kind}:{part.start}"] = part.of(state[part.owner][kind])
    if holding.rank == 0:
        # AdamW counts by parameter, but the loop updates all of them or none.
        counts = [float(entry["step"]) for entry in state.values()]
        tensors[f"{UPDATES}:count:0"] = torch.tensor(counts[:1] or [0.0])
        for name, buffer in holding.buffers.items():
            tensors[f"{name}:buffer:0"] = flat(buffer.contiguous())
    return tensors


def _gather(holding: Holding, value: Any) -> list[Any]:
    """The values of all processes, in order; waits for the last of them."""
    if holding.world == 1:
        return [value]
    values: list[Any] = [None] * holding.world
    torch.distributed.all_gather_object(values, value)
    return values


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders by name, newest first."""
    # Nothing else that somebody puts there, say a copy with another ending, is ours to remove.
    found = folder.glob(f"{PREFIX}*") if folder.is_dir() else ()
    return sorted((p for p in found if p.name.removeprefix(PREFIX).isdecimal()), reverse=True)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _read_checked(path: Path) -> TrainerState:
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise InputError("its manifest is of another format")
    listed = manifest.get("files")
    if (
        not isinstance(listed, dict)
        or "state.json" not in listed
        or any(
            not isinstance(entry, dict)
            or set(entry) != {"bytes", "sha256"}
            or not is_file_name(name)
            for name, entry in listed.items()
        )
    ):
        raise InputError("its manifest has other keys than this version writes")
    for name, entry in listed.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise InputError(f"{name} is missing or torn")
        if sha256_file(file) != entry["sha256"]:
            raise InputError(f"{name} differs from its hash")
    raw: Any = read_json(path / "state.json")
    known = {f.name for f in fields(TrainerState)}
    # The first versions of the format had no recent losses.
    if not isinstance(raw, dict) or {"recent", *raw} != known:
        raise InputError("state.json has other keys than this version writes")
    try:
        pending = [tuple(float(value) for value in row) for row in raw["pending"]]
        recent = [float(value) for value in raw.get("recent", [])]
        return TrainerState(int(raw["step"]), int(raw["metrics_bytes"]), pending, recent)
    except (TypeError, ValueError):
        raise InputError("state.json has other values than this version writes") from None
