"""What the benchmarks share: interleaved timing and the JSON line at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; the ways take turns, so that a busy machine hits all alike.

    Each runs once before it is timed (compilation, caches).
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(name: str, ratio: float, target: float, **figures: Any) -> None:
    """Print a benchmark's last line; `ratio`: how many times faster ours is than the other way."""
    line = {"name": name, "ratio": round(ratio, 2), "target": target, "met": ratio >= target}
    print(json.dumps({**line, **figures}))


def memory_status(name: str) -> int:
    """A line of this process's status in KiB: VmRSS is resident now, VmHWM the most so far.

    getrusage's maximum would begin with that of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
