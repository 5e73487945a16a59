"""Several processes that share the work in every way: curves, kills, resumes by others, exports.

Two launches of two processes do all of it, since starting one costs more than training: the first
trains with every kind, stops one training by SIGTERM and is itself killed; the second goes on.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mining.common.errors import SettingsError
from mining.common.stage import read_manifest, verify_outputs
from tests.conftest import REPOSITORY
from training import loop
from training.distributed import read_deepspeed, start_accelerator
from training.errors import StoppedError
from training.settings import TrainSettings, WandbSettings
from training.train import run_train

WORKER = """
import gc, json, os, signal, sys
from pathlib import Path
from training import loop
from training.errors import StoppedError
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train

plain = loop.learning_rate
for job in json.loads(sys.argv[1]):
    def rate(settings, step, n_steps):
        if step == job["stop_at"] and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(settings, step, n_steps)

    loop.learning_rate = rate
    values = {**job["settings"], "model": ModelSettings(**job["settings"]["model"])}
    try:
        out, mix = Path(job["out"]), Path(job["mix"])
        run_train(TrainSettings(**values), WandbSettings(mode="disabled"), out, mix, "pivot", 7)
        assert job["stop_at"] is None
    except StoppedError:
        assert job["stop_at"] is not None
    gc.collect()  # the frames of the error hold the folder's lock
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--config_file",
              str(REPOSITORY / "configs/accelerate/one-node.yaml"), "--num_processes", "2",
              "--main_process_port", "0"]  # fmt: skip
DEEPSPEED = {path.stem: str(path) for path in (REPOSITORY / "configs/deepspeed").glob("*.json")}
TOLERANCE = 1e-4
GRACE_SECONDS = 600

Job = dict[str, Any]


def launch(launcher: list[str], folder: Path, jobs: list[Job]) -> subprocess.Popen[bytes]:
    script = folder / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, str(script), json.dumps(jobs)]
    return subprocess.Popen(command, env=environment)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_done(out: Path) -> int:
    """The step of the last whole line of metrics.jsonl."""
    path = out / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return int(json.loads(whole[-1])["step"]) if whole else 0


def kill_at(process: subprocess.Popen[bytes], out: Path, step: int) -> None:
    """SIGKILL for a launcher and its workers once a step of `out` is done."""
    deadline = time.monotonic() + GRACE_SECONDS
    while steps_done(out) < step:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        victim.kill()
    process.wait()


@dataclasses.dataclass
class Results:
    """Folders of what was trained; `one` by a single process in one go."""

    root: Path
    one: Path
    killed_at: int
    logged: str

    def __getitem__(self, name: str) -> Path:
        return self.root / name


