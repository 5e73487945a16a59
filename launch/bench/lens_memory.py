"""The memory that a batch of the trace takes beside the model: measured, against the estimate.

    python -m launch.bench.lens_memory

For models of several shapes, random weights: what `eval.lens_memory` says beforehand, and the most
bytes of tensors that were alive at once while the lens read batches at every layer (by PyTorch's
profiler; on a CUDA device by its allocator). The estimate should be enough: `ratio` is the smallest
estimated / measured, `loosest` the largest. `resident_mib` is what resident memory rose by on a
CPU: there libraries pack matrices into buffers of their own, and the allocator keeps some of what
was given back. Each shape runs in a process of its own for that reason.

The last shape has two blocks of a model of 7 B parameters, in bfloat16. With --full it has all 32
and batches of 16,384 tokens, as many items as --items asks for (for a GPU).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from eval.lens import batches_by_length
from eval.lens_memory import lens_bytes
from eval.lens_parts import find_parts
from launch.bench.lens import draw_prompts, make_model, ours
from launch.bench.scoring import with_peak
from launch.bench.timing import report

MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    """A model, and batches of `rows` prompts of about `length` tokens, `items` prompts in all."""

    width: int
    layers: int
    vocabulary: int
    rows: int
    length: int
    dtype: str = "float32"
    items: int = 0


SHAPES = (
    Shape(width=256, layers=8, vocabulary=50_000, rows=64, length=96),
    Shape(width=256, layers=8, vocabulary=50_000, rows=64, length=96, items=192),
    Shape(width=256, layers=16, vocabulary=8_000, rows=32, length=256),
    Shape(width=640, layers=8, vocabulary=50_000, rows=32, length=96),
    Shape(width=1024, layers=4, vocabulary=50_000, rows=64, length=64),
)
LARGE = Shape(4096, layers=2, vocabulary=50_000, rows=8, length=102, dtype="bfloat16")


def measure(shape: Shape) -> dict[str, float]:
    """MiB estimated and measured, and the seconds of an item."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, shape.dtype)
    model = make_model(shape.width, shape.layers, shape.vocabulary, dtype, device)
    parts = find_parts(model, None, None)
    prompts = draw_prompts(max(shape.items, shape.rows), shape.length, shape.vocabulary)
    estimate = lens_bytes(model, parts, shape.rows, shape.length)

    def read() -> Sequence[float]:
        started = time.perf_counter()
        for batch in batches_by_length(prompts, shape.rows * shape.length):
            ours(model, parts, [prompts[i] for i in batch])
        return [(time.perf_counter() - started) / len(prompts)]

    ours(model, parts, prompts[:1])  # what libraries load or keep for themselves
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (seconds,) = read()
        peak = torch.cuda.max_memory_allocated() - before
        more = {}
    else:
        found, resident = with_peak(read)
        seconds, more = float(found[0]), {"resident_mib": float(resident)}
        peak = tensor_peak(read)
    return {
        "estimated_mib": round(estimate / MIB, 1),
        "measured_mib": round(peak / MIB, 1),
        **more,
        "seconds_per_item": round(seconds, 4),
    }


def tensor_peak(way: Callable[[], object]) -> int:
    """The most bytes of tensors on the CPU that were alive at once, above those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        way()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    alive = highest = 0
    for change in changes:
        alive += change["args"]["Bytes"]
        highest = max(highest, alive)
    return int(highest)


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all of the model of 7 B parameters")
    parser.add_argument("--items", type=int, default=2000, help="items of the full model")
    options = parser.parse_args()
    large = replace(LARGE, layers=32, rows=160, items=options.items) if options.full else LARGE
    rows = []
    for shape in (*SHAPES, large):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            rows.append({**vars(shape), **pool.submit(measure, shape).result()})
        print(rows[-1], flush=True)
    ratios = [row["estimated_mib"] / row["measured_mib"] for row in rows]
    report("lens_memory", min(ratios), 1.0, loosest=round(max(ratios), 2), shapes=rows)


if __name__ == "__main__":
    main()
