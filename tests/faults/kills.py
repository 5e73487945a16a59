"""Kills a stage at random moments, lets the same command finish it, and compares the bytes.

    python -m tests.faults.kills --kills 20                           # every stage, local processes
    python -m tests.faults.kills --kills 20 --stage count --engine spark
    python -m tests.faults.kills --kills 20 --signal SIGTERM
    python -m tests.faults.kills --kills 20 --stage count --victim worker

A trial is a fresh folder whose run is killed once, twice or three times, each time at a moment
drawn evenly from the stage's own duration, and then left alone. With --victim worker one of the
engine's own processes is killed instead, and the run must come through by itself. One JSON line a
stage:

    kills                    signals that found the run at work
    same_bytes               trials whose output is that of the unbroken run, byte for byte
    stage_seconds            the unbroken run, from the moment it took its folder
    recovery_seconds         the same of the runs that finished a killed one: median and largest
    redone                   work done twice, as a share of the stage: (all seconds at work in a
                             trial - stage_seconds) / stage_seconds, median and largest

Then the same as a table in Markdown; the last line sums up. Status 1 where any byte differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.harness import (
    CHAIN,
    CONFIG,
    DIVIDED,
    ENGINES,
    IN_PROCESSES,
    Chain,
    is_done,
    seconds_at_work,
    send,
    wait_until_at_work,
)

MISSES = 20  # signals in a row that come too late, until a stage counts as too short to be killed


@dataclass
class Trials:
    """What the trials of one stage came to."""

    stage_seconds: float
    kills: int = 0
    misses: int = 0
    trials: int = 0
    same: int = 0
    recovery: list[float] = field(default_factory=list)
    redone: list[float] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """The figures, for one JSON line."""
        return {
            "kills": self.kills,
            "trials": self.trials,
            "same_bytes": self.same,
            "stage_seconds": round(self.stage_seconds, 3),
            "recovery_seconds": _median_and_largest(self.recovery),
            "redone": _median_and_largest(self.redone),
            "different": self.different,
        }


def markdown(setting: str, found: dict[str, Trials]) -> str:
    """The table for docs/RELIABILITY.md; `setting` says what was killed and how."""
    rows = [
        f"| {setting} | kills | trials of the same bytes | unbroken, s "
        "| recovery, s: median (most) | redone: median (most) |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for stage, trials in found.items():
        recovery, redone = (_median_and_largest(v) for v in (trials.recovery, trials.redone))
        rows.append(
            f"| {stage} | {trials.kills} | {trials.same} of {trials.trials} "
            f"| {trials.stage_seconds:.1f} "
            f"| {'{:.1f} ({:.1f})'.format(*recovery) if recovery else '-'} "
            f"| {'{:.0%} ({:.0%})'.format(*redone) if redone else '-'} |"
        )
    return "\n".join(rows)


def _median_and_largest(values: list[float]) -> list[float]:
    return [round(statistics.median(values), 3), round(max(values), 3)] if values else []


def _unbroken(chain: Chain, stage: str, engine: str) -> Trials:
    """No trial yet; the time of the stage alone, as the trials run it."""
    whole = chain.root / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    chain.start(stage, whole, engine).finish()
    found = Trials(seconds_at_work(whole / chain.part(stage)))
    found.different += chain.differences(stage, whole)
    return found


def kill_runs(
    chain: Chain, stage: str, engine: str, number: signal.Signals, kills: int, draw: random.Random
) -> Trials:
    """Trials of one stage until `kills` signals have found it at work."""
    found = _unbroken(chain, stage, engine)
    while found.kills < kills and found.misses < MISSES:
        out = chain.root / "killed"
        shutil.rmtree(out, ignore_errors=True)
        folder, at_work, hits = out / chain.part(stage), 0.0, 0
        wanted = min(draw.choice((1, 1, 2, 3)), kills - found.kills)
        while hits < wanted and not is_done(folder):
            started = chain.start(stage, out, engine)
            if not wait_until_at_work(started, folder):
                break
            begun = time.monotonic()
            hits += send(started, number, draw.random() * found.stage_seconds)
            at_work += time.monotonic() - begun
        if not hits:
            found.misses += 1
            continue
        found.kills, found.misses = found.kills + hits, 0
        broken = not is_done(folder)
        # Also where the manifest is there: what a kill left beside it goes with the next run.
        chain.start(stage, out, engine).finish()
        if broken:
            found.recovery.append(seconds_at_work(folder))
            total = at_work + seconds_at_work(folder)
            found.redone.append((total - found.stage_seconds) / found.stage_seconds)
        _judge(chain, stage, out, found)
    return found


def kill_workers(chain: Chain, stage: str, engine: str, kills: int, draw: random.Random) -> Trials:
    """Trials of one stage in each of which one of the engine's processes is killed."""
    found = _unbroken(chain, stage, engine)
    while found.kills < kills and found.misses < MISSES:
        out = chain.root / "killed"
        shutil.rmtree(out, ignore_errors=True)
        started = chain.start(stage, out, engine)
        folder = out / chain.part(stage)
        hit = False
        if wait_until_at_work(started, folder):
            time.sleep(draw.random() * found.stage_seconds * 0.5)
            while started.process.poll() is None and not hit:
                if workers := started.workers():
                    try:
                        draw.choice(workers).kill()
                        hit = True
                    except psutil.NoSuchProcess:
                        pass
                time.sleep(0.005)
        started.finish()
        found.kills, found.misses = found.kills + hit, 0 if hit else found.misses + 1
        if hit:
            found.recovery.append(seconds_at_work(folder))
        _judge(chain, stage, out, found)
    return found


