"""Sends mutated records and files through the whole `tokenize` stage, and reconciles the account.

    python -m tests.faults.records                      # 200,000 records, 150,000 of them mutated
    python -m tests.faults.records --records 20000 --seed 7

Three of four records are mutated (tests/faults/mutate.py); they come as JSONL, gzip and zstd, the
archives in several members, and as Parquet and Arrow; of every other file the bytes are damaged as
well. The command checks that the stage ends, that records = documents + quarantined + dropped for
each file, that the quarantine has a line with place and reason for each quarantined record, and
that nothing but the output folder was written. It prints the account as a table in Markdown; the
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.lineage import verify_outputs
from mining.common.manifest import MANIFEST, RUN, read_manifest
from mining.common.shards import list_shards, read_shard
from tests.faults.harness import pivots
from tests.faults.mutate import bad_bytes, bad_record, good_record, packed

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
RECORDS_PER_FILE = 2500
SHARE_BAD = 0.75
TABLE_EVERY = 8  # every eighth file is Parquet or Arrow


def write_corpus(folder: Path, n_records: int, draw: random.Random) -> int:
    """Write files of `n_records` records in all; how many of the files were damaged as such."""
    folder.mkdir(parents=True)
    damaged = written = number = 0
    while written < n_records:
        n = min(RECORDS_PER_FILE, n_records - written)
        if number % TABLE_EVERY == TABLE_EVERY - 1:
            suffix = draw.choice((".parquet", ".arrow"))
            path = folder / f"{number:05d}{suffix}"
            _write_table(path, n, written, draw)
        else:
            suffix = SUFFIXES[number % len(SUFFIXES)]
            path = folder / f"{number:05d}{suffix}"
            lines = [
                (bad_record if draw.random() < SHARE_BAD else good_record)(draw, written + k)
                for k in range(n)
            ]
            path.write_bytes(packed(b"\n".join(lines), suffix, draw.randrange(1, 5)))
        if number % 2:
            path.write_bytes(bad_bytes(draw, path.read_bytes()))
            damaged += 1
        written, number = written + n, number + 1
    return damaged


def _write_table(path: Path, n: int, first: int, draw: random.Random) -> None:
    rows = [json.loads(good_record(draw, first + k)) for k in range(n)]
    for row in rows:
        if draw.random() < SHARE_BAD / 2:
            row[draw.choice(("id", "text", "lang"))] = draw.choice((None, "", "../x", "\0"))
    names = ("id", "text", "lang", "source")
    table = pa.table({name: pa.array([r.get(name) for r in rows], pa.string()) for name in names})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=500)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)


def reconcile(out: Path, corpus: Path) -> dict[str, Any]:
    """Check the finished stage's account; AssertionError where something is lost."""
    verify_outputs(out)
    counts = read_manifest(out, "tokenize").counts
    lines: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for path in sorted((out / "quarantine").glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            entry = json.loads(line)
            assert entry["line"] >= 1
            assert entry["reason"]
            assert len(entry["sha256"]) == 64
            lines[entry["file"]] += 1
            reasons[entry["reason"]] += 1
    names = {path.name for path in corpus.iterdir()}
    assert set(counts["files"]) == names
    for name, entry in counts["files"].items():
        quarantined, dropped = (sum(entry[key].values()) for key in ("quarantined", "dropped"))
        assert entry["records"] == entry["documents"] + quarantined + dropped, name
        assert lines[name] == quarantined, name
    shards = list_shards(out / "tokens")
    ids = [i for path in shards for batch in read_shard(path) for i in batch.id]
    assert len(ids) == len(set(ids)) == counts["documents"]
    assert dict(reasons) == counts["quarantined"]
    return {
        "records": counts["records"],
        "documents": counts["documents"],
        "quarantined": dict(sorted(counts["quarantined"].items())),
        "dropped": dict(sorted(counts["dropped"].items())),
    }


def markdown(found: dict[str, Any]) -> str:
    """The account, as a table for docs/RELIABILITY.md."""
    rows = ["| what became of the records | records |", "| --- | --: |"]
    rows.append(f"| documents | {found['documents']:,} |")
    for what in ("quarantined", "dropped"):
        rows += [f"| {what}: {reason} | {n:,} |" for reason, n in found[what].items()]
    rows.append(f"| **all that were read** | {found['records']:,} |")
    return "\n".join(rows)


def main() -> int:
    """Write the corpus, run the stage, reconcile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument(
        "--seed", type=int, default=os.environ.get("FAULTS_SEED"),
        help="default: FAULTS_SEED, else another each time",
    )  # fmt: skip
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        damaged = write_corpus(root / "corpus", arguments.records, random.Random(seed))
        clean = root / "clean"
        clean.mkdir()
        draw = random.Random(seed + 1)
        (clean / "a.jsonl").write_bytes(b"\n".join(good_record(draw, k) for k in range(500)))
        start = time.monotonic()
        options = (
            "--out", str(root / "run"), "--tokenizer.vocab_size", "300", "--quiet",
            "--engine.workers", "2",
        )  # fmt: skip
        made = pivots(root / "log1", "tokenizer", "--corpus.path", str(clean), *options)
        made.finish()
        pivots(root / "log2", "tokenize", "--corpus.path", str(root / "corpus"), *options).finish()
        seconds = time.monotonic() - start
        found = reconcile(root / "run" / "tokenize", root / "corpus")
        assert {p.name for p in root.iterdir()} == {"corpus", "clean", "run", "log1", "log2"}
        top = {path.name for path in (root / "run" / "tokenize").iterdir()}
        assert top <= {MANIFEST, RUN, ".lock", "tokens", "quarantine", "languages"}, top
    print(markdown(found))
    line = {"name": "faults.records", "seed": seed, "files_damaged": damaged, **found}
    print(json.dumps({**line, "seconds": round(seconds, 1), "met": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
