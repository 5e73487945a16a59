"""Word-id shards beside the token shards: the same documents as lists of word ids.

Three passes: words of each file under local ids (while the text is at hand), document frequencies
over all files, then the final ids: by falling document frequency, ties by the word; 0 is "any
other word".
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.files import atomic_path
from mining.common.shards import (
    SCHEMA,
    WRITE_OPTIONS,
    ShardInfo,
    as_batch,
    open_table,
    read_columns,
    shard_metadata,
    write_table,
)
from mining.documents import Record
from mining.engine_settings import EngineSettings
from mining.pieces import save_array
from mining.segment import words
from mining.settings import TokenizeSettings
from mining.tasks import run_tasks


class LocalWords:
    """Collects a file's words under local ids, in the order in which they are first seen."""

    def __init__(self, writer: pq.ParquetWriter | None) -> None:
        self._writer = writer
        self.ids: dict[str, int] = {}

    def write(self, batch: list[tuple[Record, str]]) -> None:
        """Segment a batch of documents and write its rows."""
        if self._writer is None:
            return
        ids = self.ids
        lists = [
            [ids.setdefault(word, len(ids)) for word in words(record.text, lang)]
            for record, lang in batch
        ]
        columns = [
            pa.array([record.id for record, _ in batch]),
            pa.array([lang for _, lang in batch]),
            pa.array([record.source for record, _ in batch]),
            pa.array([record.group for record, _ in batch], pa.string()),
            pa.array([len(record.text) for record, _ in batch], pa.int64()),
            pa.array(lists, pa.list_(pa.uint32())),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


@contextlib.contextmanager
def local_words(path: Path, wanted: bool) -> Iterator[LocalWords]:
    """Collect a file's words into `path`, and its local vocabulary beside it."""
    if not wanted:
        yield LocalWords(None)
        return
    with atomic_path(path) as temporary:
        with pq.ParquetWriter(temporary, SCHEMA, **WRITE_OPTIONS) as writer:
            local = LocalWords(writer)
            yield local
        write_table(_vocabulary_path(path), pa.table({"word": pa.array(local.ids, pa.string())}))


def write_word_shards(
    settings: TokenizeSettings,
    parts: Path,
    keep: list[npt.NDArray[np.bool_]],
    out: Path,
    work: Path,
    engine: EngineSettings,
) -> dict[str, int]:
    """Write `words/<k>.parquet` and `words/vocabulary.parquet` from the files' parts.

    `keep` says for each file which of its rows are documents. Returns counts for the manifest.
    """
    doc_freq: Counter[str] = Counter()
    for k, mask in enumerate(keep):
        part = parts / f"{k:05d}.words.parquet"
        vocabulary = read_columns(_vocabulary_path(part))["word"].to_pylist()
        for local, count in enumerate(_local_doc_freq(part, mask, len(vocabulary)).tolist()):
            if count:
                doc_freq[vocabulary[local]] += count
    frequent = [(w, n) for w, n in doc_freq.items() if n >= settings.word_min_doc_freq]
    frequent.sort(key=lambda item: (-item[1], item[0]))
    frequent = frequent[: settings.max_words]
    digest = hashlib.sha256("\n".join(word for word, _ in frequent).encode()).hexdigest()
    table = pa.table(
        {
            "id": pa.array(range(1, len(frequent) + 1), pa.uint32()),
            "word": pa.array([word for word, _ in frequent], pa.string()),
            "doc_freq": pa.array([count for _, count in frequent], pa.uint64()),
        }
    )
    write_table(out / "words" / "vocabulary.parquet", table, {"fingerprint": digest})
    for k, mask in enumerate(keep):
        save_array(_mask_path(parts, k), mask)
    task = partial(_final_ids, parts=parts, n_parts=len(keep), out=out, fingerprint=digest)
    run_tasks("tokenize: words", task, len(keep), work / "word_tasks", engine)
    return {"vocabulary": len(frequent), "rare": len(doc_freq) - len(frequent)}


def _vocabulary_path(part: Path) -> Path:
    return part.with_suffix(".vocabulary")


def _mask_path(parts: Path, k: int) -> Path:
    # Not among a task's arguments: every task would be sent the masks of all parts.
    return parts / f"{k:05d}.keep.npy"


def _local_doc_freq(part: Path, keep: npt.NDArray[np.bool_], n_words: int) -> npt.NDArray[np.int64]:
    """In how many kept documents of a file each local word stands: int64 [n_words]."""
    counts = np.zeros(n_words, dtype=np.int64)
    done = 0
    with open_table(part) as file:
        for rows in file.iter_batches():
            batch = as_batch(rows)
            mask = keep[done : done + len(batch)]
            done += len(batch)
            document = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
            kept = mask[document]
            # One number a (document, word), so that a word counts once a document.
            pairs = np.unique(document[kept] * n_words + batch.tokens[kept])
            counts += np.bincount(pairs % n_words, minlength=n_words) if n_words else 0
    return counts


def _final_ids(
    rank: int,
    world_size: int,
    parts: Path,
    n_parts: int,
    out: Path,
    fingerprint: str,
) -> None:
    vocabulary = read_columns(out / "words" / "vocabulary.parquet", columns=["word"])
    final = {word: i for i, word in enumerate(vocabulary["word"].to_pylist(), start=1)}
    schema = SCHEMA.with_metadata(shard_metadata(ShardInfo("word", fingerprint)))
    for k in range(rank, n_parts, world_size):
        part = parts / f"{k:05d}.words.parquet"
        local = read_columns(_vocabulary_path(part))["word"].to_pylist()
        keep = np.load(_mask_path(parts, k), allow_pickle=False)
        mapping = np.array([final.get(word, 0) for word in local], dtype=np.uint32)
        done = 0
        with (
            atomic_path(out / "words" / f"{k:05d}.parquet") as temporary,
            open_table(part) as file,
            pq.ParquetWriter(temporary, schema, **WRITE_OPTIONS) as writer,
        ):
            for rows in file.iter_batches():
                lists = rows.column("tokens")
                tokens = pa.ListArray.from_arrays(
                    lists.offsets, pa.array(mapping[lists.values.to_numpy()])
                )
                mask = pa.array(keep[done : done + len(rows)])
                done += len(rows)
                columns = [*rows.columns[:-1], tokens]
                table = pa.Table.from_arrays(columns, schema=SCHEMA)
                writer.write_table(table.filter(mask).cast(schema))
