"""Logging and progress: standard logging, a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger("pivots")

PLAIN_INTERVAL_SECONDS = 15.0


def setup_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send the project's log lines to standard error; called by the command line only."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


class Ticker:
    """Counts work done; `advance(n)` after each piece, `note(text)` for a figure worth seeing."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._bar, self._note = bar, ""
        self._task = bar.add_task(title, total=total, unit=unit, note="") if bar else None
        self._start = self._last = time.monotonic()

    def note(self, text: str) -> None:
        """Show `text` (say, the current loss) beside the counts."""
        self._note = text

    def advance(self, amount: int = 1) -> None:
        """Record `amount` more units done, and show it if it is time to."""
        self.done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
            return
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL_SECONDS:
            self._last = now
            rate = self.done / (now - self._start)
            left = (self.total - self.done) / rate if rate else float("inf")
            log.info(
                "%s: %d/%d %s, %.3g/s, %.0f s left %s",
                self.title, self.done, self.total, self.unit, rate, left, self._note,
            )  # fmt: skip


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Ticker]:
    """Show done/total, rate and time left of a piece of work of `total` units."""
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        ) as bar:
            yield Ticker(title, total, unit, bar)
    else:
        yield Ticker(title, total, unit, None)
