"""The command `pivots status`: how far a run is, from what its stages and its launch have written.

It only reads, so it can be asked at any time and from any machine that sees the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.config import STAGES, parse_config
from launch.pipeline import Job, Plan
from launch.slurm_chain import submitted_jobs
from mining.common.errors import InputError, TaskError
from mining.common.files import read_json
from mining.common.logs import log
from mining.common.manifest import MANIFEST, RUN, mapping, read_note
from mining.common.slurm_jobs import SHORT_PATIENCE, list_queue
from mining.common.stage import LOCK, WORK

USAGE = """\
usage: pivots status RUN   (RUN: the folder of a run, the `out` of its configuration)

Each stage of the run: done, running, waiting (in Slurm's queue), failed, stopped (begun, and nobody
is at it), or pending; how many of its tasks or trainings are done or failed, how long it took or
will still take, and where its logs are. Ends with code 0; with 6 where a stage failed.
"""
TIMINGS = "timings.jsonl"
# torchrun says first which process printed a line.
ERROR = re.compile(r"(?:\[\w+\]:)?(error: .*)")
HOLDER = re.compile(r"\(process (\d+) on (.+)\)$")


@dataclass
class StageStatus:
    """How far a stage is; `done`, `failed` and `total` count its arms and models, or its tasks."""

    stage: str
    state: str
    done: int
    total: int | None
    failed: int = 0
    seconds: float | None = None
    left: float | None = None
    notes: list[str] = field(default_factory=list)


def status(arguments: Sequence[str]) -> int:
    """Run `pivots status` on its command line; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(USAGE)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    run = Path(arguments[0])
    stages = run_status(run)
    Console(highlight=False, markup=False, soft_wrap=True).print(_table(stages))
    for one in stages:
        for note in one.notes:
            print(f"{one.stage}: {note}")
    if (logs := run / "launch" / "logs").is_dir():
        print(f"logs: {logs}")
    return TaskError.exit_code if any(one.state == "failed" for one in stages) else 0


def run_status(run: Path) -> list[StageStatus]:
    """How far each stage of a run is; InputError for a folder that no run has written."""
    places = (run / "launch" / "config.yaml", run / "config.yaml")
    configs = [path for path in places if path.is_file()]
    if not configs:
        raise InputError(
            f"{run}: has no config.yaml, expected the folder of `pivots run` or `pivots launch`"
        )
    newest = max(configs, key=lambda path: path.stat().st_mtime)
    jobs = Plan(parse_config(["--config", str(newest), "--out", str(run)], "run")).jobs()
    submitted = dict(submitted_jobs(run / "launch"))
    try:
        queue = list_queue(set(submitted.values()), SHORT_PATIENCE) if submitted else []
    except (FileNotFoundError, TaskError):
        queue, submitted = [], {}  # where nobody knows, a job must not pass for a failed one
        log.warning("Slurm cannot be asked from here: what it runs or holds back is not shown")
    stages = []
    for stage in dict.fromkeys(job.stage for job in jobs):
        own = [(state, reason) for number, state, reason in queue if number == submitted.get(stage)]
        of_stage = [job for job in jobs if job.stage == stage]
        stages.append(_stage(stage, of_stage, own, submitted.get(stage), run / "launch" / "logs"))
    return stages


def _stage(
    stage: str, jobs: list[Job], queue: list[tuple[str, str]], number: str | None, logs: Path
) -> StageStatus:
    finished = [job for job in jobs if (job.folder / MANIFEST).is_file()]
    found = StageStatus(stage, "pending", len(finished), len(jobs))
    seconds = [read_note(job.folder / RUN).get("seconds") for job in finished]
    if known := [took for took in seconds if isinstance(took, int | float)]:
        found.seconds = sum(known)
    if len(finished) == len(jobs):
        found.state = "done"
        return found
    begun = [job for job in jobs if job not in finished and (job.folder / WORK).is_dir()]
    working = [job for job in begun if _is_held(job.folder)]
    newest = _newest_log(logs, stage)
    why = _last_error(newest)
    if any(state != "PD" for state, _ in queue) or working:
        found.state = "running"
    elif queue:
        found.state = "waiting"
        if reasons := sorted({reason for _, reason in queue} - {"Dependency", "None"}):
            found.notes.append(f"Slurm job {number} waits: {', '.join(reasons)}")
    elif newest is not None and (number is not None or why):
        found.state = "failed"
        found.failed = len(jobs) - len(finished)
        found.notes.append(f"{why or 'ended without a word of its own'}; its log is {newest}")
    elif begun:
        found.state = "stopped"
    if found.state == "running":
        for job in working or begun:
            _look_inside(job, found, alone=len(jobs) == 1)
    return found


