from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from training.checkpoint import (
    TrainerState,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    go_on(model, optimizer, range(steps))
    return model, optimizer


def go_on(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    state = TrainerState(3, 17, [(0.25, 1.5)])
    path = save_checkpoint(tmp_path, state, model, optimizer, keep=2)
    go_on(model, optimizer, range(3, 6))
    other, other_optimizer = trained(0)
    assert newest_checkpoint(tmp_path) == (path, state)
    load_checkpoint(path, other, other_optimizer)
    go_on(other, other_optimizer, range(3, 6))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_keeps_the_newest(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, TrainerState(step, 0, []), model, optimizer, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: flip(p / "model.safetensors"),
        lambda p: flip(p / "optimizer.safetensors"),
        lambda p: flip(p / "state.json"),
        lambda p: (p / "model.safetensors").write_bytes(b""),
        lambda p: (p / "optimizer.safetensors").unlink(),
        lambda p: (p / "manifest.json").unlink(),
        lambda p: (p / "manifest.json").write_text('{"format_version": 1, "fi'),
    ],
)
def test_damaged_ones_are_passed_over(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained(1)
    first = save_checkpoint(tmp_path, TrainerState(1, 0, []), model, optimizer, keep=3)
    second = save_checkpoint(tmp_path, TrainerState(2, 0, []), model, optimizer, keep=3)
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
    model, optimizer = trained(1)
    first = save_checkpoint(tmp_path, TrainerState(1, 5, []), model, optimizer, keep=3)
    save_checkpoint(tmp_path, TrainerState(2, 50, []), model, optimizer, keep=3)
    found = newest_checkpoint(tmp_path, lambda s: "no" if s.metrics_bytes > 9 else None)
    assert found is not None
    assert found[0] == first
