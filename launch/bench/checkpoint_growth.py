"""As many checkpoints as a training of a day writes, or more: nothing may grow.

    python -m launch.bench.checkpoint_growth [--checkpoints 1440]

1,440 are one a minute for 24 hours. After the first tenth and at the end the command looks at the
resident memory of this process, its open files, and the files and bytes of the folder, and prints
them as a table in Markdown. The last line is JSON; its ratio is the 4,096 bytes of memory that a
checkpoint may leave to what it leaves.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import psutil
import torch

from launch.bench.timing import report
from training.checkpoint import TrainerState, newest_checkpoint, save_checkpoint
from training.parallel import Holding, kept_buffers, whole_slices

TARGET_BYTES = 4096.0
KEEP, KEEP_EVERY = 2, 500


def look(folder: Path) -> dict[str, int]:
    """Memory, open files, and what lies in the folder."""
    gc.collect()
    process = psutil.Process()
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "resident_bytes": process.memory_info().rss,
        "open_files": process.num_fds(),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "checkpoints": len(list(folder.iterdir())),
    }


def markdown(first: int, before: dict[str, int], last: int, after: dict[str, int]) -> str:
    """The table for docs/RELIABILITY.md."""
    rows = [f"| after checkpoint | {first:,} | {last:,} |", "| --- | --: | --: |"]
    names = {
        "resident_bytes": "resident memory, bytes", "open_files": "open files",
        "checkpoints": "checkpoints in the folder", "files": "files in the folder",
        "bytes": "bytes in the folder",
    }  # fmt: skip
    rows += [f"| {text} | {before[name]:,} | {after[name]:,} |" for name, text in names.items()]
    return "\n".join(rows)


def main() -> None:
    """Write checkpoints; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=1440)
    parser.add_argument("--width", type=int, default=256, help="of the model's layers")
    options = parser.parse_args()
    torch.manual_seed(0)
    width = options.width
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters())
    holding = Holding(0, 1, True, whole_slices(model), optimizer, kept_buffers(model))
    first = max(1, options.checkpoints // 10)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        before = None
        for number in range(1, options.checkpoints + 1):
            model(torch.randn(8, width)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            save_checkpoint(folder, TrainerState(number, 0, []), holding, KEEP, KEEP_EVERY)
            if number == first:
                before = look(folder)
        after = look(folder)
        found = newest_checkpoint(folder)
    assert before is not None
    assert found is not None
    assert found[1].step == options.checkpoints
    kept = KEEP + options.checkpoints // KEEP_EVERY
    assert after["checkpoints"] <= kept, f"{after['checkpoints']} checkpoints, expected {kept}"
    assert after["open_files"] <= before["open_files"]
    print(markdown(first, before, options.checkpoints, after))
    growth = (after["resident_bytes"] - before["resident_bytes"]) / (options.checkpoints - first)
    report(
        "checkpoint_growth", TARGET_BYTES / max(1.0, growth), 1.0,
        checkpoints=options.checkpoints, bytes_a_checkpoint=round(growth),
        after_a_tenth=before, after_all=after,
    )  # fmt: skip


if __name__ == "__main__":
    main()
