"""Writes each arm's documents with their text, in the arm's order.

The corpus is read once, in tasks of one part each: the text of every document that some arm holds
goes to a spool file. Then each part of an arm's order, of about PART_TOKENS tokens, picks its texts
from there. Memory holds the texts of one part, whatever the size of the corpus.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mining.common.files import atomic_path, read_json, write_json
from mining.common.shards import list_shards, open_table, read_columns, write_table
from mining.common.stage import StageRun
from mining.common.token_file import open_token_file
from mining.common.tokenizer import load_tokenizer
from mining.corpus_text import SHARD_COLUMNS, documents_of, open_text, require_unchanged
from mining.engine_settings import EngineSettings
from mining.inputs import Reader, merge_hashes
from mining.mix_documents import Documents
from mining.mix_select import Selection
from mining.pieces import save_array
from mining.settings import CorpusSettings
from mining.tasks import run_tasks

PART_TOKENS = 1 << 24
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("lang", pa.string()),
        ("source", pa.string()),
        ("n_tokens", pa.int64()),
        ("proportion", pa.float64()),
    ]
)
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A piece of an arm's order: documents first, first + 1, ... last - 1, the arm's k-th piece."""

    arm: str
    k: int
    first: int
    last: int


def export_text(
    formats: Sequence[str],
    run: StageRun,
    corpus: CorpusSettings,
    tokens: Path,
    tokenizer: Path,
    documents: Documents,
    arms: Mapping[str, Selection],
    engine: EngineSettings,
) -> dict[str, str]:
    """Write `<arm>/jsonl/<k>.jsonl.gz` and `<arm>/parquet/<k>.parquet`; return the corpus' hashes.

    Needs the arms' token files and documents.parquet. Raises MismatchError where the corpus is not
    the one that was tokenised.
    """
    shards = list_shards(tokens / "tokens")
    readers = open_text(corpus, tokens, tokenizer, len(shards))
    work = run.work / "text"
    wanted = np.zeros(len(documents), dtype=bool)
    parts = []
    for arm, chosen in arms.items():
        wanted[chosen.rows] = True
        save_array(work / f"{arm}-rows.npy", chosen.rows)
        cut = chosen.sizes <= documents.n_tokens[chosen.rows]
        save_array(work / f"{arm}-cut.npy", cut)
        parts += list_parts(arm, chosen.sizes)
    rows = np.flatnonzero(wanted)
    save_array(work / "rows.npy", rows)
    spool = partial(spool_texts, readers=readers, shards=shards, starts=documents.starts, work=work)
    run_tasks("mix: text", spool, len(shards), work / "tasks", engine)
    write = partial(
        write_parts, parts=parts, formats=formats, starts=documents.starts, work=work, out=run.out,
        tokenizer=tokenizer,
    )  # fmt: skip
    run_tasks("mix: export", write, len(parts), work / "part-tasks", engine)
    hashes = merge_hashes(read_json(work / f"{k:05d}.json") for k in range(len(shards)))
    require_unchanged(hashes, tokens)
    return hashes


