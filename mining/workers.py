"""Processes of this machine that do a step's tasks, also where one of them is killed.

The pools of the standard library, and datatrove's, wait for ever for the task of a worker that was
killed alone, as the kernel does where memory runs out. Here the task is done again, by one worker
fewer; where it costs a second worker, that is an error.
"""

from __future__ import annotations

import collections
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mining.common.errors import SettingsError, TaskError
from mining.common.logs import log

ATTEMPTS = 2
# What the workers run. Each step has workers of its own, which would import it all once more.
PRELOADED = [
    "datatrove.executor",
    "mining.count",
    "mining.score",
    "mining.tokenize",
    "mining.words",
]


def run_in_workers(
    title: str, work: Callable[[int], object], ranks: Sequence[int], n_workers: int
) -> None:
    """Call `work(rank)` once for every rank, `n_workers` at a time, each in some other process.

    The first exception of a task stops all and is raised here. Raises TaskError where a task's
    process was killed a second time.
    """
    import multiprocess
    import multiprocess.connection

    multiprocess.set_forkserver_preload(PRELOADED)
    context = multiprocess.get_context("forkserver")
    waiting = collections.deque(ranks)
    killed: collections.Counter[int] = collections.Counter()
    workers = [_Worker(context, work) for _ in range(min(n_workers, len(ranks)))]
    try:
        while True:
            for worker in workers:
                if worker.rank is None and waiting:
                    worker.give(waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.rank is not None}
            if not busy:
                break
            for connection in multiprocess.connection.wait(list(busy)):
                worker = busy[connection]
                rank = worker.rank
                assert rank is not None
                try:
                    worker.take()
                except EOFError:
                    workers.remove(worker)
                    end = worker.end()
                    killed[rank] += 1
                    if killed[rank] == ATTEMPTS:
                        raise TaskError(_describe(title, rank, end)) from None
                    waiting.append(rank)
                    if not workers:
                        workers.append(_Worker(context, work))
                    log.warning(
                        "%s: the process of task %d ended by %s, as where memory runs out; the "
                        "task is done again, now by %d process(es)",
                        title, rank, end, len(workers),
                    )  # fmt: skip
        for worker in workers:
            worker.connection.close()
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process and what it does now: `rank`, or None."""

    def __init__(self, context: Any, work: Callable[[int], object]) -> None:
        self.rank: int | None = None
        self.connection, theirs = context.Pipe()
        # Nothing is ever sent through this one: it breaks when the owner is gone.
        lifeline, self._owner = context.Pipe(duplex=False)
        self.process = context.Process(target=_serve, args=(theirs, lifeline, work), daemon=True)
        _start(self.process)
        theirs.close()
        lifeline.close()

    def give(self, rank: int) -> None:
        """Let the process do a task."""
        self.rank = rank
        try:
            self.connection.send(rank)
        except OSError:
            return  # it was killed while it had nothing to do, as `take` will tell

    def take(self) -> None:
        """Wait for the task's end; raises the task's exception, and EOFError for a lost process."""
        try:
            error = self.connection.recv()
        except OSError:
            raise EOFError from None
        self.rank = None
        if error is not None:
            raise error

    def end(self) -> str:
        """Wait until the process is gone; how it ended."""
        self.process.join()
        self.connection.close()
        self._owner.close()
        code = self.process.exitcode
        return f"signal {_signal_name(-code)}" if code < 0 else f"status {code}"


def _start(process: Any) -> None:
    """Start a process, also where the one that it is forked from was killed meanwhile."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            process.start()
        except (EOFError, ConnectionError):
            if attempt == ATTEMPTS:
                raise TaskError(
                    "no worker process could be started: the one that they are forked from ended "
                    f"{ATTEMPTS} times, as where memory runs out; the same command goes on from "
                    "here"
                ) from None
            time.sleep(1.0)  # the system may not yet tell that it is gone
        except OSError as error:
            if "AF_UNIX path too long" not in str(error):
                raise
            from multiprocess.util import get_temp_dir

            raise SettingsError(
                f"TMPDIR: found {Path(get_temp_dir()).parent}, which is too long for the name of a "
                "socket (some 75 bytes); set it to a shorter folder"
            ) from None
        else:
            return


def _signal_name(number: int) -> str:
    # Of the real-time signals, with which batch systems end jobs too, most have no name.
    names = {int(known): known.name for known in signal.Signals}
    return names.get(number, str(number))


def _serve(connection: Any, lifeline: Any, work: Callable[[int], object]) -> None:
    """What a worker does: ranks in, None or an exception out."""
    from loguru import logger

    logger.disable("datatrove")
    for name in ("RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    # The terminal sends it to all processes; the owner decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    while True:
        try:
            rank = connection.recv()
        except EOFError:
            return
        try:
            work(rank)
        except BaseException as error:  # a panic in Rust is no Exception
            connection.send(_portable(error))
        else:
            connection.send(None)


def _end_with(lifeline: Any) -> None:
    """End this process with its owner: it would go on to write where the next run writes too."""
    lifeline.poll(None)
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The exception as another process can have it, with the place where it was raised."""
    place = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # nosec B301 # what this process has just pickled
    except Exception:  # an exception's class may do anything when it is pickled
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker process:\n{place}")
    return error


def _describe(title: str, rank: int, end: str) -> str:
    return (
        f"{title}: the process of task {rank} ended by {end}, and so did the one that did the task "
        "again. Where memory ran out, set engine.workers to fewer or divide the input into smaller "
        "files; the same command goes on from here"
    )