def _judge(chain: Chain, stage: str, out: Path, found: Trials) -> None:
    differences = chain.differences(stage, out)
    found.trials += 1
    found.same += not differences
    found.different += differences


def main() -> int:
    """Kill, let finish, compare; returns 1 where any byte differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=3, help="of each stage")
    parser.add_argument("--stage", action="append", choices=CHAIN, help="default: all")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="local")
    parser.add_argument("--signal", choices=("SIGKILL", "SIGTERM"), default="SIGKILL")
    parser.add_argument("--victim", choices=("run", "worker"), default="run")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seed", type=int, help="of the moments; default: another each time")
    parser.add_argument("--root", type=Path, help="where the unbroken run is, or will be, kept")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    known = CHAIN if arguments.engine == "local" else DIVIDED
    if arguments.victim == "worker":
        if arguments.engine not in IN_PROCESSES:
            parser.error(f"--victim worker: only with --engine {' or '.join(IN_PROCESSES)}")
        known = IN_PROCESSES[arguments.engine]
    stages = arguments.stage or known
    if other := sorted(set(stages) - set(known)):
        parser.error(f"--stage {other[0]}: has nothing to kill there, only {', '.join(known)} have")
    setting = {
        "engine": arguments.engine, "signal": arguments.signal, "victim": arguments.victim,
        "seed": seed,
    }  # fmt: skip
    met, kills = True, 0
    table: dict[str, Trials] = {}
    with tempfile.TemporaryDirectory() as temporary:
        chain = Chain(arguments.root or Path(temporary), arguments.config)
        chain.root.mkdir(parents=True, exist_ok=True)
        chain.prepare()
        for stage in stages:
            # A stage's moments do not hang on which other stages are asked for.
            draw = random.Random(f"{seed}/{stage}")
            if arguments.victim == "worker":
                found = kill_workers(chain, stage, arguments.engine, arguments.kills, draw)
            else:
                number = signal.Signals[arguments.signal]
                found = kill_runs(chain, stage, arguments.engine, number, arguments.kills, draw)
            met = met and found.kills > 0 and found.same == found.trials and not found.different
            kills += found.kills
            table[stage] = found
            print(json.dumps({"stage": stage, **found.line()}), flush=True)
    what = f"{arguments.signal} of the run" if arguments.victim == "run" else "SIGKILL of a worker"
    print(markdown(f"{what}, {arguments.engine}", table))
    print(json.dumps({"name": "faults.kills", **setting, "kills": kills, "met": met}))
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
