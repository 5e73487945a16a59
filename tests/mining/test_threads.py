"""Calls in threads: all of them once, and an end to all where one fails."""

from __future__ import annotations

import threading
import time

import pytest

from mining.threads import run_in_threads


@pytest.mark.parametrize("n_threads", [1, 3])
def test_every_number_is_called_once(n_threads: int) -> None:
    called: list[tuple[int, int]] = []
    run_in_threads(lambda k: called.append((k, threading.get_ident())), range(50), n_threads)
    assert sorted(k for k, _ in called) == list(range(50))
    own = threading.get_ident() in {thread for _, thread in called}
    assert own == (n_threads == 1)


def test_a_failure_ends_the_other_threads() -> None:
    """Where they are, and before the error is seen: they write where a next run would write."""
    called: list[int] = []
    busy = threading.Event()

    def call(number: int) -> None:
        called.append(number)
        if number == 1:
            busy.wait()
            raise ValueError("number 1")
        busy.set()
        while True:
            time.sleep(0.001)

    before = threading.active_count()
    with pytest.raises(ValueError, match="number 1"):
        run_in_threads(call, range(50), 2)
    assert sorted(called) == [0, 1]
    assert threading.active_count() == before
