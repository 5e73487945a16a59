"""Runs calls in threads of this process: for work in kernels and Arrow, which let others run.

Threads start at once and share compiled code, where a process of its own first has to load it.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable


class _StopThread(BaseException):
    """Raised in a thread whose result nobody wants any more; no error that a call might handle."""


def run_in_threads(call: Callable[[int], object], numbers: Iterable[int], n_threads: int) -> None:
    """Run `call(number)` for every number, `n_threads` at a time; in this thread if it is one.

    The first exception is raised here. By then the other threads have ended too: each stops as soon
    as it is back from the kernel or the library that it is in.
    """
    if n_threads == 1:
        for number in numbers:
            call(number)
        return
    waiting = deque(numbers)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        error: BaseException | None = None
        with contextlib.suppress(_StopThread):
            try:
                while True:
                    try:
                        number = waiting.popleft()
                    except IndexError:
                        break
                    call(number)
            except _StopThread:
                raise
            except BaseException as raised:  # a panic in Rust is no Exception
                error = raised
            ended.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            if (error := ended.get()) is not None:
                raise error
    except BaseException:
        waiting.clear()
        for thread in threads:
            if thread.is_alive():
                _stop(thread)
        raise
    finally:
        for thread in threads:
            thread.join()


def _stop(thread: threading.Thread) -> None:
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_StopThread)
        )