def _is_held(folder: Path) -> bool:
    """Whether a process of this machine, named in the folder's lock, is alive.

    The lock itself is not tried: whoever starts the stage at that moment would find it taken.
    """
    path = folder / LOCK
    holder = HOLDER.search(path.read_text("utf-8", "replace")) if path.is_file() else None
    return holder is not None and holder[2] == platform.node() and _is_alive(int(holder[1]))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return False
    except PermissionError:
        return True
    return True


def _look_inside(job: Job, found: StageStatus, alone: bool) -> None:
    """Add what a job at work has left so far: steps of a training, tasks of a mining stage."""
    timings = _last_timing(job.folder / TIMINGS)
    if timings is not None:
        left, seconds = timings["eta_seconds"], timings["seconds"]
        steps = timings["step"] + round(left / seconds if seconds else 0)
        found.left = max(found.left or 0.0, left)
        found.notes.append(f"{job.name}: step {timings['step']} of {steps}, {_time(left)} left")
        return
    for tasks in sorted(path.parent for path in (job.folder / WORK).rglob("completions")):
        step = _step_tasks(tasks)
        if step is None or not step.missing:
            continue
        failed = len(list((tasks / "errors").glob("[0-9]*")))
        if alone:
            found.done, found.failed, found.total = step.done, failed, step.done + step.missing
        found.left = step.left
        if (tasks / "slurm_logs").is_dir():
            found.notes.append(f"logs of its tasks: {tasks / 'slurm_logs'}")


@dataclass(frozen=True)
class _Tasks:
    """The tasks of a mining stage's step, and the seconds that the missing ones take."""

    done: int
    missing: int
    left: float | None


def _step_tasks(folder: Path) -> _Tasks | None:
    """How far a step is by the markers of its tasks; None where nobody noted how many it has."""
    times = {path.name: path.stat().st_mtime for path in (folder / "completions").glob("[0-9]*")}
    slurm, local = folder / "ranks_to_run.json", folder / "executor.json"
    if slurm.is_file():
        start, wanted = slurm.stat().st_mtime, {f"{rank:05d}" for rank in read_json(slurm)}
        missing = len(wanted - set(times))
    elif local.is_file():
        start, missing = local.stat().st_mtime, read_json(local)["world_size"] - len(times)
    else:
        return None
    lately = sum(moment >= start for moment in times.values())
    left = (time.time() - start) / lately * missing if lately else None
    return _Tasks(len(times), missing, left)


def _last_timing(path: Path) -> dict[str, float] | None:
    """The newest whole line of a training's timings that says how long the rest takes."""
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    for line in reversed(text[: text.rfind("\n") + 1].splitlines()):
        # A machine that lost its power may leave a line of zeros.
        with contextlib.suppress(json.JSONDecodeError):
            record = mapping(json.loads(line))
            wanted = (record.get(name) for name in ("step", "seconds", "eta_seconds"))
            if all(isinstance(value, int | float) for value in wanted):
                return record
    return None


def _newest_log(logs: Path, stage: str) -> Path | None:
    """The newest log of a stage's jobs, and of an array's one that ends with an error."""
    number = list(STAGES).index(stage) + 1
    found = [path for path in logs.glob(f"{number:02d}-{stage}*") if path.is_file()]
    failed = [path for path in found if _last_error(path)]
    return max(failed or found, key=lambda path: path.stat().st_mtime, default=None)


def _last_error(log: Path | None) -> str | None:
    """The last word of a stage on why it failed."""
    lines = log.read_text("utf-8", "replace").splitlines() if log is not None else []
    errors = [found[1] for line in lines if (found := ERROR.match(line))]
    return errors[-1] if errors else None


def _table(stages: list[StageStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "state", "done", "failed", "took", "left"):
        table.add_column(name, no_wrap=True)
    for one in stages:
        table.add_row(
            one.stage,
            one.state,
            f"{one.done}/{'?' if one.total is None else one.total}",
            str(one.failed or ""),
            _time(one.seconds),
            _time(one.left),
        )
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
