"""Several processes that share the work in every way: curves, kills, resumes by others, exports.

Two launches of two processes do all of it, since starting one costs more than training: the first
trains with every kind, stops one training by SIGTERM and is itself killed; the second goes on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mining.common.errors import SettingsError
from mining.common.files import read_json, write_json
from mining.common.lineage import verify_outputs
from mining.common.manifest import read_manifest
from tests.conftest import REPOSITORY
from tests.training.outputs import lines
from training import loop
from training.distributed import ALONE, fsdp_plugin, open_accelerator, read_deepspeed
from training.errors import StoppedError
from training.loss import NextTokenLoss
from training.settings import SourceSettings, TrainSettings, WandbSettings
from training.train import run_train

WORKER = """
import json, os, signal, sys
from pathlib import Path
from tests.training.test_distributed import poison
from training import control, loop
from training.errors import StoppedError
from training.settings import ModelSettings, SourceSettings, TrainSettings, WandbSettings
from training.train import run_train

plain = loop.learning_rate
control.SECONDS_TO_AGREE = 0.0  # steps here take a moment, and one is to be the last
for job in json.loads(sys.argv[1]):
    def rate(settings, step, n_steps):
        if step == job["stop_at"] and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(settings, step, n_steps)

    loop.learning_rate = rate
    # In one process only: all must skip.
    undo = poison(job["poisoned"] if os.environ["RANK"] == "1" else [])
    values = {**job["settings"], "model": ModelSettings(**job["settings"]["model"])}
    values["sources"] = tuple(SourceSettings(**source) for source in values["sources"])
    try:
        out, mix = Path(job["out"]), Path(job["mix"])
        run_train(TrainSettings(**values), WandbSettings(mode="disabled"), out, mix, "pivot", 7)
        assert job["stop_at"] is None
    except StoppedError:
        assert job["stop_at"] is not None
    undo()
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--config_file",
              str(REPOSITORY / "configs/accelerate/one-node.yaml"), "--num_processes", "2",
              "--main_process_port", "0"]  # fmt: skip
DEEPSPEED = {path.stem: str(path) for path in (REPOSITORY / "configs/deepspeed").glob("*.json")}
TOLERANCE = 1e-4
GRACE_SECONDS = 600

# Steps with an infinite loss: in each part of the training that all kinds of sharing take turns in.
POISONED = (3, 7, 12, 20)

Job = dict[str, Any]


def poison(steps: Sequence[int]) -> Callable[[], None]:
    """Make the training loss of these steps (the first is 0) infinite; returns what undoes it."""
    rate, forward = loop.learning_rate, NextTokenLoss.forward
    at: list[int] = []

    def noting_rate(settings: TrainSettings, step: int, n_steps: int) -> float:
        at[:] = [step]
        return rate(settings, step, n_steps)

    def poisoned(self: Any, tokens: torch.Tensor, groups: torch.Tensor | None = None) -> Any:
        found: Any = forward(self, tokens, groups)
        if not torch.is_grad_enabled() or not at or at[0] not in steps:
            return found
        return found * math.inf if groups is None else (found[0] * math.inf, found[1])

    def undo() -> None:
        loop.learning_rate = rate  # type: ignore[assignment]
        NextTokenLoss.forward = forward  # type: ignore[method-assign]

    loop.learning_rate = noting_rate  # type: ignore[assignment]
    NextTokenLoss.forward = poisoned  # type: ignore[method-assign]
    return undo


def launch(launcher: list[str], folder: Path, jobs: list[Job]) -> subprocess.Popen[bytes]:
    script = folder / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, str(script), json.dumps(jobs)]
    return subprocess.Popen(command, env=environment)


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


