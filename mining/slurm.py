"""Runs a stage's tasks as Slurm job arrays, one array task each, by datatrove's executor.

    folder/completions/00003        task 3 is done
    folder/slurm_logs/17_3.out      what array task 3 of job 17 printed
    folder/errors/00003             the exception of task 3
    folder/slurm_jobs               the jobs that may be at work (mining.common.slurm_jobs)

The call waits for its jobs and cancels them where it is broken off. Where it is killed, the jobs go
on until the next run of the stage ends them; what they finished meanwhile counts.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dill
from datatrove.executor import SlurmPipelineExecutor

import mining
from mining.common.errors import MissingDependencyError, PivotsError, SettingsError, TaskError
from mining.common.files import remove_tree, write_bytes, write_json, write_text
from mining.common.logs import Ticker, log, progress, setup_logging
from mining.common.slurm_jobs import POLL_SECONDS, end_jobs, list_queue, note_jobs, noted_jobs
from mining.engine_settings import EngineSettings, SlurmSettings
from mining.tasks import Task

QUEUE_SECONDS = 10.0  # between two looks into the queue, once a job has run for a while
SHARED_SECONDS = 5.0  # until a file of another machine is seen on a shared file system
SUBMIT_SECONDS = 60.0  # from a job's start until its id must have been noted
LAST_LINES = 12


@dataclass(repr=False)
class _ArrayStep:
    """One task as a datatrove pipeline step that leaves its exception for the waiting process."""

    task: Task
    folder: Path

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self._check_job()
        setup_logging()
        try:
            self.task(rank, world_size)
        except Exception as error:
            typed = error if isinstance(error, PivotsError) else None
            failure = typed, "".join(traceback.format_exception(error)), _own_log()
            write_bytes(self.folder / "errors" / f"{rank:05d}", pickle.dumps(failure))
            raise

    def _check_job(self) -> None:
        """End this process if its job is not one of the folder's.

        The process that submitted it was killed before it noted the job, and nobody can end it.
        """
        job = os.environ["SLURM_ARRAY_JOB_ID"]
        end = time.monotonic() + SUBMIT_SECONDS
        while job not in noted_jobs(self.folder):
            if time.monotonic() > end:
                sys.exit(f"job {job} does not stand in {self.folder}; nobody waits for it")
            time.sleep(POLL_SECONDS)


def _own_log() -> str:
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}.out"


def run_slurm_tasks(
    title: str, task: Task, n_tasks: int, folder: Path, engine: EngineSettings
) -> None:
    """Run `task(rank, n_tasks)` for every rank without a marker, and wait until all are done.

    Raises a task's own exception if it is one that users can act on, else TaskError, which says
    where its log is; also where a task ended in another way (killed, out of memory or time).
    """
    folder = folder.resolve()
    end_jobs(folder)
    limit = max_array_size()
    executor = SlurmPipelineExecutor(
        pipeline=[_ArrayStep(task, folder)],
        tasks=n_tasks,
        time=engine.slurm.time,
        partition=engine.slurm.partition,
        cpus_per_task=engine.slurm.cpus_per_task,
        mem_per_cpu_gb=engine.slurm.mem_per_cpu_gb,
        workers=engine.worker_count(),
        job_name="pivots " + title.replace(":", ""),
        qos=None,
        sbatch_args=engine.slurm.options,
        max_array_size=limit,
        logging_dir=str(folder),
        slurm_logs_folder=str(folder / "slurm_logs"),
        requeue_signals=None,
    )
    ranks = executor.get_incomplete_ranks()
    if not ranks:
        return
    remove_tree(folder / "errors")
    write_bytes(folder / "executor.pik", dill.dumps(executor))
    write_json(folder / "ranks_to_run.json", ranks)
    write_text(folder / "launch_script.slurm", _script(folder, engine.slurm))
    log.info("%s: %d tasks on Slurm, logs in %s", title, len(ranks), folder / "slurm_logs")
    array = _Array(title, folder, n_tasks, ranks, limit)
    with progress(title, n_tasks, "tasks") as ticker, _broken_off_by_sigterm():
        try:
            array.submit(executor)
            array.wait(ticker)
        finally:
            end_jobs(folder)


@contextlib.contextmanager
def _broken_off_by_sigterm() -> Iterator[None]:
    """Let SIGTERM break off what is at work as Ctrl-C does, so that the jobs are cancelled.

    Whoever cancels a job that waits here wants its tasks gone too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals cannot be caught
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would break off the cancelling
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def max_array_size() -> int:
    """The most tasks that this cluster takes as one array."""
    if shutil.which("sbatch") is None:
        raise MissingDependencyError(
            "engine.kind is slurm, but there is no sbatch here: run on a machine from which jobs "
            "are submitted (a login node), or choose --engine.kind local"
        )
    command = ["scontrol", "show", "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise MissingDependencyError(
            f"Slurm does not answer ({done.stderr.strip()}): see whether `sinfo` does, or choose "
            "--engine.kind local"
        )
    return max(1, int(found[1]))


