"""Peak memory of the `count` stage against the formula, for several limits: same bytes.

    python -m launch.bench.memory [--items 8192 32768] [--limits none 600MB]

Each run is a process of its own; its peak is what the operating system says (maximum resident set
size). The ratio is the formula's bytes to the peak, the smallest of all runs: at least 1 is met.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.bench.documents import write_shards, write_tokenizer
from launch.bench.timing import memory_status, report
from mining.byte_sizes import parse_bytes
from mining.common.errors import SettingsError
from mining.common.shards import list_shards
from mining.count import run_count
from mining.count_memory import plan_memory
from mining.engine_settings import EngineSettings
from mining.settings import CountSettings

TARGET = 1.0


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=40_000_000)
    parser.add_argument("--items", type=int, nargs="+", default=[8192, 32_768])
    parser.add_argument("--ids", type=int, default=65_536, help="size of the vocabulary")
    parser.add_argument("--limits", nargs="+", default=["none", "2GB", "least"])
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)  # a run in its own process
    options = parser.parse_args()
    if options.one:
        _count(*options.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        _compare(options, Path(folder))


def _compare(options: argparse.Namespace, root: Path) -> None:
    tokenizer = write_tokenizer(root / "tokenizer", options.ids)
    tokens = write_shards(root / "tokenize", tokenizer, options.tokens, 600, options.ids)
    shards = list_shards(tokens / "tokens")
    runs = []
    for n_items in options.items:
        digests = set()
        for name in options.limits:
            limit = _limit(name, n_items, options.ids, shards)
            arguments = [str(n_items), str(limit), str(root / "count"), str(tokens), str(tokenizer)]
            command = [sys.executable, "-m", "launch.bench.memory", "--one", *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            run = json.loads(done.stdout.splitlines()[-1])
            formula = plan_memory(limit, n_items, options.ids, shards, 1).bytes
            digests.add(run.pop("digest"))
            runs.append({"items": n_items, "limit": limit, "formula": formula, **run})
            print(f"K = {n_items}, limit {name}: peak {run['peak'] / 1e6:.0f} MB, formula "
                  f"{formula / 1e6:.0f} MB")  # fmt: skip
        assert len(digests) == 1, "the limit changes the table"
    ratio = min(run["formula"] / run["peak"] for run in runs)
    report("memory", ratio, TARGET, tokens=options.tokens, runs=runs)


def _limit(name: str, n_items: int, n_ids: int, shards: list[Path]) -> int | None:
    if name == "none":
        return None
    if name != "least":
        return parse_bytes(name)
    try:
        plan_memory(1, n_items, n_ids, shards, 1)
    except SettingsError as error:
        return int(str(error).split("at least ")[1].split()[0])
    raise AssertionError("one byte is enough")


def _count(n_items: str, limit: str, out: str, tokens: str, tokenizer: str) -> None:
    """Count in this process, and print its peak and the hash of the tables as JSON."""
    settings = CountSettings(
        top_items=int(n_items), memory_limit=None if limit == "None" else int(limit)
    )
    # Another run's folder: the settings recorded differ, or the last limit is to be measured again.
    target = Path(out) / f"{n_items}-{limit}"
    run_count(settings, target, Path(tokens), Path(tokenizer), EngineSettings(workers=1))
    digest = hashlib.sha256()
    for path in sorted((target / "pairs").iterdir()):
        digest.update(path.read_bytes())
    peak = memory_status("VmHWM") * 1024
    print(json.dumps({"peak": peak, "digest": digest.hexdigest()}))


if __name__ == "__main__":
    main()
