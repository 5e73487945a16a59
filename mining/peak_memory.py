"""The most memory that this process has had resident, as Linux counts it."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Begin a new peak here, where the system can; else it stays that of the whole process."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_bytes() -> int:
    """The peak since `reset_peak`, in bytes; memory-mapped files count while they are mapped."""
    with contextlib.suppress(OSError, StopIteration):
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
