"""Runs a stage's independent tasks on an engine, each exactly once, also across a kill.

A task is a picklable function of (rank, world_size) that writes its files atomically. There is one
marker a finished task, named as datatrove's executors name it; a rerun does only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mining.common.logs import Ticker, progress
from mining.engine_settings import EngineSettings
from mining.threads import run_in_threads

Task = Callable[[int, int], None]
POLL_SECONDS = 0.5
# What the workers run. Each step has workers of its own, which would import it all once more.
STAGES = ["mining.count", "mining.score", "mining.tokenize", "mining.words"]


@dataclass
class _Step:
    """One task as a datatrove pipeline step; `owner` is the process that the run belongs to."""

    task: Task
    owner: int

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self.task(rank, world_size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Runs in a worker process before datatrove logs anything there.
        self.__dict__.update(state)
        _calm_worker()
        _end_with(self.owner)


def _calm_worker() -> None:
    from loguru import logger

    logger.disable("datatrove")
    for name in ("RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _end_with(owner: int) -> None:
    """End this process soon after the process `owner`, so that a killed run leaves nobody at work.

    A worker of a killed run would go on to write where the next run writes too.
    """

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(owner, 0)  # sends nothing; fails once the process is gone
                time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _owners() -> set[int]:
    """Processes whose forked children end with them: those inside `run_tasks`.

    datatrove forks a process that hands out ranks, and gives no other way to reach it.
    """
    owners: set[int] = set()

    def after_fork() -> None:
        for owner in owners:
            _end_with(owner)

    os.register_at_fork(after_in_child=after_fork)
    return owners


def marker_path(folder: Path, rank: int) -> Path:
    """The marker of a finished task, where datatrove puts it."""
    return folder / "completions" / f"{rank:05d}"


def missing_tasks(folder: Path, n_tasks: int) -> tuple[int, ...]:
    """The tasks that have no marker."""
    return tuple(rank for rank in range(n_tasks) if not marker_path(folder, rank).exists())


def run_tasks(
    title: str,
    task: Task,
    n_tasks: int,
    folder: Path,
    engine: EngineSettings,
    in_threads: bool = False,
) -> None:
    """Run `task(rank, n_tasks)` for every rank that has no marker under `folder` yet.

    A task's exception stops the run and is raised here; markers of finished tasks stay. Tasks whose
    time goes into compiled code (`in_threads`) are run by the local engine in threads, others in
    processes, where they are more than one at a time.
    """
    if engine.kind == "slurm":
        from mining.slurm import run_slurm_tasks

        run_slurm_tasks(title, task, n_tasks, folder, engine)
        return
    if engine.kind == "spark":
        from mining.spark import run_spark_tasks

        run_spark_tasks(title, task, n_tasks, folder, engine)
        return
    workers = max(1, min(engine.worker_count(), n_tasks))
    with progress(title, n_tasks, "tasks") as ticker:
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(folder, ticker, stop), daemon=True)
        watcher.start()
        try:
            if in_threads or workers == 1:
                _run_here(task, n_tasks, folder, workers)
            else:
                _run_in_processes(task, n_tasks, folder, workers)
        finally:
            stop.set()
            watcher.join()


def _run_here(task: Task, n_tasks: int, folder: Path, workers: int) -> None:
    marker_path(folder, 0).parent.mkdir(parents=True, exist_ok=True)

    def call(rank: int) -> None:
        task(rank, n_tasks)
        marker_path(folder, rank).touch()

    run_in_threads(call, missing_tasks(folder, n_tasks), workers)


def _run_in_processes(task: Task, n_tasks: int, folder: Path, workers: int) -> None:
    import multiprocess
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.disable("datatrove")
    multiprocess.set_forkserver_preload(["datatrove.executor", *STAGES])
    executor = LocalPipelineExecutor(
        pipeline=[_Step(task, os.getpid())], tasks=n_tasks, workers=workers, logging_dir=str(folder)
    )
    _owners().add(os.getpid())
    try:
        executor.run()
    finally:
        _owners().discard(os.getpid())


def _watch(folder: Path, ticker: Ticker, stop: threading.Event) -> None:
    while True:
        finished = stop.wait(POLL_SECONDS)
        done = sum(1 for _ in (folder / "completions").glob("*"))
        ticker.advance(done - ticker.done)
        if finished:
            return
