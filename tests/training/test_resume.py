"""Stops and kills at any place: the rerun ends with the bytes of a training left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mining.common.errors import InputError, MismatchError, SettingsError
from tests.conftest import REPOSITORY
from tests.training.outputs import contents
from training import checkpoint, loop
from training.errors import StoppedError
from training.settings import TrainSettings, WandbSettings
from training.train import run_train

WORKER = """
import json, sys
from pathlib import Path
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train
values = json.loads(sys.argv[1])
settings = TrainSettings(**{**values, "model": ModelSettings(**values["model"]),
                            "betas": tuple(values["betas"])})
mix, out = Path(sys.argv[2]), Path(sys.argv[3])
run_train(settings, WandbSettings(mode="disabled"), out, mix, "pivot", 7)
"""
DEFAULT_GRACE_SECONDS = 240


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("when", [1, 2, 3])
def test_resumes_to_the_same_bytes(
    when: int, mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    unbroken: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saves = []

    def save_then_die(*args: Any, **kwargs: Any) -> None:
        if len(saves) == when:
            raise Killed
        saves.append(checkpoint.save_checkpoint(*args, **kwargs))

    monkeypatch.setattr(loop, "save_checkpoint", save_then_die)
    # Checkpoints at 10, 20 and 24, lines at multiples of 4: lines and checkpoints do not coincide.
    if when < 3:
        with pytest.raises(Killed):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
        monkeypatch.undo()
    else:
        monkeypatch.undo()
        monkeypatch.setattr("training.model.export_model", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
        monkeypatch.undo()
    assert not (tmp_path / "a" / "manifest.json").exists()
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)


def test_a_kill_between_the_manifest_and_the_pruning(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def killed(*_: Any) -> None:
        raise Killed

    settings = dataclasses.replace(tiny, checkpoint_every=5, keep_every=10)
    with monkeypatch.context() as patch:
        patch.setattr("training.train._prune_finished", killed)
        with pytest.raises(Killed):
            run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7)
    folder = tmp_path / "a/checkpoints"
    names = [f"step-{step:08d}" for step in (10, 20, 24)]
    assert sorted(path.name for path in folder.iterdir()) == names
    # What the finished training kept counts, not what a later start says.
    later = dataclasses.replace(settings, keep_every=None)
    run_train(later, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert sorted(path.name for path in folder.iterdir()) == names[:2]


def test_a_damaged_note_stops_nothing_and_nothing_begins_anew_by_itself(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("training.model.export_model", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    identity, note = (tmp_path / "a/.work" / name for name in ("identity.json", "run.json"))
    good = identity.read_bytes()
    for damaged in (b"[]", b"{}"):
        identity.write_bytes(damaged)
        with pytest.raises(MismatchError, match="holds checkpoints of another training"):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    identity.write_bytes(good)
    note.write_bytes(b"\0" * 100)
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)
    (tmp_path / "a/run.json").write_bytes(b"[]")
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)


def test_sigterm_saves_and_stops(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = loop.learning_rate

    def signal_at_step_5(settings: TrainSettings, step: int, n_steps: int) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(settings, step, n_steps)

    monkeypatch.setattr(loop, "learning_rate", signal_at_step_5)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="after step 6 of 24"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "a/checkpoints/step-00000006/manifest.json").is_file()
    monkeypatch.undo()
    keeping = dataclasses.replace(tiny, keep_every=20)
    run_train(keeping, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)
    # Spikes are measured by the losses before the stop too.
    state = json.loads((tmp_path / "a/checkpoints/step-00000020/state.json").read_text())
    assert len(state["recent"]) == 20


def test_sigterm_during_the_writing_of_a_checkpoint(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = checkpoint.save_file

    def signalled(tensors: Any, path: Path) -> None:
        plain(tensors, path)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", signalled)
        with pytest.raises(StoppedError, match="after step 11 of 24"):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    folder = tmp_path / "a/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000011"]
    for path in folder.iterdir():
        checkpoint.check_checkpoint(path)
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)


def test_a_training_never_begins_anew_by_itself(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its only checkpoint cannot be used: nothing is touched until somebody decides."""

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("training.model.export_model", killed)
        with pytest.raises(Killed):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    metrics = tmp_path / "a/metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text("".join(text.splitlines(keepends=True)[:2]))
    names = sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir())
    with pytest.raises(InputError, match=r"step-00000024: metrics\.jsonl is shorter than it was"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir()) == names
    metrics.write_text(text)
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)


def test_snapshots_are_models_and_the_same_after_a_stop(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = dataclasses.replace(tiny, snapshots=(3, 8, 24), checkpoint_every=8)
    run_train(settings, no_wandb, tmp_path / "whole", mix, "pivot", 7)
    names = [f"snapshots/step-{step:06d}" for step in (3, 8, 24)]
    whole = contents(tmp_path / "whole")
    assert {f"{name}/model.safetensors" for name in names} <= set(whole)
    # Exporting on the way changes nothing of the training.
    assert whole["model/model.safetensors"] == contents(unbroken)["model/model.safetensors"]
    for file in (n for n in whole if n.startswith("model/")):
        assert whole[f"{names[2]}/{file.removeprefix('model/')}"] == whole[file]
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / names[0])
    assert sum(p.numel() for p in net.parameters()) > 0
    assert whole[f"{names[0]}/model.safetensors"] != whole[f"{names[1]}/model.safetensors"]

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    # The hardest place: the snapshot of step 8 is there, its checkpoint is torn.
    torn = tmp_path / "killed/checkpoints/.step-00000008.tmp"
    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run_train(settings, no_wandb, tmp_path / "killed", mix, "pivot", 7)
    monkeypatch.undo()
    assert (tmp_path / "killed" / names[1]).is_dir()
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    run_train(settings, no_wandb, tmp_path / "killed", mix, "pivot", 7)
    assert contents(tmp_path / "killed") == whole
    late = dataclasses.replace(settings, snapshots=(25,))
    with pytest.raises(SettingsError, match="snapshots: found 25, expected at most the 24 steps"):
        run_train(late, no_wandb, tmp_path / "late", mix, "pivot", 7)


def worker(settings: TrainSettings, mix: Path, out: Path) -> list[str]:
    """Command line that trains in a process of its own."""
    values = json.dumps(dataclasses.asdict(settings))
    script = out.parent / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script), values, str(mix), str(out)]


def environment() -> dict[str, str]:
    threads = str(torch.get_num_threads())
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": threads}


def kill_and_rerun(settings: TrainSettings, mix: Path, out: Path, at_step: int) -> None:
    """Train in a process that is killed once a line of at least `at_step` is written; rerun it."""
    metrics = out / "metrics.jsonl"
    with subprocess.Popen(worker(settings, mix, out), env=environment()) as process:
        deadline = time.monotonic() + DEFAULT_GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            text = metrics.read_text() if metrics.is_file() else ""
            whole = text[: text.rfind("\n") + 1].splitlines()
            if whole and json.loads(whole[-1])["step"] >= at_step:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    subprocess.run(worker(settings, mix, out), env=environment(), check=True)


@pytest.mark.parametrize("attempt", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_sigkill_at_a_random_step(
    attempt: int, mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    settings = dataclasses.replace(tiny, duration="300steps", log_every=2, checkpoint_every=25)
    run_train(settings, no_wandb, tmp_path / "whole", mix, "pivot", 7)
    at_step = random.Random(time.time_ns()).randrange(2, 200)
    kill_and_rerun(settings, mix, tmp_path / "killed", at_step)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole"), f"killed at {at_step}"