def write_sources(mix: Path, root: Path) -> tuple[Path, tuple[SourceSettings, ...]]:
    """The test mix with its documents' languages, and two further sources of other weights."""
    folder = root / "sources-mix"
    shutil.copytree(mix, folder)
    tokens = np.fromfile(folder / "pivot/tokens.ds", dtype="<u2").reshape(-1, 16)
    langs = np.where(tokens[:, 0] < 30, "en", "fr")
    pq.write_table(pa.table({"lang": langs}), folder / "pivot/documents.parquet")
    more = np.random.default_rng(1).integers(2, 60, 3000).astype("<u2")
    more[::20] = 0
    (root / "raw").mkdir()
    for name, part in (("a.npy", more[:1000]), ("b.npy", more[1000:2000]), ("c.npy", more[2000:])):
        part.tofile(root / (name if name == "c.npy" else f"raw/{name}"))
    return folder, (
        SourceSettings(str(root / "raw"), 1.0, "uint16"),
        SourceSettings(str(root / "c.npy"), 0.5),
    )


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
        folder, poisoned = (sources_mix, POISONED) if settings.sources else (mix, ())
        return {"settings": values, "mix": str(folder), "out": str(root / name),
                "stop_at": stop_at, "poisoned": poisoned}  # fmt: skip

    def sharded(name: str) -> str:
        """One of the configs where no parameter is so small that each process keeps all of it."""
        value = read_json(Path(DEEPSPEED[name]))
        value["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        write_json(root / f"{name}.json", value)
        return str(root / f"{name}.json")

    sources_mix, sources = write_sources(mix, root)
    # A checkpoint after step 4 stands between a skipped step and its line.
    mixed = dataclasses.replace(
        common, duration="24steps", log_every=3, checkpoint_every=4, snapshots=(), keep_every=None,
        document_borders="masked", sources=sources, arm_weight=2.0, on_nonfinite="skip",
        micro_batch_sequences=1, validate_every=12,
    )  # fmt: skip

    bf16 = {"precision": "bf16", "snapshots": (), "keep_every": None, "duration": "30steps"}
    jobs = [
        job("ddp", split, parallel="ddp"),
        job("fsdp", split, parallel="fsdp"),
        job("zero1", split, parallel="zero1", deepspeed=DEEPSPEED["zero1"]),
        job("zero2", split, parallel="zero2", deepspeed=DEEPSPEED["zero2-offload"]),
        job("zero3", common, parallel="zero3"),
        job("zero3-offload", split, parallel="zero3", deepspeed=sharded("zero3-offload")),
        # Stopped here by two processes, in this one by one, then again by two.
        job("chain", split, stop_at=13, parallel="zero2"),
        job("mixed", mixed, stop_at=4, parallel="ddp"),
        job("bf16", split, parallel="fsdp", **bf16),
        job("killed", split, parallel="zero1"),
    ]
    killed_at = random.Random(time.time_ns()).randrange(11, 40)
    first = launch(TORCHRUN, root, jobs)
    run_train(common, no_wandb, root / "one", mix, "pivot", 7)
    run_train(dataclasses.replace(common, **bf16), no_wandb, root / "bf16-one", mix, "pivot", 7)
    undo = poison(POISONED)
    whole = dataclasses.replace(mixed, micro_batch_sequences=None)
    run_train(whole, no_wandb, root / "mixed-one", sources_mix, "pivot", 7)
    undo()
    kill_at(first, root / "killed", killed_at)

    # The newest checkpoint of the chain has a bit flipped in the shard of the second process.
    checkpoints = sorted((root / "chain/checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["step-00000010", "step-00000014"]
    shard = checkpoints[-1] / "shard-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    # Of the mixed one only the checkpoint between a skipped step and its line is left.
    newest = root / "mixed/checkpoints/step-00000005"
    shutil.rmtree(newest)
    assert [p.name for p in newest.parent.iterdir()] == ["step-00000004"]
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
        logger.removeHandler(handler)
        logger.setLevel(level)

    jobs = [
        job("killed", split, parallel="zero1"),
        job("chain", split, stop_at=35, parallel="fsdp"),
        job("chain", split, stop_at=41, parallel="zero1"),
        job("chain", split, parallel="zero3"),
        job("mixed", mixed, stop_at=9, parallel="zero2"),
        job("mixed", mixed, stop_at=14, parallel="fsdp"),
        job("mixed", mixed, parallel="zero3", deepspeed=sharded("zero3")),
        # Done before: both processes notice.
        job("ddp", split, parallel="ddp"),
    ]
    if shutil.which("g++") is not None:
        options = {"compile": True, "activation_checkpointing": True, "duration": "10steps"}
        short = {"keep_every": None, "snapshots": (), "schedule_steps": 50}
        jobs.append(job("compiled", split, parallel="fsdp", **options, **short))
    assert launch(ACCELERATE, root, jobs).wait(timeout=GRACE_SECONDS) == 0
    return Results(root, root / "one", killed_at, "\n".join(records))


pytestmark = [pytest.mark.slow, pytest.mark.deepspeed]
TRAINED = ("ddp", "fsdp", "zero1", "zero2", "zero3", "zero3-offload", "chain", "killed")


@pytest.mark.parametrize("name", TRAINED)
def test_the_curve_is_that_of_one_process(results: Results, name: str) -> None:
    """Also of accumulation, of a training that was killed, and of one that changed hands."""
    verify_outputs(results[name])
    why = f"killed at {results.killed_at}"
    assert len(lines(results[name])) == len(lines(results.one)) == 50 + 4 * 3, why
    for mine, theirs in zip(lines(results[name]), lines(results.one), strict=True):
        assert (mine["step"], mine["kind"]) == (theirs["step"], theirs["kind"]), why
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE), why
        if mine["kind"] == "train":
            assert mine["lr"] == theirs["lr"]
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], abs=TOLERANCE), why
    mine, theirs = (read_manifest(path).counts for path in (results[name], results.one))
    assert mine["parameters"] == theirs["parameters"]
    assert mine["tokens"] == theirs["tokens"]


