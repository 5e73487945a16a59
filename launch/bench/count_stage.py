"""The `count` stage from token shards to tables, against the kernel alone; two workers against one.

    python -m launch.bench.count_stage [--tokens 1_000_000_000] [--folder KEPT]

Generated shards in the project's format. The kernel's own time is that of the different items, the
index and the pairs of the same documents in memory, without reading or writing. One core, then two.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from launch.bench.cooccurrence import count_blocks, count_pairs_of
from launch.bench.documents import write_shards, write_tokenizer
from launch.bench.timing import report
from mining.common.files import read_json
from mining.common.manifest import RUN, read_manifest
from mining.common.shards import list_shards
from mining.count import run_count
from mining.engine_settings import EngineSettings
from mining.kernels.cooccurrence import (
    NOT_AN_ITEM,
    Block,
    block_documents,
    index_block,
    unique_items,
)
from mining.pieces import read_pieces
from mining.settings import CountSettings

TARGET, WORKERS_TARGET = 0.6, 1.7


def kernel_seconds(tokens: Path, counted: Path, n_ids: int) -> tuple[float, int]:
    """Seconds of the kernel for the documents of a `tokenize` folder, and the pairs in them."""
    import pyarrow.parquet as pq

    ids = pq.read_table(counted / "items.parquet")["id"].to_numpy()
    item_of = np.full(n_ids, NOT_AN_ITEM, dtype=np.int32)
    item_of[ids] = np.arange(len(ids), dtype=np.int32)
    blocks: list[Block] = []
    held: list[tuple[np.ndarray, np.ndarray]] = []
    seconds, n_pairs, n_documents = 0.0, 0, 0
    most = block_documents(len(ids))

    def close() -> None:
        items = np.concatenate([found for found, _ in held])
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([size for _, size in held]))])
        blocks.append(index_block(items, offsets.astype(np.int64), len(ids)))
        held.clear()

    for piece in read_pieces(list_shards(tokens / "tokens"), n_ids, 0, 1):
        keep = np.ones(len(piece), dtype=np.bool_)
        start = time.perf_counter()
        found = unique_items(piece.tokens, piece.offsets, keep, item_of, len(ids))
        held.append((found[0], np.diff(found[1])))
        n_documents += len(piece)
        if n_documents + len(piece) > most:
            close()
            n_documents = 0
        seconds += time.perf_counter() - start
        n_pairs += count_pairs_of(found)
    start = time.perf_counter()
    if held:
        close()
    for _ in count_blocks(blocks, len(ids)):
        pass
    return seconds + time.perf_counter() - start, n_pairs


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000_000)
    parser.add_argument("--mean_tokens", type=int, default=600, help="mean length of a document")
    parser.add_argument("--items", type=int, default=32_768)
    parser.add_argument("--ids", type=int, default=65_536, help="size of the vocabulary")
    parser.add_argument("--memory_limit", default=None)
    parser.add_argument("--folder", type=Path, default=None, help="keeps the shards for next time")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp())
    try:
        _run(options, root)
    finally:
        if options.folder is None:
            shutil.rmtree(root)


def _run(options: argparse.Namespace, root: Path) -> None:
    tokenizer = root / "tokenizer"
    if not tokenizer.exists():
        write_tokenizer(tokenizer, options.ids)
    folders = {}
    for name, n_tokens in (("warm", 2_000_000), ("tokens", options.tokens)):
        folders[name] = write_shards(
            root / f"{name}-{n_tokens}", tokenizer, n_tokens, options.mean_tokens, options.ids
        )
    settings = CountSettings(top_items=options.items, memory_limit=options.memory_limit)
    seconds: dict[str, float] = {}
    out = root / "count"
    for workers in (1, 2):
        for name, folder in folders.items():
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            run_count(settings, out, folder, tokenizer, EngineSettings(workers=workers))
            seconds[f"{name}_{workers}"] = time.perf_counter() - start
    noted = read_json(out / RUN)
    seconds["kernel"], n_pairs = kernel_seconds(folders["tokens"], out, options.ids)
    one, two = seconds["tokens_1"], seconds["tokens_2"]
    print(f"kernel {n_pairs / seconds['kernel'] / 1e6:.4g} M pairs/s")
    print(f"stage  {n_pairs / one / 1e6:.4g} M pairs/s, two workers {n_pairs / two / 1e6:.4g}")
    report(
        "count_stage",
        seconds["kernel"] / one,
        TARGET,
        workers_ratio=round(one / two, 2),
        workers_target=WORKERS_TARGET,
        met=seconds["kernel"] / one >= TARGET and one / two >= WORKERS_TARGET,
        items=options.items,
        tokens=options.tokens,
        pairs=n_pairs,
        rows=read_manifest(out).counts["pairs"],
        seconds=seconds,
        expected_seconds=noted.get("expected", {}).get("seconds"),
        output_bytes=sum(path.stat().st_size for path in (out / "pairs").iterdir()),
    )
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
