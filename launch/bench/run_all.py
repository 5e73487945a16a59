"""Runs the benchmarks that need no GPU, one after another, and ends with their JSON lines."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "cooccurrence", "memory", "windows", "tokenizing", "text_to_scores", "matching", "scoring",
    "lens", "lens_memory", "training",
)  # fmt: skip


def main() -> int:
    """Run all; returns 1 if one of them failed (a target that is not met is no failure)."""
    lines = []
    failed = False
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"launch.bench.{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="", flush=True)
        failed = failed or done.returncode != 0
        lines += done.stdout.splitlines()[-1:]
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