def list_parts(arm: str, sizes: Integers) -> list[Part]:
    """The pieces of an arm with documents of these sizes; each begins a document."""
    starts = np.cumsum(sizes) - sizes
    first = np.flatnonzero(np.diff(starts // PART_TOKENS, prepend=-1))
    borders = [*first.tolist(), len(sizes)]
    return [Part(arm, k, borders[k], borders[k + 1]) for k in range(len(borders) - 1)]


def spool_texts(
    rank: int,
    world_size: int,
    readers: Sequence[Reader],
    shards: Sequence[Path],
    starts: Integers,
    work: Path,
) -> None:
    """Write the wanted texts of the shards rank, rank + world_size, ..., one file a shard.

    `<k>-ends.npy` int64 holds where each text ends in `<k>.txt`, in bytes of UTF-8.
    """
    wanted = np.load(work / "rows.npy", mmap_mode="r", allow_pickle=False)
    for k in range(rank, len(shards), world_size):
        first, last = np.searchsorted(wanted, starts[k : k + 2])
        left = iter((wanted[first:last] - starts[k]).tolist())
        table = read_columns(shards[k], SHARD_COLUMNS)
        ends = []
        end = 0
        with atomic_path(work / f"{k:05d}.txt") as temporary, temporary.open("wb") as handle:
            following = next(left, None)
            for row, record in enumerate(documents_of(readers[k], table, shards[k])):
                if row == following:
                    end += handle.write(record.text.encode("utf-8"))
                    ends.append(end)
                    following = next(left, None)
        save_array(work / f"{k:05d}-ends.npy", np.array(ends, dtype=np.int64))
        write_json(work / f"{k:05d}.json", dict(readers[k].hashes))


def write_parts(
    rank: int,
    world_size: int,
    parts: Sequence[Part],
    formats: Sequence[str],
    starts: Integers,
    work: Path,
    out: Path,
    tokenizer: Path,
) -> None:
    """Write the parts rank, rank + world_size, ... in each format."""
    for part in parts[rank::world_size]:
        rows = np.load(work / f"{part.arm}-rows.npy", mmap_mode="r", allow_pickle=False)
        texts = _texts(np.asarray(rows[part.first : part.last]), starts, work)
        _cut(texts, part, work, out, tokenizer)
        found = document_rows(out / part.arm / "documents.parquet", part.first, part.last)
        table = found.append_column("text", pa.array(texts, pa.string())).select(SCHEMA.names)
        # Readers drop or refuse empty texts: of a document's last cut, end-of-text may be all.
        table = table.filter(pc.greater(table["n_tokens"], 1)).cast(SCHEMA)
        if "jsonl" in formats:
            _write_jsonl(out / part.arm / "jsonl" / f"{part.k:05d}.jsonl.gz", table.to_batches())
        if "parquet" in formats:
            write_table(out / part.arm / "parquet" / f"{part.k:05d}.parquet", table)


def document_rows(path: Path, first: int, last: int) -> pa.Table:
    """Rows first ... last - 1 of an arm's documents.parquet; other row groups are not read.

    Raises InputError where a page is damaged.
    """
    with open_table(path) as file:
        groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        ends = np.cumsum(groups)
        starts = ends - groups
        own = np.flatnonzero((starts < last) & (ends > first))
        columns = [name for name in SCHEMA.names if name != "text"]
        table = file.read_row_groups(own.tolist(), columns)
        return table.slice(first - int(starts[own[0]]), last - first)


def _texts(rows: Integers, starts: Integers, work: Path) -> list[str]:
    """The texts of some documents, in the given order."""
    wanted = np.load(work / "rows.npy", mmap_mode="r", allow_pickle=False)
    texts = [""] * len(rows)
    shard_of = np.searchsorted(starts, rows, side="right") - 1
    for k in np.unique(shard_of).tolist():
        here = np.flatnonzero(shard_of == k)
        here = here[np.argsort(rows[here], kind="stable")]  # in the order of the file
        place = np.searchsorted(wanted, rows[here]) - np.searchsorted(wanted, starts[k])
        ends = np.load(work / f"{k:05d}-ends.npy", mmap_mode="r", allow_pickle=False)
        with (work / f"{k:05d}.txt").open("rb") as handle:
            for index, number in zip(here.tolist(), place.tolist(), strict=True):
                start = int(ends[number - 1]) if number else 0
                handle.seek(start)
                texts[index] = handle.read(int(ends[number]) - start).decode("utf-8")
    return texts


def _cut(texts: list[str], part: Part, work: Path, out: Path, tokenizer: Path) -> None:
    """Replace the texts of which the arm has only a part by what its tokens spell."""
    cut = np.load(work / f"{part.arm}-cut.npy", mmap_mode="r", allow_pickle=False)
    places = np.flatnonzero(cut[part.first : part.last])
    if not len(places):
        return
    loaded = load_tokenizer(tokenizer)
    tokens, ends = open_token_file(out / part.arm / "tokens.ds", loaded.vocab_size)
    for place in places.tolist():
        number = part.first + place
        start = int(ends[number - 1]) if number else 0
        texts[place] = loaded.decode(tokens[start : int(ends[number]) - 1].tolist())


def _write_jsonl(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file,
    ):
        for batch in batches:
            for row in batch.to_pylist():
                file.write(orjson.dumps(row) + b"\n")
