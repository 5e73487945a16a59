"""The trial batch, losses that are not finite, spikes, and a process that hangs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator

from mining.common.errors import SettingsError
from mining.common.lineage import verify_outputs
from tests.conftest import REPOSITORY
from tests.training.test_resume import WORKER
from training import loop
from training.control import SharedStop
from training.errors import DivergedError
from training.guards import SPIKE_FIRST, STUCK_EXIT_CODE, SpikeWatch, Watchdog, dry_run
from training.loss import NextTokenLoss
from training.model import from_config, model_config
from training.parallel import prepare
from training.settings import TrainSettings, WandbSettings
from training.train import run_train


def records(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of these steps (the first is 1) infinite; one forward pass a step."""
    plain, calls = NextTokenLoss.forward, []

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls.append(tokens)
        step = len(calls) - 1  # the first is the trial batch
        bad = torch.is_grad_enabled() and step in steps
        return plain(self, tokens) * (float("inf") if bad else 1.0)

    monkeypatch.setattr(NextTokenLoss, "forward", forward)


def test_the_trial_batch_changes_nothing_and_names_the_setting(
    tiny: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    settings = tiny
    model = from_config(model_config(settings.model, 60, 0))
    before = [p.clone() for p in model.parameters()]
    random = torch.random.get_rng_state()
    plain, seen = NextTokenLoss.forward, []

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        seen.append(torch.rand(1))
        if tokens.shape[0] == 3:
            raise torch.OutOfMemoryError("no room for 3 GiB\nmore lines")
        if tokens.shape[0] == 4:
            torch.empty(1 << 50)  # a pebibyte
        if tokens.shape[0] == 5:
            raise RuntimeError("something else")
        return plain(self, tokens)

    monkeypatch.setattr(NextTokenLoss, "forward", forward)
    parallel = prepare(Accelerator(cpu=True), NextTokenLoss(model, "float32"), settings)
    tokens = torch.ones(5, 5, dtype=torch.long)
    dry_run(parallel, tokens[:2])
    assert len(seen) == 1
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
    assert not parallel.optimizer.state
    assert torch.equal(torch.random.get_rng_state(), random)
    with pytest.raises(
        SettingsError, match=r"3 sequences of 4 tokens .*no room for 3 GiB\); lower"
    ):
        dry_run(parallel, tokens[:3])
    with pytest.raises(SettingsError, match="4 sequences"):
        dry_run(parallel, tokens[:4])
    with pytest.raises(RuntimeError, match="something else"):
        dry_run(parallel, tokens)


def test_a_memory_error_comes_before_the_first_step(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(NextTokenLoss, "forward", forward)
    with pytest.raises(SettingsError, match="micro_batch_sequences: 4 sequences of 16 tokens"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert records(tmp_path / "a") == []


def test_a_memory_error_at_a_step_is_told_too(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The optimizer has its state from the first step on, which no trial batch sees."""

    def step(self: Any, closure: Any = None) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(SettingsError, match="micro_batch_sequences: 4 sequences of 16 tokens"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)


def test_bad_steps_are_skipped_counted_and_saved(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = dataclasses.replace(tiny, on_nonfinite="skip", duration="12steps")
    poison(monkeypatch, {2, 9, 10, 11, 12})
    with caplog.at_level(logging.WARNING, logger="pivots"):
        run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7)
    verify_outputs(tmp_path / "a")
    assert "skipped step 2: loss inf" in caplog.text
    lines = [r for r in records(tmp_path / "a") if r["kind"] != "validation"]
    assert [(r["kind"], r["step"], r.get("skipped", 0)) for r in lines] == [
        ("train", 4, 1), ("train", 8, 0), ("skipped", 12, 4),
    ]  # fmt: skip
    names = [f"step-{step:06d}.json" for step in (2, 9, 10, 11, 12)]
    assert sorted(p.name for p in (tmp_path / "a/nonfinite").iterdir()) == names
    saved = json.loads((tmp_path / "a/nonfinite" / names[0]).read_text())
    order = loop.DataOrder(7, 149, 4)
    assert [s["sequence"] for s in saved["sequences"]] == order.ids(1).tolist()
    assert saved["loss"] == "inf"
    # The weights are those of the last good step: validation after 8 and after 12 would agree.
    monkeypatch.undo()
    short = dataclasses.replace(settings, duration="8steps", schedule_steps=12)
    poison(monkeypatch, {2})
    run_train(short, no_wandb, tmp_path / "b", mix, "pivot", 7)
    losses = [
        [r["loss"] for r in records(tmp_path / folder) if r["kind"] == "validation"][-2:]
        for folder in "ab"
    ]
    assert losses[0] == losses[1]


def test_skipping_ends_where_nothing_is_left(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = dataclasses.replace(tiny, on_nonfinite="skip", validate_every=None)
    poison(monkeypatch, set(range(3, 30)))
    with pytest.raises(DivergedError, match="step 12: the last 10 steps"):
        run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7)


def test_a_skip_does_not_depend_on_a_stop(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A checkpoint between a skipped step and its line."""
    settings = dataclasses.replace(
        tiny, on_nonfinite="skip", duration="8steps", checkpoint_every=6, validate_every=None
    )
    poison(monkeypatch, {5})
    run_train(settings, no_wandb, tmp_path / "whole", mix, "pivot", 7)
    monkeypatch.undo()
    poison(monkeypatch, {5})
    plain = loop.save_checkpoint

    class KilledError(BaseException):
        pass

    def save_then_die(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        raise KilledError

    monkeypatch.setattr(loop, "save_checkpoint", save_then_die)
    with pytest.raises(KilledError):
        run_train(settings, no_wandb, tmp_path / "cut", mix, "pivot", 7)
    monkeypatch.undo()
    run_train(settings, no_wandb, tmp_path / "cut", mix, "pivot", 7)
    for name in ("metrics.jsonl", "model/model.safetensors", "nonfinite/step-000005.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_spikes() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (3.0 + 0.05 * torch.randn(200, generator=generator)).tolist()
    rows = [(loss, 1.0) for loss in losses]
    assert SpikeWatch().see(0, rows) == []
    rows[150] = (3.9, 1.0)
    rows[10] = (9.0, 1.0)  # too early to tell
    rows[40] = ()  # type: ignore[call-overload]
    watch = SpikeWatch()
    found = watch.see(0, rows[:60]) + watch.see(60, rows[60:])
    assert [(step, loss) for step, loss, _ in found] == [(151, 3.9)]
    assert found[0][2] == pytest.approx(3.0, abs=0.05)
    # One that goes on after a stop notices it as well; one that begins there would not.
    first, second = SpikeWatch(), SpikeWatch()
    first.see(0, rows[:140])
    assert SpikeWatch(first.recent()).see(140, rows[140:]) == found
    assert second.see(140, rows[140:]) == []
    falling = [(10.0 - 0.01 * i, 1.0) for i in range(300)]
    assert SpikeWatch().see(0, falling) == []
    assert SPIKE_FIRST < 60


def test_a_stuck_process_says_where_and_ends() -> None:
    code = """
import logging, time
logging.basicConfig()
from training.guards import watchdog
with watchdog("train pivot/0", 0.4) as dog:
    for step in range(3):
        time.sleep(0.2)
        dog.beat(f"step {step + 1}")
    def hangs():
        time.sleep(60)
    hangs()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50,
        cwd=REPOSITORY, env=os.environ | {"RANK": "1", "WORLD_SIZE": "4"},
    )  # fmt: skip
    assert done.returncode == STUCK_EXIT_CODE
    assert "process 1 of 4 has done nothing" in done.stderr
    assert "since step 3" in done.stderr
    assert "in hangs" in done.stderr


def test_processes_that_do_not_find_each_other_are_noticed(
    mix: Path, tiny: TrainSettings, tmp_path: Path
) -> None:
    """The second of two processes never starts: the first one says so instead of waiting on."""
    settings = dataclasses.asdict(dataclasses.replace(tiny, stuck_after_seconds=2, device="cpu"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(settings), str(mix), str(tmp_path / "a")],
        capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY,
        env=os.environ | places | {"MASTER_PORT": str(port)},
    )  # fmt: skip
    assert done.returncode == STUCK_EXIT_CODE, done.stderr[-2000:]
    assert "train pivot/7: process 0 of 2 has done nothing" in done.stderr
    assert "since the start" in done.stderr


def test_processes_ask_each_other_about_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        """Another process that is like this one."""

        num_processes, device, asked = 2, torch.device("cpu"), 0

        def reduce(self, said: torch.Tensor, kind: str) -> torch.Tensor:
            self.asked += 1
            return 2 * said

    now = [0.0]
    monkeypatch.setattr("training.control.time.monotonic", lambda: now[0])
    two, event = Two(), threading.Event()
    stop = SharedStop(two, event, 100)
    for step in range(101, 141):
        now[0] += 0.1
        assert not stop.after(step)
    assert two.asked == 1 + 3  # after the first step, and then each tenth
    event.set()
    answers = []
    for step in range(141, 152):
        now[0] += 0.1
        answers.append(stop.after(step))
        if answers[-1]:
            break
    assert answers == [False] * (len(answers) - 1) + [True]
    assert len(answers) <= 10
    slow = SharedStop(two, threading.Event(), 0)
    for step in range(1, 4):
        now[0] += 30.0
        slow.after(step)
    assert two.asked == 1 + 3 + 1 + 3


def test_every_part_of_the_start_is_noticed(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    heard: list[str] = []
    monkeypatch.setattr(Watchdog, "beat", lambda self, what: heard.append(what))

    class Score:
        files: ClassVar[dict[str, Path]] = {}

        def __call__(self, net: Any, tokenizer: Any) -> dict[str, float]:
            return {"score": 0.0}

    settings = dataclasses.replace(tiny, duration="1step", score_every=1, snapshots=(1,))
    run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7, Score())
    parts = [what for what in heard if "window" not in what]
    assert parts == [
        "the start of the processes", "the first words between the processes",
        "the making of the model", "the search for a checkpoint", "the sharing of the model",
        "the trial batch", "the validation after step 0", "the score after step 0", "step 1",
        "the validation after step 1", "the score after step 1", "the snapshot of step 1",
        "the checkpoint of step 1",
    ]  # fmt: skip
