from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mining.common.errors import InputError
from mining.common.files import read_json, sha256_file, write_json
from training.checkpoint import (
    TrainerState,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    prune,
    save_checkpoint,
)
from training.parallel import Holding, Slice, kept_buffers, whole_slices


class Net(torch.nn.Sequential):
    """Weights, a tied one, and a buffer that is part of the state."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))
        self[2].weight = self[0].weight
        self.register_buffer("scale", torch.tensor([2.0, 3.0]))


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    go_on(model, optimizer, range(steps))
    return model, optimizer


def go_on(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def holding(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Holding:
    return Holding(0, 1, True, whole_slices(model), optimizer, kept_buffers(model))


def save(folder: Path, step: int, steps: int = 1, keep: int = 3, **options: int) -> Path:
    state = TrainerState(step, 10 * step, [])
    return save_checkpoint(folder, state, holding(*trained(steps)), keep, **options)


def test_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    state = TrainerState(3, 17, [(0.25, 1.5)], [0.5, 0.125])
    path = save_checkpoint(tmp_path, state, holding(model, optimizer), keep=2)
    go_on(model, optimizer, range(3, 6))
    other, other_optimizer = trained(0)
    other.scale.zero_()  # type: ignore[union-attr, operator]
    assert newest_checkpoint(tmp_path) == (path, state)
    load_weights(path, other)
    load_optimizer(path, holding(other, other_optimizer))
    go_on(other, other_optimizer, range(3, 6))
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_before_the_first_update(tmp_path: Path) -> None:
    path = save(tmp_path, 1, steps=0)
    model, optimizer = trained(0)
    load_optimizer(path, holding(model, optimizer))
    assert not optimizer.state


@pytest.mark.parametrize("cuts", [(), (1,), (7, 8), (5, 10, 15)])
def test_any_cut_into_shards_gives_the_same(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """The tensors of a checkpoint, cut elsewhere and spread over files, are read alike."""
    path = save(tmp_path, 3, steps=3)
    (file,) = path.glob("shard-*")
    tensors = load_file(file)
    file.unlink()
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(len(cuts) + 1)]
    for key, tensor in tensors.items():
        name, _, start = key.rpartition(":")
        ends = [min(cut, len(tensor)) for cut in (0, *cuts, len(tensor))]
        for number, (low, high) in enumerate(itertools.pairwise(ends)):
            if high > low:
                shards[-number][f"{name}:{int(start) + low}"] = tensor[low:high].clone()
    for number, shard in enumerate(shards):
        save_file(shard, path / f"shard-{number:05d}-of-{len(shards):05d}.safetensors")
    model, optimizer = trained(3)
    other, other_optimizer = trained(0)
    load_weights(path, other)
    # A process that holds but elements 3 to 12 of the first matrix.
    first = whole_slices(other)[0]
    part = Slice(first.name, first.numel, 3, 9, first.owner, 3)
    load_optimizer(path, Holding(0, 2, False, [part], other_optimizer, {}))
    assert torch.equal(model[0].weight, other[0].weight)  # type: ignore[index]
    mine = optimizer.state[model[0].weight]["exp_avg"].view(-1)  # type: ignore[index]
    theirs = other_optimizer.state[first.owner]["exp_avg"].view(-1)
    assert torch.equal(mine[3:12], theirs[3:12])
    assert not theirs[:3].any()
    assert not theirs[12:].any()


def test_processes_that_hold_the_same_share_the_writing() -> None:
    part = whole_slices(torch.nn.Linear(3, 5))[0]
    shares = [part.share(rank, 4) for rank in range(4)]
    assert [(s.start, s.length, s.place) for s in shares] == [
        (0, 3, 0), (3, 4, 3), (7, 4, 7), (11, 4, 11)
    ]  # fmt: skip
    joined = torch.cat([s.of(s.owner) for s in shares])
    assert torch.equal(joined, part.of(part.owner))


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match=r"holds no element 16 of 0\.weight"):
        load_weights(path, torch.nn.Sequential(torch.nn.Linear(5, 4)))


def test_keeps_the_newest_and_every_nth(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 10):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000010"]
    for step in (12, 15, 16, 18, 20, 21):
        save(tmp_path, step, keep=2, keep_every=5)
    names = ["step-00000010", "step-00000015", "step-00000020", "step-00000021"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    prune(tmp_path, keep=0, keep_every=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]
    prune(tmp_path, keep=0, keep_every=None)
    assert not tmp_path.exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def restate(path: Path, state: Any) -> None:
    """Write another state, and its hash."""
    write_json(path / "state.json", state)
    manifest = read_json(path / "manifest.json")
    entry = {"bytes": (path / "state.json").stat().st_size}
    manifest["files"]["state.json"] = {**entry, "sha256": sha256_file(path / "state.json")}
    write_json(path / "manifest.json", manifest)


SHARD = "shard-00000-of-00001.safetensors"


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: flip(p / SHARD),
        lambda p: flip(p / "state.json"),
        lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-100]),
        lambda p: (p / SHARD).write_bytes(b""),
        lambda p: (p / SHARD).unlink(),
        lambda p: (p / "manifest.json").unlink(),
        lambda p: (p / "manifest.json").write_text('{"format_version": 2, "fi'),
        lambda p: (p / "manifest.json").write_text('{"format_version": 1, "files": {}}'),
        lambda p: (p / "manifest.json").write_text('{"format_version": 2, "files": {}}'),
        lambda p: (p / "manifest.json").write_text('{"format_version": 2, "files": {"a": 1}}'),
        lambda p: (p / "manifest.json").write_text("5"),
        lambda p: restate(p, {"step": "x", "metrics_bytes": 0, "pending": []}),
        lambda p: restate(p, {"step": 2, "metrics_bytes": 0, "pending": [["x"]]}),
        lambda p: restate(p, [1, 2]),
    ],
)
def test_damaged_ones_are_passed_over(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    first = save(tmp_path, 1)
    second = save(tmp_path, 2)
    damage(second)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, logger="pivots"):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == first
    assert "step-00000002" in caplog.text


def test_half_written_ones_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.tmp").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_a_state_can_be_refused(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    save(tmp_path, 2)
    found = newest_checkpoint(tmp_path, lambda s: "no" if s.metrics_bytes > 15 else None)
    assert found is not None
    assert found[0] == first


def test_nothing_begins_anew_where_no_checkpoint_can_be_used(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    flip(tmp_path / "step-00000001" / SHARD)
    said = r"none that can be used \(step-00000002: no; step-00000001: shard-00000-.* differs from"
    with pytest.raises(InputError, match=said):
        newest_checkpoint(tmp_path, lambda state: "no")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_state_without_recent_losses_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    restate(path, {"step": 2, "metrics_bytes": 20, "pending": []})
    assert newest_checkpoint(tmp_path) == (path, TrainerState(2, 20, []))


def test_a_copy_that_somebody_keeps_is_left_alone(tmp_path: Path) -> None:
    kept = save(tmp_path, 5).rename(tmp_path / "step-00000005-best")
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", kept.name]
    prune(tmp_path, keep=0, keep_every=None)
    assert kept.is_dir()
