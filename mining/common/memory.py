"""Memory of this process and of those it started."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def resident_bytes() -> int:
    """Memory that this process and all below it hold now; shared pages count for each of them.

    Where the system does not say (it is not Linux), the most that this process ever held.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    total = sum(_resident_pages(pid) for pid in _family(os.getpid())) * page
    return total or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants; those that end meanwhile are left out."""
    yield pid
    try:
        paths = list((PROC / str(pid) / "task").glob("*/children"))
    except OSError:  # it ended meanwhile
        return
    for path in paths:
        for child in _words(path):
            yield from _family(int(child))


def _resident_pages(pid: int) -> int:
    fields = _words(PROC / str(pid) / "statm")
    return int(fields[1]) if len(fields) > 1 else 0


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except OSError:
        return []
