"""Runs a stage's independent tasks on an engine, each exactly once, also across a kill.

A task is a picklable function of (rank, world_size) that writes its files atomically. There is one
marker a finished task, named as datatrove's executors name it; a rerun does only what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mining.common.files import write_json
from mining.common.logs import Ticker, progress
from mining.engine_settings import EngineSettings
from mining.threads import run_in_threads

Task = Callable[[int, int], None]
POLL_SECONDS = 0.5


@dataclass
class _Step:
    """One task as a datatrove pipeline step."""

    task: Task

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self.task(rank, world_size)


def marker_path(folder: Path, rank: int) -> Path:
    """The marker of a finished task, where datatrove puts it."""
    return folder / "completions" / f"{rank:05d}"


def missing_tasks(folder: Path, n_tasks: int) -> tuple[int, ...]:
    """The tasks that have no marker."""
    return tuple(rank for rank in range(n_tasks) if not marker_path(folder, rank).exists())


def note_tasks(folder: Path, n_tasks: int) -> None:
    """Leave word of how many tasks there are, where datatrove does (`pivots status` reads it)."""
    write_json(folder / "executor.json", {"world_size": n_tasks})


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
    note_tasks(folder, n_tasks)
    workers = max(1, min(engine.worker_count(), n_tasks))
    with progress(title, n_tasks, "tasks") as ticker:
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(folder, ticker, stop), daemon=True)
        watcher.start()
        try:
            if in_threads or workers == 1:
                _run_here(task, n_tasks, folder, workers)
            else:
                _run_in_processes(title, task, n_tasks, folder, workers)
        finally:
            stop.set()
            watcher.join()


def _run_here(task: Task, n_tasks: int, folder: Path, workers: int) -> None:
    marker_path(folder, 0).parent.mkdir(parents=True, exist_ok=True)

    def call(rank: int) -> None:
        task(rank, n_tasks)
        marker_path(folder, rank).touch()

    run_in_threads(call, missing_tasks(folder, n_tasks), workers)


def _run_in_processes(title: str, task: Task, n_tasks: int, folder: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    from mining.workers import run_in_workers

    logger.disable("datatrove")
    executor = LocalPipelineExecutor([_Step(task)], tasks=n_tasks, logging_dir=str(folder))
    # datatrove's own way of running its tasks would wait for ever for a worker that is killed.
    run_in_workers(title, executor._run_for_rank, executor.get_incomplete_ranks(), workers)


def _watch(folder: Path, ticker: Ticker, stop: threading.Event) -> None:
    while True:
        finished = stop.wait(POLL_SECONDS)
        done = sum(1 for _ in (folder / "completions").glob("*"))
        ticker.advance(done - ticker.done)
        if finished:
            return