def _script(folder: Path, slurm: SlurmSettings) -> str:
    """What an array task runs: this Python, with the packages from where they are imported here."""
    threads = [
        f'export {name}="${{{name}:-{slurm.cpus_per_task}}}"'
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
    ]
    packages = shlex.quote(str(Path(mining.__path__[0]).resolve().parent))
    program = [sys.executable, "-m", "datatrove.tools.launch_pickled_pipeline"]
    lines = [
        "#!/bin/bash",
        *([slurm.setup] if slurm.setup else []),
        f'export PYTHONPATH={packages}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONUNBUFFERED=1',
        *threads,
        f"exec {shlex.join([*program, str(folder / 'executor.pik')])}",
    ]
    return "\n".join(lines) + "\n"


class _Array:
    """The jobs of some ranks: the k-th `limit` of them are the k-th job's array tasks."""

    def __init__(self, title: str, folder: Path, n_tasks: int, ranks: list[int], limit: int):
        self.title, self.folder, self.n_tasks = title, folder, n_tasks
        self.ranks, self.limit = ranks, limit
        self.jobs: list[str] = []

    def submit(self, executor: Any) -> None:
        """Submit all jobs; each starts after the one before, so that no more tasks run at once."""
        # Inside another job its own sizes stand in the environment, and would hold for ours.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("SLURM_") or name == "SLURM_CONF"
        }
        for number, start in enumerate(range(0, len(self.ranks), self.limit)):
            options = executor.get_sbatch_args(min(self.limit, len(self.ranks) - start))
            options["export"] = f"ALL,RUN_OFFSET={number}"
            if self.jobs:
                options["dependency"] = f"afterany:{self.jobs[-1]}"
            arguments = [
                f"--{name}={value}" if value != "" else f"--{name}"
                for name, value in options.items()
                if value is not None
            ]
            command = ["sbatch", "--parsable", *arguments, str(self.folder / "launch_script.slurm")]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SettingsError(
                    f"engine.slurm: sbatch refuses the job: {done.stderr.strip()} "
                    f"({' '.join(arguments)})"
                )
            self.jobs.append(done.stdout.strip().split(";")[0])
            note_jobs(self.folder, self.jobs)

    def wait(self, ticker: Ticker) -> None:
        """Return when all tasks are done and the jobs gone; raise when a task has failed."""
        start = looked = time.monotonic()
        gone: float | None = None
        while True:
            missing = self._missing()
            ticker.advance(self.n_tasks - len(missing) - ticker.done)
            if failed := sorted((self.folder / "errors").glob("[0-9]*")):
                raise self._failure(failed[0])
            now = time.monotonic()
            if gone is not None and (not missing or now - gone > SHARED_SECONDS):
                break
            # A short job is asked for often, a long one seldom: squeue is dear for a cluster.
            if not missing or now - looked > min(QUEUE_SECONDS, 1 + (now - start) / 10):
                looked = now
                queue = list_queue(self.jobs)
                ticker.note(_describe(queue))
                if not queue and gone is None:
                    gone = now
            time.sleep(POLL_SECONDS)
        if missing:
            raise self._lost(missing)

    def _missing(self) -> list[int]:
        done = {path.name for path in (self.folder / "completions").glob("*")}
        return [rank for rank in self.ranks if f"{rank:05d}" not in done]

    def _failure(self, path: Path) -> PivotsError:
        typed, text, log_name = pickle.loads(path.read_bytes())  # nosec B301 # of our own jobs
        place = self.folder / "slurm_logs" / log_name
        if isinstance(typed, PivotsError):
            log.error("%s: task %d failed; its log is %s", self.title, int(path.name), place)
            return typed
        return TaskError(
            f"{self.title}: task {int(path.name)} of {self.n_tasks} failed:\n{_end_of(text)}\n"
            f"Its whole log is {place}"
        )

    def _lost(self, missing: list[int]) -> TaskError:
        """The error of tasks that ended without a word of their own."""
        first = missing[0]
        job, index = divmod(self.ranks.index(first), self.limit)
        place = self.folder / "slurm_logs" / f"{self.jobs[job]}_{index}.out"
        printed = place.read_text("utf-8", "replace") if place.is_file() else "(it never started)"
        others = f", nor did {len(missing) - 1} others" if len(missing) > 1 else ""
        return TaskError(
            f"{self.title}: task {first} of {self.n_tasks} did not finish{others}. Slurm says "
            f"{_describe_end(f'{self.jobs[job]}_{index}')}. Its log {place} ends:\n"
            f"{_end_of(printed)}\nRun the same command again, which does only the missing tasks; "
            "if they need more, set engine.slurm.time or engine.slurm.mem_per_cpu_gb"
        )


def _describe_end(job: str) -> str:
    """Slurm's words for how an array task ended, as long as it remembers."""
    command = ["scontrol", "show", "job", "--oneliner", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"JobState=(\S+) .*ExitCode=(\d+):(\d+)", done.stdout)
    return f"{found[1]}, status {found[2]}, signal {found[3]}" if found else "nothing more of it"


def _end_of(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-LAST_LINES:])


def _describe(queue: list[tuple[str, str, str]]) -> str:
    """What the queue holds, for the progress line."""
    running = sum(state != "PD" for _, state, _ in queue)
    reasons = sorted({reason for _, state, reason in queue if state == "PD"})
    return f"{running} running" + (f", others wait ({', '.join(reasons)})" if reasons else "")
