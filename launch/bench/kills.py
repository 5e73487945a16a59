"""Kills a training at random steps, again and again, and compares it with one that was left alone.

    python -m launch.bench.kills                                    # one process: the same bytes
    python -m launch.bench.kills --parallel zero2 --processes 2     # within a tolerance

The generated world's mix is trained on once in one go, then once with SIGKILL and once with SIGTERM
at `--kills` random steps each, every time started again by the same command, which is the user's:
`pivots train`, under torchrun where there are several processes. The last line, in JSON, has the
largest difference of a loss and of a weight. One process must give the same bytes.

With --parallel any, each start draws its way of sharing and 1 or 2 processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from launch.config import parse_config
from launch.pipeline import Plan

CONFIG = "configs/smoke/quickstart.yaml"
KINDS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
STAGES_BEFORE = ("world", "tokenizer", "tokenize", "count", "pivots", "score", "mix")
TOLERANCE = 1e-4  # nats a token, of every line; weights are rounded at other places as well


def settings(root: Path, name: str, steps: int) -> list[str]:
    """Command-line settings of the training `name`."""
    return [
        "--config", CONFIG, "--out", str(root / name), "--inputs.mix", str(root / "base" / "mix"),
        "--only", '["pivot"]', "--wandb.mode", "disabled", "--train.duration", f"{steps}steps",
        "--train.log_every", "1", "--train.checkpoint_every", "10", "--train.device", "cpu",
    ]  # fmt: skip


def start(options: list[str], parallel: str, processes: int) -> subprocess.Popen[bytes]:
    """`pivots train` in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "launch.cli", "train"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.Popen(
        [*command, *options, "--train.parallel", parallel],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def last_step(metrics: Path) -> int:
    """The step of the last whole line."""
    text = metrics.read_text() if metrics.is_file() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return int(json.loads(whole[-1])["step"]) if whole else 0


def stop_at(process: subprocess.Popen[bytes], metrics: Path, step: int, number: int) -> int | None:
    """Send a signal once the step is done; the step then, or None where it ended before."""
    while last_step(metrics) < step:
        if process.poll() is not None:
            return None
        time.sleep(0.002)
    at = last_step(metrics)
    victims = [process.pid]
    if number == signal.SIGKILL:
        # torchrun would go on to live without its workers, and they without it.
        victims += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    for pid in victims:
        # A worker may have ended by itself meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return at if process.wait() else None


def folder(root: Path, name: str) -> Path:
    """Where the training `name` writes."""
    return root / name / "train" / "pivot" / "0"


def differences(mine: Path, theirs: Path) -> dict[str, Any]:
    """How far two finished trainings are apart."""
    pairs = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (mine, theirs)
    ]
    losses = [abs(a["loss"] - b["loss"]) for a, b in zip(*pairs, strict=True)]
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (mine, theirs))
    files = ("metrics.jsonl", "model/model.safetensors")
    return {
        "loss_difference": max(losses),
        "weight_difference": max(float((weights[k] - others[k]).abs().max()) for k in others),
        "same_bytes": all((mine / f).read_bytes() == (theirs / f).read_bytes() for f in files),
    }


def main() -> int:
    """Train, kill, compare; returns 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each signal")
    parser.add_argument("--steps", type=int, default=120, help="of the training")
    parser.add_argument("--parallel", choices=(*KINDS, "any"), default="ddp")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, help="of the steps; default: another one each time")
    arguments = parser.parse_args()
    steps, kind, processes = arguments.steps, arguments.parallel, arguments.processes
    draw = random.Random(arguments.seed)  # nosec B311 # moments of kills

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        plan = Plan(parse_config(["--config", CONFIG, "--out", str(root / "base")], "run"))
        for job in plan.jobs():
            if job.stage in STAGES_BEFORE:
                job.run()
        unbroken = start(settings(root, "unbroken", steps), "ddp", 1)
        assert unbroken.wait() == 0
        result: dict[str, Any] = {}
        for number in (signal.SIGKILL, signal.SIGTERM):
            out, options = folder(root, number.name), settings(root, number.name, steps)
            killed = []
            # Not the last steps: the training would be done before the signal is there.
            for step in sorted(draw.sample(range(1, steps - 10), arguments.kills)):
                any_kind = kind == "any"
                n = draw.choice((1, 2)) if any_kind else processes
                process = start(options, draw.choice(KINDS) if any_kind else kind, n)
                killed.append(stop_at(process, out / "metrics.jsonl", step, number))
                print(f"{number.name} after step {killed[-1]}", flush=True)
            last = start(options, "ddp" if kind == "any" else kind, processes)
            assert last.wait() == 0
            result[number.name] = {
                "kills": sum(step is not None for step in killed),
                **differences(out, folder(root, "unbroken")),
            }
    exact = processes == 1 and kind != "any"
    met = all(
        each["kills"] == arguments.kills
        and (each["same_bytes"] if exact else each["loss_difference"] <= TOLERANCE)
        for each in result.values()
    )
    counts = [1, 2] if kind == "any" else processes
    line = {"name": "kills", "parallel": kind, "processes": counts, "steps": steps,
            "loss_tolerance": 0.0 if exact else TOLERANCE}  # fmt: skip
    print(json.dumps({**line, **result, "met": met}))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
