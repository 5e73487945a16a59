"""Runs a stage's tasks on Spark's executors: one partition a task, one Spark job a step.

What Spark does by itself stays Spark's: scheduling, and running tasks again that were lost with a
machine. What a user can act on is no reason to try again: a task hands such an error back as a row,
the others stop, and the driver raises it as if the task had run here. Input, output and the folder
where the command was started lie on a file system that all machines share.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import platform
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mining import spark_worker
from mining.common.errors import InputError, PivotsError, TaskError
from mining.common.files import write_text
from mining.common.logs import Ticker, progress
from mining.engine_settings import EngineSettings
from mining.spark_session import spark_session
from mining.tasks import Task, marker_path, missing_tasks, note_tasks

POLL_SECONDS = 0.5
# What a job hands back: nothing for a task that is done, else its PivotsError, pickled, or nothing
# but an empty one where it was not tried because another had failed.
ERRORS = pa.schema([pa.field("error", pa.binary())])
ERROR_COLUMNS = "error binary"
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Site:
    """Where a step's tasks run, by the paths of the driver.

    `folder` holds the markers of finished tasks, `directory` is what relative paths start from.
    """

    folder: Path
    directory: Path

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """On an executor: be in the driver's directory."""
        before = Path.cwd()
        try:
            if self.directory.is_dir():
                os.chdir(self.directory)
            if not self.folder.is_dir():
                raise InputError(
                    f"{self.directory / self.folder}: not found on {platform.node()}, where Spark "
                    "runs a task; put input, output and the folder you start from on a file "
                    "system that all machines share"
                )
            yield
        finally:
            os.chdir(before)

    def attempt(
        self, rank: int, work: Iterator[pa.RecordBatch], schema: pa.Schema, n_places: int = 1
    ) -> Batches:
        """On an executor: yield what a task's `work` yields, of `schema`.

        Where it raises a PivotsError, or another task did before, rows that say so follow, one for
        each `place` (see ERRORS for the column `error`).
        """
        failed = self.folder / "failed"
        try:
            with self.entered():
                if failed.exists() and failed.read_text() != str(rank):
                    error = b""
                else:
                    try:
                        yield from work
                    except PivotsError:
                        write_text(failed, str(rank))
                        raise
                    return
        except PivotsError as raised:
            error = pickle.dumps(raised)
        rows = [{"place": place, "error": error} for place in range(n_places)]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def open_site(folder: Path) -> Site:
    """Prepare the folder of markers; for the driver, before it looks what is missing."""
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    (folder / "failed").unlink(missing_ok=True)
    return Site(folder, Path.cwd())


def run_spark_tasks(
    title: str, task: Task, n_tasks: int, folder: Path, engine: EngineSettings
) -> None:
    """Run `task(rank, n_tasks)` for every rank that has no marker under `folder` yet.

    The PivotsError of a task stops the run and is raised here; markers of finished tasks stay. Any
    other exception lets Spark try the task again, as often as its settings say; then it is a
    TaskError.
    """
    site = open_site(folder)
    missing = missing_tasks(site.folder, n_tasks)
    note_tasks(site.folder, n_tasks)
    if missing:
        work = functools.partial(_run_ranks, task=task, ranks=missing, n_tasks=n_tasks, site=site)
        frame = on_executors(one_row_each(engine, len(missing)), work, ERROR_COLUMNS)
        run_job(title, frame, n_tasks, n_tasks - len(missing))


def _run_ranks(
    batches: Batches, task: Task, ranks: tuple[int, ...], n_tasks: int, site: Site
) -> Batches:
    for place in places(batches):
        work = _run_rank(task, ranks[place], n_tasks, site)
        yield from site.attempt(ranks[place], work, ERRORS)


def _run_rank(task: Task, rank: int, n_tasks: int, site: Site) -> Batches:
    task(rank, n_tasks)
    marker_path(site.folder, rank).touch()
    yield from ()


def places(batches: Batches) -> Iterator[int]:
    """The numbers in the rows of `one_row_each`."""
    for batch in batches:
        yield from batch.column(0).to_pylist()


def one_row_each(engine: EngineSettings, n: int) -> Any:
    """A DataFrame of the numbers 0..n-1, each in a partition of its own."""
    return spark_session(engine).range(0, n, 1, numPartitions=n)


def on_executors(frame: Any, work: spark_worker.Work, schema: str) -> Any:
    """`frame` mapped by `work`, Arrow batches to Arrow batches of `schema`, with this very code."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(spark_worker)
    root = Path(__file__).resolve().parents[1]
    digest, archive = spark_worker.pack_code(root)
    run = spark_worker.shipped(cloudpickle.dumps(work), str(root), digest, archive)
    return frame.mapInArrow(run, schema)


def run_job(title: str, frame: Any, n_tasks: int, n_done: int) -> None:
    """Compute a DataFrame of ERRORS, showing how many of `n_tasks` are done; raise errors.

    `n_done` tasks were done before.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    context = frame.sparkSession.sparkContext
    group = f"pivots-{uuid.uuid4()}"
    context.setJobGroup(group, title, interruptOnCancel=True)
    with progress(title, n_tasks, "tasks") as ticker:
        stop = threading.Event()
        watcher = threading.Thread(
            target=_watch, args=(context.statusTracker(), group, ticker, n_done, stop), daemon=True
        )
        watcher.start()
        try:
            errors = [bytes(row.error) for row in frame.collect()]
        except (PySparkException, Py4JError, ConnectionError) as error:
            raise _explain(title, str(error)) from None
        finally:
            stop.set()
            watcher.join()
    for raised in filter(None, errors):
        raise pickle.loads(raised)  # nosec B301 # of our own executors
    if errors:
        raise PivotsError(f"{title}: stopped half-way; the same command goes on from here")


def _watch(tracker: Any, group: str, ticker: Ticker, n_done: int, stop: threading.Event) -> None:
    """Show what Spark says until `stop`."""
    while True:
        finished = stop.wait(POLL_SECONDS)
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
        numbers = {stage for job in jobs if job is not None for stage in job.stageIds}
        stages = [tracker.getStageInfo(number) for number in numbers]
        done = n_done + sum(stage.numCompletedTasks for stage in stages if stage is not None)
        ticker.advance(done - ticker.done)
        if finished:
            return


def _explain(title: str, text: str) -> PivotsError:
    """What to raise where Spark gave a job up: a bug of a task, or trouble with its machines."""
    trace = text.find("Traceback (most recent call last)")
    if trace >= 0:
        return TaskError(f"{title}: a task failed on Spark\n{text[trace:].strip()}")
    aborted = re.search(r"Job aborted due to stage failure: (.*)", text)
    reason = aborted[1] if aborted else text.strip().splitlines()[0]
    return PivotsError(
        f"{title}: Spark gave up ({reason}). Finished tasks stay; where machines lacked memory, "
        "give them more by engine.spark.conf; the same command goes on from here"
    )
