"""The account of a `tokenize` run: what became of the records, by file, language and source.

A corpus may have a source for each document (its URL), so that sources are added up on disk: each
part leaves a table of its own, in the order of 256 buckets by the hash of the name, and buckets are
added up as many at a time as are small enough. The manifest names the largest sources and says what
the others come to.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mining.common.files import atomic_path
from mining.common.logs import log
from mining.common.shards import ROWS_PER_GROUP, WRITE_OPTIONS, open_table
from mining.duplicates import KEPT, NEAR_TEXT, SAME_ID, SAME_TEXT, Verdict, rows_path
from mining.settings import CorpusSettings

SOURCES_SHOWN = 100
# Of a part, of which several are at work; and of all parts, each of which is opened once for it.
PART_SOURCES_AT_A_TIME, SOURCES_AT_A_TIME = 1 << 16, 1 << 18
BUCKETS = 256
SUMS = ("documents", "chars", "tokens")
SOURCES_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.uint16()),
        pa.field("source", pa.string()),
        *(pa.field(name, pa.int64()) for name in SUMS),
    ]
)


def settle(report: dict[str, Any], verdict: Verdict, parts: Path, k: int) -> None:
    """Complete a part's account: the duplicates, and what its documents come to by language.

    What they come to by source goes into a table beside the part.
    """
    for reason, code, kind in (
        ("duplicate id", SAME_ID, "quarantined"),
        ("duplicate text", SAME_TEXT, "dropped"),
        ("near-duplicate text", NEAR_TEXT, "dropped"),
    ):
        if n_rows := int((verdict == code).sum()):
            report[kind][reason] = report[kind].get(reason, 0) + n_rows
    report["documents"] = int((verdict == KEPT).sum())
    by_lang: dict[str, dict[str, int]] = {}
    pending: list[pa.Table] = []
    with (
        atomic_path(_sources_path(parts, k)) as temporary,
        pq.ParquetWriter(temporary, SOURCES_SCHEMA, **WRITE_OPTIONS) as writer,
    ):
        for table in _kept_rows(parts, k, verdict):
            for entry in _add_up([table.drop_columns("source")], "lang").to_pylist():
                _add(by_lang, entry.pop("lang"), entry)
            pending.append(_add_up([table.drop_columns("lang")], "source"))
            if sum(map(len, pending)) > PART_SOURCES_AT_A_TIME:
                pending = [_add_up(pending, "source")]
                if len(pending[0]) > PART_SOURCES_AT_A_TIME // 2:
                    _write_sources(writer, pending.pop())
        if pending:
            _write_sources(writer, _add_up(pending, "source"))
    report["by_lang"] = dict(sorted(by_lang.items()))


def totals(reports: list[dict[str, Any]], parts: Path) -> dict[str, Any]:
    """Sum the parts' accounts; in = out + quarantined + dropped holds for each file and in all.

    `by_source` has the sources with the most tokens; `other_sources` is there if there are others.
    """
    total: dict[str, Any] = {"records": 0, "documents": 0, "languages_identified": 0}
    nested: dict[str, Any] = {"quarantined": Counter(), "dropped": Counter()}
    by_lang: dict[str, dict[str, int]] = {}
    files = {}
    for report in reports:
        bad = sum(report["quarantined"].values()) + sum(report["dropped"].values())
        assert report["records"] == report["documents"] + bad, report
        for key in total:
            total[key] += report[key]
        for key, counter in nested.items():
            counter.update(report[key])
        for lang, entry in report["by_lang"].items():
            _add(by_lang, lang, entry)
        kept = ("records", "documents", "quarantined", "dropped", "languages_identified")
        files[report["file"]] = {key: report[key] for key in kept}
    sums = {name: sum(entry[name] for entry in by_lang.values()) for name in ("tokens", "chars")}
    plain = {key: dict(counter) for key, counter in nested.items()}
    sources = _largest_sources(parts, len(reports))
    return {**total, **sums, **plain, "by_lang": by_lang, **sources, "files": files}


def state_zeros(by_lang: dict[str, Any], corpus: CorpusSettings) -> None:
    """Enter the wanted languages of which there is no document, and say so."""
    missing = [lang for lang in corpus.languages if lang not in by_lang]
    for lang in missing:
        by_lang[lang] = dict.fromkeys(SUMS, 0)
    if missing:
        log.warning("tokenize: no document in %s, of corpus.languages", ", ".join(missing))


def _add(groups: dict[str, dict[str, int]], name: str, entry: dict[str, int]) -> None:
    sums = groups.setdefault(name, dict.fromkeys(SUMS, 0))
    for key in SUMS:
        sums[key] += entry[key]


def _sources_path(parts: Path, k: int) -> Path:
    return parts / f"{k:05d}.sources.parquet"


def _kept_rows(parts: Path, k: int, verdict: Verdict) -> Iterator[pa.Table]:
    """The documents of a part that stay: lang, source and SUMS of each; some at a time."""
    n_tokens = np.load(rows_path(parts, k), allow_pickle=False)[:, 4].astype(np.int64)
    done = 0
    with open_table(parts / f"{k:05d}.parquet") as file:
        columns = ["lang", "source", "n_chars"]
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns):
            rows = slice(done, done + len(batch))
            done += len(batch)
            ones = np.ones(len(batch), dtype=np.int64)
            arrays = [*batch.columns[:2], pa.array(ones), batch["n_chars"]]
            arrays.append(pa.array(n_tokens[rows]))
            table = pa.Table.from_arrays(arrays, names=["lang", "source", *SUMS])
            yield table.filter(pa.array(verdict[rows] == KEPT))


def _add_up(tables: list[pa.Table], key: str) -> pa.Table:
    """A row for each value of `key`, with its sums over all tables."""
    found = pa.concat_tables(tables).group_by(key).aggregate([(name, "sum") for name in SUMS])
    return found.select([key, *(f"{name}_sum" for name in SUMS)]).rename_columns([key, *SUMS])


def _write_sources(writer: pq.ParquetWriter, sources: pa.Table) -> None:
    """Append a table of sources in the order of buckets, so that a reader may skip row groups."""
    names = sources.column("source").to_pylist()
    if not names:
        return  # a row group of no rows would have no least bucket
    buckets = np.array([zlib.crc32(name.encode()) % BUCKETS for name in names], dtype=np.uint16)
    table = sources.add_column(0, "bucket", pa.array(buckets)).cast(SOURCES_SCHEMA)
    writer.write_table(table.sort_by([("bucket", "ascending"), ("source", "ascending")]), 4096)


def _largest_sources(parts: Path, n_parts: int) -> dict[str, Any]:
    """The entries of the manifest for sources; ties go by name."""
    n_rows = sum(pq.read_metadata(_sources_path(parts, k)).num_rows for k in range(n_parts))
    n_passes = min(BUCKETS, -(-n_rows // SOURCES_AT_A_TIME))
    largest = none = SOURCES_SCHEMA.remove(0).empty_table()
    n_sources, all_sums = 0, dict.fromkeys(SUMS, 0)
    for number in range(n_passes):
        first, end = (BUCKETS * (number + ahead) // n_passes for ahead in (0, 1))
        tables = [t for k in range(n_parts) for t in _read_buckets(parts, k, first, end)]
        found = _add_up([none, *tables], "source")
        n_sources += len(found)
        for name in SUMS:
            all_sums[name] += pc.sum(found.column(name)).as_py() or 0
        order = [("tokens", "descending"), ("source", "ascending")]
        largest = pa.concat_tables([largest, found]).sort_by(order)[:SOURCES_SHOWN]
    shown = {row.pop("source"): row for row in largest.sort_by("source").to_pylist()}
    if n_sources <= len(shown):
        return {"by_source": shown}
    # Beside `by_source`: any name in there may be that of a source.
    others = {name: all_sums[name] - sum(row[name] for row in shown.values()) for name in SUMS}
    return {"by_source": shown, "other_sources": {"sources": n_sources - len(shown), **others}}


def _read_buckets(parts: Path, k: int, first: int, end: int) -> Iterator[pa.Table]:
    with open_table(_sources_path(parts, k)) as file:
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group).column(0).statistics
            if found.max >= first and found.min < end:
                table = file.read_row_group(group)
                buckets = table.column("bucket")
                chosen = pc.and_(pc.greater_equal(buckets, first), pc.less(buckets, end))
                yield table.filter(chosen).drop_columns("bucket")
