"""Logging and progress: a rich bar on a terminal, plain lines elsewhere and in a log file.

`setup_logging` decides what the terminal shows; `log_to_file` adds a file that gets the same lines
whatever the terminal shows, and while a bar runs there, a line of figures every 15 seconds.
"""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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

from mining.common.memory import resident_bytes
from mining.common.secret_words import mask_urls

log = logging.getLogger("pivots")

PLAIN_INTERVAL_SECONDS = 15.0
MEMORY_INTERVAL_SECONDS = 2.0
MIB = 1 << 20
FILE_ONLY = {"file_only": True}


class MaskingFormatter(logging.Formatter):
    """Writes lines without the secrets of URLs, such as a store's signed links in its errors."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return mask_urls(super().format(record))


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the time: a running bar puts itself in its place."""

    def __init__(self, level: int) -> None:
        logging.Handler.__init__(self, level)
        self.addFilter(lambda record: not getattr(record, "file_only", False))
        self.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error as it is now."""
        return sys.stderr


def setup_logging(verbose: bool = False, quiet: bool = False) -> None:
    """Send the project's log lines to standard error; called by the command line only.

    `quiet` leaves warnings and errors, and no bars; `verbose` adds details.
    """
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    log.handlers[:] = [TerminalHandler(level)]
    log.setLevel(min(level, logging.INFO))
    log.propagate = False


class RunLogHandler(logging.FileHandler):
    """Writes the run's log file; a line that the disk does not take is left out.

    The terminal has it, and the work itself tells of the disk if it needs it.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # the library's name
        """Say what is wrong with a record, unless it is the disk."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to_file(path: Path) -> None:
    """Append the log lines to a file too, quiet or not; called by the command line only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RunLogHandler(path, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname).1s %(message)s"))
    log.addHandler(handler)


class Ticker:
    """Counts work done; `advance(n)` after each piece, `note(text)` for a figure worth seeing."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._bar, self._note = bar, ""
        self._start = self._last = time.monotonic()
        self._memory, self._measured = 0, float("-inf")
        self._task = None
        if bar is not None:
            self._task = bar.add_task(title, total=total, unit=unit, rate="", memory="", note="")

    def note(self, text: str) -> None:
        """Show `text` (say, the current loss) beside the counts."""
        self._note = text

    def advance(self, amount: int = 1) -> None:
        """Record `amount` more units done, and show it if it is time to."""
        self.done += amount
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=self.done, note=self._note, rate=self._rate_text(now),
                memory=self._memory_text(now),
            )  # fmt: skip
        if now - self._last >= PLAIN_INTERVAL_SECONDS:
            self._last = now
            self._line(now, f"{self._time_left(now)} left", file_only=self._bar is not None)

    def end(self) -> None:
        """Write how much was done in how long, into the log file."""
        now = time.monotonic()
        self._line(now, f"took {_duration(now - self._start)}", file_only=True)

    def _line(self, now: float, time_text: str, file_only: bool) -> None:
        log.info(
            "%s: %d/%d %s, %s, %s, %s %s",
            self.title, self.done, self.total, self.unit, self._rate_text(now), time_text,
            self._memory_text(now), self._note, extra=FILE_ONLY if file_only else None,
        )  # fmt: skip

    def _rate_text(self, now: float) -> str:
        return f"{self.done / max(1e-9, now - self._start):.3g}/s"

    def _time_left(self, now: float) -> str:
        if not self.done:
            return "?"
        return _duration((self.total - self.done) * (now - self._start) / self.done)

    def _memory_text(self, now: float) -> str:
        if now - self._measured >= MEMORY_INTERVAL_SECONDS:
            self._memory, self._measured = resident_bytes(), now
        return f"{self._memory // MIB:,} MiB"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _on_terminal() -> bool:
    """Whether lines of progress go to a terminal that can show a bar."""
    shown = any(isinstance(h, TerminalHandler) and h.level <= logging.INFO for h in log.handlers)
    return shown and sys.stderr.isatty()


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Ticker]:
    """Show done/total, rate, time left and memory of a piece of work of `total` units."""
    if _on_terminal():
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        ) as bar:
            ticker = Ticker(title, total, unit, bar)
            yield ticker
    else:
        ticker = Ticker(title, total, unit, None)
        yield ticker
    ticker.end()
