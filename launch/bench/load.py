"""Millions of documents through tokenize, count, pivots, score and mix: peak memory of each stage.

    python -m launch.bench.load --documents 2_000_000 --corpus FOLDER
    python -m launch.bench.load --documents 20_000          # whether it runs; too small to tell

The documents of a folder (or generated ones) again and again, each time cut elsewhere, put together
the other way round and with a number of its own, so that no two are the same. The chain runs twice,
on a tenth of the documents and on all, each stage by its own command. Its memory is the largest sum
of the resident memory of all its processes, looked at ten times a second; what each further
document takes is the difference between the two runs. The table (Markdown) has both runs.

Buffers that are full at one size and half empty at the other, and libraries that give memory back
now or later, make RESOLUTION_BYTES of difference without any growth. Where the further documents
are so few that this alone would be more than the target for each, the command says that they are
too few, and `met` is null. The last line is JSON; its ratio is the 1,024 bytes that a further
document may take to what it takes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import psutil
import zstandard

from launch.bench.text_to_scores import generated_texts, given_texts
from launch.bench.timing import report
from mining.common.manifest import read_manifest

Figures = dict[str, dict[str, float]]  # by stage: peak_mb, largest_process_mb, seconds
STAGES = ("tokenize", "count", "pivots", "score", "mix")
TARGET_BYTES = 1024.0  # of memory that a further document may take
RESOLUTION_BYTES = 256e6  # differences below this say nothing about growth
POLL_SECONDS = 0.1
GROWTH = 10


def write_corpus(
    texts: list[tuple[str, str]], folder: Path, n_documents: int, n_chars: int, n_files: int
) -> None:
    """Write `n_documents` of at most `n_chars` characters each, in `n_files` files."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    order = rng.permutation(len(texts)).tolist()
    numbers = iter(range(n_documents))
    for k in range(n_files):
        own = list(itertools.islice(numbers, -(-n_documents // n_files)))
        places = rng.random(len(own)).tolist()
        with zstandard.open(
            folder / f"{k:03d}.jsonl.zst", "wb", cctx=zstandard.ZstdCompressor(level=1)
        ) as file:
            for number, place in zip(own, places, strict=True):
                language, text = texts[order[number % len(order)]]
                cut = int(place * (len(text) + 1))
                head = f"{number} {text[cut : cut + n_chars]} "
                text = (head + text[: min(cut, max(0, n_chars - len(head)))])[:n_chars]
                record = {"id": f"d{number}", "lang": language, "source": "load", "text": text}
                file.write(orjson.dumps(record) + b"\n")


def run_stage(stage: str, options: list[str]) -> dict[str, float]:
    """Run one command; its seconds and peak memory."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "launch.cli", stage, *options, "--quiet"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak = largest = 0
    while process.poll() is None:
        sizes = _resident(process.pid)
        peak, largest = max(peak, sum(sizes)), max(largest, *sizes, 0)
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"{stage} failed with status {process.returncode}")
    seconds = time.perf_counter() - start
    return {"peak_mb": peak / 1e6, "largest_process_mb": largest / 1e6, "seconds": seconds}


def _resident(pid: int) -> list[int]:
    """Bytes of resident memory of a process and of each below it."""
    sizes: list[int] = []
    try:
        root = psutil.Process(pid)
        sizes += (p.memory_info().rss for p in [root, *root.children(recursive=True)])
    except psutil.NoSuchProcess:
        pass  # one ended meanwhile; the next look will do
    return sizes


def run_chain(
    texts: list[tuple[str, str]], root: Path, n_documents: int, options: argparse.Namespace
) -> Figures:
    """All stages on so many documents; figures by stage."""
    write_corpus(texts, root / "corpus", n_documents, options.chars, options.files)
    settings = [
        "--out", str(root), "--corpus.path", str(root / "corpus"),
        "--inputs.tokenizer", str(options.tokenizer), "--count.top_items", str(options.items),
        "--pivots.top_share", "0.05", "--mix.budget_tokens", str(20 * n_documents),
        "--mix.min_document_tokens", "1", "--mix.arms", '["random", "pivot", "low-pivot"]',
        "--engine.workers", str(options.workers),
    ]  # fmt: skip
    found = {}
    for stage in STAGES:
        found[stage] = run_stage(stage, settings)
        print(
            f"{n_documents:>10,} documents  {stage:<9} {found[stage]['peak_mb']:8.0f} MB  "
            f"{found[stage]['seconds']:8.1f} s",
            flush=True,
        )
    kept = read_manifest(root / "tokenize", "tokenize").counts["documents"]
    # What the perturbing makes equal by chance is dropped as a duplicate.
    assert kept > 0.99 * n_documents, f"{kept} of {n_documents} documents are left"
    return found


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--corpus", help="folder of documents to repeat; default: generated ones")
    parser.add_argument("--chars", type=int, default=600, help="of a document, at most")
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--items", type=int, default=8192, help="count.top_items")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    texts = given_texts(options.corpus) if options.corpus else generated_texts(2000)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_corpus(texts, root / "sample", min(20_000, options.documents), options.chars, 2)
        options.tokenizer = root / "made" / "tokenizer"
        run_stage(
            "tokenizer",
            ["--out", str(root / "made"), "--corpus.path", str(root / "sample"),
             "--tokenizer.vocab_size", "16000"],
        )  # fmt: skip
        sizes = (options.documents // GROWTH, options.documents)
        small, large = (run_chain(texts, root / str(n), n, options) for n in sizes)
    print(markdown(sizes, small, large))
    growth = {stage: bytes_a_document(sizes, small, large, stage) for stage in STAGES}
    rounded = {
        stage: {key: [round(run[stage][key], 1) for run in (small, large)] for key in large[stage]}
        for stage in STAGES
    }
    found = verdict(growth, sizes)
    print(found.text)
    report(
        "load", TARGET_BYTES / max(1.0, *growth.values()), 1.0, met=found.met, documents=sizes,
        workers=options.workers, stages=rounded,
        bytes_per_further_document={stage: round(value, 1) for stage, value in growth.items()},
    )  # fmt: skip


def bytes_a_document(sizes: tuple[int, int], small: Figures, large: Figures, stage: str) -> float:
    """What a further document adds to a stage's peak."""
    more = large[stage]["peak_mb"] - small[stage]["peak_mb"]
    return more * 1e6 / (sizes[1] - sizes[0])


@dataclass(frozen=True)
class Verdict:
    """Whether the target is met, or None where the documents are too few to tell; in words."""

    met: bool | None
    text: str


def verdict(growth: Mapping[str, float], sizes: tuple[int, int]) -> Verdict:
    """What the bytes a further document of each stage say, at these two sizes."""
    resolution = RESOLUTION_BYTES / (sizes[1] - sizes[0])
    if resolution > TARGET_BYTES:
        needed = RESOLUTION_BYTES / TARGET_BYTES * GROWTH / (GROWTH - 1)
        return Verdict(
            None,
            f"Too small to tell: {RESOLUTION_BYTES / 1e6:.0f} MB that say nothing are "
            f"{resolution:,.0f} bytes for each further document, and {TARGET_BYTES:,.0f} are the "
            f"target; at least {needed:,.0f} documents are needed.",
        )
    stage = max(growth, key=lambda name: growth[name])
    met = growth[stage] <= TARGET_BYTES
    return Verdict(
        met,
        f"{stage} grows most, by {growth[stage]:,.0f} bytes a document (give or take "
        f"{resolution:,.0f}); {TARGET_BYTES:,.0f} are allowed.",
    )


def markdown(sizes: tuple[int, int], small: Figures, large: Figures) -> str:
    """The table for docs/RELIABILITY.md."""
    first, second = (f"{size:,}" for size in sizes)
    lines = [
        f"| stage | peak at {first} | peak at {second} | bytes a further document "
        f"| seconds at {second} |",
        "| --- | --: | --: | --: | --: |",
    ]
    for stage in STAGES:
        before, after = small[stage], large[stage]
        lines.append(
            f"| {stage} | {before['peak_mb']:,.0f} MB | {after['peak_mb']:,.0f} MB "
            f"| {bytes_a_document(sizes, small, large, stage):,.0f} | {after['seconds']:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
