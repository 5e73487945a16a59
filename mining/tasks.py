"""Runs a stage's independent tasks on an engine, each exactly once, also across a kill.

A task is a picklable function of (rank, world_size) that writes its files atomically. datatrove's
executor leaves one marker a finished task; a rerun does only what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mining.common.logs import Ticker, progress
from mining.engine_settings import EngineSettings

Task = Callable[[int, int], None]
POLL_SECONDS = 0.5


@dataclass
class _Step:
    """One task as a datatrove pipeline step."""

    task: Task

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self.task(rank, world_size)


def run_tasks(title: str, task: Task, n_tasks: int, folder: Path, engine: EngineSettings) -> None:
    """Run `task(rank, n_tasks)` for every rank that has no marker under `folder` yet.

    A task's exception stops the run and is raised here; markers of finished tasks stay.
    """
    if engine.kind == "slurm":
        from mining.slurm import run_slurm_tasks

        run_slurm_tasks(title, task, n_tasks, folder, engine)
        return
    if engine.kind == "spark":
        from mining.spark import run_spark_tasks

        run_spark_tasks(title, task, n_tasks, folder, engine)
        return
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    from mining.workers import run_in_workers

    logger.disable("datatrove")
    executor = LocalPipelineExecutor([_Step(task)], tasks=n_tasks, logging_dir=str(folder))
    # datatrove's own way of running its tasks would wait for ever for a worker that is killed.
    ranks = executor.get_incomplete_ranks()
    n_workers = min(engine.worker_count(), len(ranks))
    with progress(title, n_tasks, "tasks") as ticker:
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(folder, ticker, stop), daemon=True)
        watcher.start()
        try:
            if n_workers > 1:
                run_in_workers(title, executor._run_for_rank, ranks, n_workers)
            for rank in ranks if n_workers == 1 else ():
                executor._run_for_rank(rank)
        finally:
            stop.set()
            watcher.join()


def _watch(folder: Path, ticker: Ticker, stop: threading.Event) -> None:
    while True:
        finished = stop.wait(POLL_SECONDS)
        done = sum(1 for _ in (folder / "completions").glob("*"))
        ticker.advance(done - ticker.done)
        if finished:
            return
