"""The `score` stage: the share of pivots among a document's tokens (METHOD section 4, step 3)."""

from __future__ import annotations

import gzip
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from mining.common.files import atomic_path
from mining.common.manifest import read_manifest, require_same
from mining.common.shards import (
    ROWS_PER_GROUP,
    common_info,
    list_shards,
    open_table,
    read_columns,
    write_table,
)
from mining.common.stage import StageInput, begin, settings_dict
from mining.engine_settings import EngineSettings
from mining.kernels.proportion import count_pivots
from mining.settings import ScoreSettings
from mining.tasks import run_tasks

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("n_tokens", pa.int64()),
        ("n_pivots", pa.int64()),
        ("proportion", pa.float64()),
    ]
)


def run_score(
    settings: ScoreSettings, out: Path, tokens: Path, pivots: Path, engine: EngineSettings
) -> None:
    """Write `scores/<k>.parquet` and `attributes/<k>.jsonl.gz`, one row a document, to `out`."""
    run = begin(
        "score",
        out,
        settings_dict(settings),
        {"tokens": StageInput(tokens, "tokenize"), "pivots": StageInput(pivots, "pivots")},
    )
    if run is None:
        return
    counted = read_manifest(pivots, "pivots").counts
    shards = list_shards(tokens / f"{counted['unit']}s")
    info = common_info(shards)
    require_same(
        "the fingerprint of the ids",
        {str(tokens): info.fingerprint, str(pivots): counted["fingerprint"]},
    )
    task = partial(score_shards, shards=shards, pivots=pivots, out=out, name=settings.attribute)
    run_tasks("score", task, len(shards), run.work / "tasks", engine, True)
    run.finish({**_totals(out), "unit": info.unit, "fingerprint": info.fingerprint})


def pivot_mask(pivots: Path) -> npt.NDArray[np.bool_]:
    """The pivot set of a `pivots` folder as bool [largest pivot id + 1]."""
    table = read_columns(pivots / "pivots.parquet", ["id", "is_pivot"])
    ids = table["id"].to_numpy()[table["is_pivot"].to_numpy()]
    mask = np.zeros(int(ids.max()) + 1 if len(ids) else 0, dtype=bool)
    mask[ids] = True
    return mask


def score_shards(
    rank: int, world_size: int, shards: list[Path], pivots: Path, out: Path, name: str
) -> None:
    """Score the shards rank, rank + world_size, ..."""
    mask = pivot_mask(pivots)
    for shard in shards[rank::world_size]:
        table, n_chars = _score_shard(shard, mask)
        _write_attributes(out / "attributes" / f"{shard.stem}.jsonl.gz", table, n_chars, name)
        write_table(out / "scores" / shard.name, table)


def _score_shard(
    shard: Path, mask: npt.NDArray[np.bool_]
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """A shard's rows of SCHEMA, and the characters of its documents (int64 [n_docs])."""
    tables = []
    n_chars = [np.zeros(0, dtype=np.int64)]
    with open_table(shard) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
            lists = batch.column("tokens")
            offsets = lists.offsets.to_numpy().astype(np.int64)
            tokens = lists.values.to_numpy()[offsets[0] : offsets[-1]]
            n_pivots = count_pivots(tokens, offsets - offsets[0], mask)
            n_tokens = np.diff(offsets)
            counted = [n_tokens, n_pivots, n_pivots / np.maximum(n_tokens, 1)]
            # Not by way of Python's strings: these would take longer than everything else here.
            kept = [batch.column(name) for name in SCHEMA.names[:4]]
            tables.append(pa.Table.from_arrays([*kept, *map(pa.array, counted)], schema=SCHEMA))
            n_chars.append(batch.column("n_chars").to_numpy())
    return (pa.concat_tables(tables) if tables else SCHEMA.empty_table()), np.concatenate(n_chars)


def _write_attributes(
    path: Path, table: pa.Table, n_chars: npt.NDArray[np.int64], name: str
) -> None:
    """Dolma's rows: {"id", "attributes": {name: [[start, end, value]]}}, borders in characters."""
    ids, values = table["id"].to_pylist(), table["proportion"].to_pylist()
    lines = (
        orjson.dumps({"id": id_, "attributes": {name: [[0, end, value]]}}) + b"\n"
        for id_, end, value in zip(ids, n_chars.tolist(), values, strict=True)
    )
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as file,
    ):
        while part := b"".join(itertools.islice(lines, ROWS_PER_GROUP)):
            file.write(part)


def _totals(out: Path) -> dict[str, Any]:
    """Documents, tokens and pivots in all and by language."""
    columns = ["lang", "n_tokens", "n_pivots", "proportion"]
    frame = pa.concat_tables(
        read_columns(path, columns=columns) for path in sorted((out / "scores").glob("*.parquet"))
    ).to_pandas()
    by_lang = {
        str(lang): {
            "documents": len(group),
            "tokens": int(group["n_tokens"].sum()),
            "pivots": int(group["n_pivots"].sum()),
            "median_proportion": float(group["proportion"].median()),
            "mean_proportion": float(group["proportion"].mean()),
        }
        for lang, group in frame.groupby("lang")
    }
    return {
        "documents": len(frame),
        "tokens": int(frame["n_tokens"].sum()),
        "pivots": int(frame["n_pivots"].sum()),
        "by_lang": by_lang,
    }