@pytest.fixture(scope="module")
def results(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:  # fmt: skip
    pytest.importorskip(
        "deepspeed", reason="needs the extra: pip install 'semantic-pivots[deepspeed]'"
    )
    root = tmp_path_factory.mktemp("distributed")
    common = dataclasses.replace(
        tiny, duration="50steps", log_every=1, checkpoint_every=10, validate_every=20,
        snapshots=(20,), keep_every=20, device="cpu",
    )  # fmt: skip
    split = dataclasses.replace(common, micro_batch_sequences=1)

    def job(name: str, settings: TrainSettings, stop_at: int | None = None, **new: Any) -> Job:
        values = dataclasses.asdict(dataclasses.replace(settings, **new))
        return {"settings": values, "mix": str(mix), "out": str(root / name), "stop_at": stop_at}

    jobs = [
        job("ddp", split, parallel="ddp"),
        job("fsdp", split, parallel="fsdp"),
        job("zero1", split, parallel="zero1", deepspeed=DEEPSPEED["zero1"]),
        job("zero2", split, parallel="zero2", deepspeed=DEEPSPEED["zero2-offload"]),
        job("zero3", common, parallel="zero3"),
        job("zero3-offload", split, parallel="zero3", deepspeed=DEEPSPEED["zero3-offload"]),
        # Stopped here by two processes, in this one by one, then again by two.
        job("chain", split, stop_at=13, parallel="zero2"),
        job("killed", split, parallel="zero1"),
    ]
    killed_at = random.Random(time.time_ns()).randrange(11, 40)
    first = launch(TORCHRUN, root, jobs)
    run_train(common, no_wandb, root / "one", mix, "pivot", 7)
    kill_at(first, root / "killed", killed_at)

    # The newest checkpoint of the chain has a bit flipped in the shard of the second process.
    checkpoints = sorted((root / "chain/checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["step-00000010", "step-00000014"]
    shard = checkpoints[-1] / "shard-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    plain = loop.learning_rate

    def stop_after_27(settings: TrainSettings, step: int, n_steps: int) -> float:
        if step == 27:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(settings, step, n_steps)

    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger("pivots"), logging.getLogger("pivots").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    loop.learning_rate = stop_after_27  # type: ignore[assignment]
    try:
        with pytest.raises(StoppedError, match="after step 28 of 50"):
            run_train(split, no_wandb, root / "chain", mix, "pivot", 7)
    finally:
        loop.learning_rate = plain
        gc.collect()  # the frames of the error hold the folder's lock
        logger.removeHandler(handler)
        logger.setLevel(level)

    jobs = [
        job("killed", split, parallel="zero1"),
        job("chain", split, stop_at=35, parallel="fsdp"),
        job("chain", split, stop_at=41, parallel="zero1"),
        job("chain", split, parallel="zero3"),
        # Done before: both processes notice.
        job("ddp", split, parallel="ddp"),
    ]
    assert launch(ACCELERATE, root, jobs).wait(timeout=GRACE_SECONDS) == 0
    return Results(root, root / "one", killed_at, "\n".join(records))


pytestmark = [pytest.mark.slow, pytest.mark.deepspeed]
TRAINED = ("ddp", "fsdp", "zero1", "zero2", "zero3", "zero3-offload", "chain", "killed")


@pytest.mark.parametrize("name", TRAINED)
def test_the_curve_is_that_of_one_process(results: Results, name: str) -> None:
    """Also of accumulation, of a training that was killed, and of one that changed hands."""
    verify_outputs(results[name])
    why = f"killed at {results.killed_at}"
    assert len(lines(results[name])) == len(lines(results.one)) == 50 + 4 * 2, why
    for mine, theirs in zip(lines(results[name]), lines(results.one), strict=True):
        assert (mine["step"], mine["kind"]) == (theirs["step"], theirs["kind"]), why
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE), why
        if mine["kind"] == "train":
            assert mine["lr"] == theirs["lr"]
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=TOLERANCE), why
    mine, theirs = (read_manifest(path).counts for path in (results[name], results.one))
    assert mine["parameters"] == theirs["parameters"]
    assert mine["tokens"] == theirs["tokens"]


def validation_loss(model: Path, mix: Path) -> float:
    """Mean loss of plain transformers on the English validation tokens, nats a token."""
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = np.fromfile(mix / "validation" / "en.ds", dtype="<u2").astype(np.int64)
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = torch.from_numpy(tokens[start : start + 17])[None]
        with torch.no_grad():
            logits = network(input_ids=window[:, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    return total / (len(tokens) - 1)


@pytest.mark.parametrize("name", TRAINED)
def test_exports_hold_the_whole_weights(results: Results, name: str, mix: Path) -> None:
    records = {(r["step"], r.get("lang")): r["loss"] for r in lines(results[name])}
    for folder, step in (("model", 50), ("snapshots/step-000020", 20)):
        found = validation_loss(results[name] / folder, mix)
        assert found == pytest.approx(records[step, "en"], abs=2e-6)
    mine, theirs = (load_file(p / "model/model.safetensors") for p in (results[name], results.one))
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    assert (results[name] / "model/config.json").read_bytes() == (
        results.one / "model/config.json"
    ).read_bytes()


def test_a_damaged_shard_is_passed_over(results: Results) -> None:
    assert "passes over the checkpoint step-00000014: shard-00001-of-00002" in results.logged
    assert "resumes after step 10 of 50" in results.logged


@pytest.mark.parametrize("name", TRAINED)
def test_checkpoints_that_stay(results: Results, name: str) -> None:
    names = [path.name for path in sorted((results[name] / "checkpoints").iterdir())]
    assert names == ["step-00000020", "step-00000040"]
    assert not any(file.startswith("checkpoints/") for file in read_manifest(results[name]).outputs)


def test_settings_that_contradict_each_other(
    tiny: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zero.json"

    def refused(text: str, parallel: str, match: str) -> None:
        file.write_text(text)
        settings = dataclasses.replace(tiny, parallel=parallel, deepspeed=str(file))
        with pytest.raises(SettingsError, match=match):
            read_deepspeed(settings)

    refused('{"gradient_clipping": 1.0}', "zero2", "sets 'gradient_clipping'; remove it, train.gr")
    refused('{"zero_optimization": {"stage": 1}}', "zero2", "is of stage 1, expected 2")
    nvme = '{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}'
    refused(nvme, "zero3", "offloads to nvme")
    with pytest.raises(SettingsError, match="expected an existing JSON file"):
        read_deepspeed(dataclasses.replace(tiny, parallel="zero1", deepspeed="nowhere.json"))
    with pytest.raises(SettingsError, match=r"deepspeed: found 'a\.json', expected null"):
        dataclasses.replace(tiny, deepspeed="a.json")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match=r"configured for FSDP.*train\.parallel"):
        start_accelerator(tiny, 1)
