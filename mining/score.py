"""The `score` stage: the share of pivots among a document's tokens (METHOD section 4, step 3)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.files import atomic_path
from mining.common.shards import common_info, list_shards, read_shard, write_table
from mining.common.stage import StageInput, begin, read_manifest, require_same, settings_dict
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
    run_tasks("score", task, len(shards), run.work / "tasks", engine)
    run.finish({**_totals(out), "unit": info.unit, "fingerprint": info.fingerprint})


def pivot_mask(pivots: Path) -> npt.NDArray[np.bool_]:
    """The pivot set of a `pivots` folder as bool [largest pivot id + 1]."""
    table = pq.read_table(pivots / "pivots.parquet", columns=["id", "is_pivot"])
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


def _score_shard(shard: Path, mask: npt.NDArray[np.bool_]) -> tuple[pa.Table, list[int]]:
    batches = []
    n_chars: list[int] = []
    for batch in read_shard(shard):
        n_pivots = count_pivots(batch.tokens, batch.offsets, mask)
        n_tokens = np.diff(batch.offsets)
        columns = {
            "id": batch.id,
            "lang": batch.lang,
            "source": batch.source,
            "group": batch.group,
            "n_tokens": n_tokens,
            "n_pivots": n_pivots,
            "proportion": n_pivots / np.maximum(n_tokens, 1),
        }
        batches.append(pa.table(columns, schema=SCHEMA))
        n_chars.extend(batch.n_chars.tolist())
    return (pa.concat_tables(batches) if batches else SCHEMA.empty_table()), n_chars


def _write_attributes(path: Path, table: pa.Table, n_chars: list[int], name: str) -> None:
    """Dolma's rows: {"id", "attributes": {name: [[start, end, value]]}}, borders in characters."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file,
    ):
        for line in _attribute_lines(table, n_chars, name):
            file.write(line.encode("utf-8"))


def _attribute_lines(table: pa.Table, n_chars: list[int], name: str) -> Iterator[str]:
    rows = zip(table["id"].to_pylist(), n_chars, table["proportion"].to_pylist(), strict=True)
    for identifier, chars, value in rows:
        row: dict[str, Any] = {"id": identifier, "attributes": {name: [[0, chars, value]]}}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _totals(out: Path) -> dict[str, Any]:
    """Documents, tokens and pivots in all and by language."""
    columns = ["lang", "n_tokens", "n_pivots", "proportion"]
    frame = pa.concat_tables(
        pq.read_table(path, columns=columns) for path in sorted((out / "scores").glob("*.parquet"))
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