def test_weights_that_are_bf16_in_their_shards_learn_the_same(results: Results) -> None:
    """What is left of a difference is bf16's own rounding, of 8 bits."""
    mine, theirs = lines(results["bf16"]), lines(results["bf16-one"])
    assert len(mine) == len(theirs) == 30 + 3 * 3
    for left, right in zip(mine, theirs, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=2**-8)
    assert mine[-1]["loss"] < 0.9 * mine[0]["loss"]
    policy = fsdp_plugin("bf16").mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert fsdp_plugin("float32").mixed_precision_policy is None


def test_compiled_and_recomputed_blocks_in_shards_give_the_curve(results: Results) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on CPU needs a C++ compiler: install g++")
    curves = [
        [record["loss"] for record in lines(path) if record["kind"] == "train"][:10]
        for path in (results["compiled"], results.one)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=TOLERANCE)


def test_sources_borders_and_skipped_steps_are_those_of_one_process(results: Results) -> None:
    """Also across resumes by other kinds, of which one lies between a skipped step and its line."""
    verify_outputs(results["mixed"])
    mine, theirs = lines(results["mixed"]), lines(results["mixed-one"])
    skipped = [record["step"] for record in theirs if record.get("skipped") == 1]
    assert skipped == [6, 9, 15, 21]
    assert len(mine) == len(theirs) == 8 + 3 * 3
    for left, right in zip(mine, theirs, strict=True):
        assert left == {key: pytest.approx(value, abs=TOLERANCE) for key, value in right.items()}
    names = set().union(*(record.get("loss_by", {}) for record in theirs))
    assert names == {"en", "fr", "1-raw", "2-c"}
    for step in POISONED:
        files = [
            results[name] / f"nonfinite/step-{step + 1:06d}.json" for name in ("mixed", "mixed-one")
        ]
        sequences = [json.loads(file.read_text())["sequences"] for file in files]
        assert sequences[0] == sequences[1]
    weights = [
        load_file(results[name] / "model/model.safetensors") for name in ("mixed", "mixed-one")
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-3)


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
    norm = '{"zero_optimization": {"compute_grad_norm": false}}'
    refused(norm, "zero1", "sets 'compute_grad_norm' to false; remove it")
    nvme = '{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}'
    refused(nvme, "zero3", "offloads to nvme")
    with pytest.raises(SettingsError, match="expected an existing JSON file"):
        read_deepspeed(dataclasses.replace(tiny, parallel="zero1", deepspeed="nowhere.json"))
    with pytest.raises(SettingsError, match=r"deepspeed: found 'a\.json', expected null"):
        dataclasses.replace(tiny, deepspeed="a.json")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with (
        pytest.raises(SettingsError, match=r"configured for FSDP.*train\.parallel"),
        open_accelerator(tiny),
    ):
        pass


def test_one_process_that_offloads_leaves_no_trace_for_the_next_training(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    pytest.importorskip(
        "deepspeed", reason="needs the extra: pip install 'semantic-pivots[deepspeed]'"
    )
    plain = dataclasses.replace(tiny, duration="3steps", log_every=1, device="cpu")
    offload = {"parallel": "zero2", "deepspeed": DEEPSPEED["zero2-offload"]}
    for name, settings in (
        ("a", dataclasses.replace(plain, **offload)), ("b", plain),
        ("c", dataclasses.replace(plain, **offload)),
    ):  # fmt: skip
        run_train(settings, no_wandb, tmp_path / name, mix, "pivot", 7)
        assert not set(ALONE) & set(os.environ)
    for left, right, again in zip(*(lines(tmp_path / name) for name in "abc"), strict=True):
        assert left["loss"] == again["loss"] == pytest.approx(right["loss"], abs=TOLERANCE)
