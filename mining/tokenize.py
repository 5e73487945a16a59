"""The `tokenize` stage: documents in, token shards out; bad records into quarantine.

One task a part of the corpus: a file, or some sequences of token files. A task keeps the part's
good records with hashes of their ids and texts; then, over all parts, a record whose id stood
before goes to quarantine, and one whose text stood before is dropped. What stays becomes a shard:
the k-th part's is `tokens/<k>.parquet`. Where a language was identified, `languages/<k>.parquet`
keeps how sure that is.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import heapq
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.accounts import settle, state_zeros, totals
from mining.common.files import atomic_path, read_json, write_json
from mining.common.manifest import require_same
from mining.common.shards import (
    ROWS_PER_GROUP,
    SCHEMA,
    WRITE_OPTIONS,
    ShardInfo,
    open_table,
    shard_metadata,
    write_table,
)
from mining.common.stage import StageInput, begin, settings_dict
from mining.common.tokenizer import load_tokenizer
from mining.documents import Record, Rejected
from mining.duplicates import (
    KEPT,
    drop_near,
    judge_duplicates,
    read_verdict,
    rows_path,
)
from mining.engine_settings import EngineSettings
from mining.inputs import CorpusInput, Reader, merge_hashes, open_readers
from mining.kept_records import keep_records, kept_texts, requarantine
from mining.langid import check_languages
from mining.pieces import save_array
from mining.sentencepiece_encoder import MODEL, SentencePieceEncoder, load_encoder
from mining.settings import CorpusSettings, TokenizeSettings
from mining.tasks import run_tasks
from mining.word_shards import local_words, write_word_shards

SAMPLE_TEXTS = 64
CHARS_PER_GROUP = 64 << 20
SAMPLE_CHARS = 20_000
LANGUAGES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("lang", pa.string(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
    ]
)


class Encoder(Protocol):
    """Turns texts into token ids."""

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]: ...


def run_tokenize(
    settings: TokenizeSettings,
    corpus: CorpusSettings,
    out: Path,
    tokenizer: Path,
    engine: EngineSettings,
) -> None:
    """Write token shards, word shards if asked, and the quarantine to `out`."""
    run = begin(
        "tokenize",
        out,
        {**settings_dict(settings), "corpus": settings_dict(corpus)},
        {"documents": CorpusInput(corpus), "tokenizer": StageInput(tokenizer, "tokenizer")},
    )
    if run is None:
        return
    readers = open_readers(corpus, tokenizer)
    parts = run.work / "parts"
    loaded = load_tokenizer(tokenizer)
    sample = itertools.islice(_sample(readers), SAMPLE_TEXTS)
    encoder = load_encoder(tokenizer, loaded, sample)
    task = functools.partial(
        tokenize_parts,
        readers=readers,
        corpus=corpus,
        tokenizer=tokenizer,
        parts=parts,
        with_words=settings.words,
        fingerprint=loaded.fingerprint,
        fast=encoder is not None,
    )
    run_tasks("tokenize", task, len(readers), run.work / "tasks", engine)
    found = (read_json(parts / f"{k:05d}.json")["languages"] for k in range(len(readers)))
    check_languages(set(itertools.chain.from_iterable(found)), "the documents")

    judge_duplicates(parts, len(readers), corpus.deduplicate)
    if settings.near_duplicates:
        _drop_near_duplicates(parts, readers, corpus, run.work, engine)
    finish = functools.partial(finish_parts, readers=readers, corpus=corpus, parts=parts, out=out)
    run_tasks("tokenize: shards", finish, len(readers), run.work / "shard_tasks", engine, True)
    reports = [read_json(parts / f"{k:05d}.report.json") for k in range(len(readers))]
    keep = [read_verdict(parts, k) == KEPT for k in range(len(readers))]
    counts = totals(reports, parts)
    state_zeros(counts["by_lang"], corpus)
    counts["fingerprint"] = loaded.fingerprint
    if settings.words:
        counts["words"] = write_word_shards(settings, parts, keep, out, run.work, engine)
    run.record_hashes("documents", merge_hashes(report["hashes"] for report in reports))
    run.finish(counts)


def tokenize_parts(
    rank: int,
    world_size: int,
    readers: list[Reader],
    corpus: CorpusSettings,
    tokenizer: Path,
    parts: Path,
    with_words: bool,
    fingerprint: str,
    fast: bool,
) -> None:
    """Read and tokenise the parts rank, rank + world_size, ... of the corpus."""
    encoder = task_encoder(tokenizer, fingerprint, fast)
    info = ShardInfo("token", fingerprint)
    for k in range(rank, len(readers), world_size):
        _tokenize_one(k, readers[k], corpus, encoder, info, parts, with_words)


@functools.lru_cache(maxsize=1)
def task_encoder(tokenizer: Path, fingerprint: str, fast: bool) -> Encoder:
    """The encoder of a tokenizer folder with this fingerprint.

    Kept for a worker's next task: to load one takes as long as to encode megabytes.
    """
    loaded = load_tokenizer(tokenizer)
    require_same("tokenizer", {str(tokenizer): loaded.fingerprint, "this run": fingerprint})
    return SentencePieceEncoder(tokenizer / MODEL, loaded) if fast else loaded


def finish_parts(
    rank: int,
    world_size: int,
    readers: list[Reader],
    corpus: CorpusSettings,
    parts: Path,
    out: Path,
) -> None:
    """Make shards of the parts rank, rank + world_size, ...; a report of each stays in `parts`."""
    for k in range(rank, len(readers), world_size):
        verdict, report = read_verdict(parts, k), read_json(parts / f"{k:05d}.json")
        duplicates = requarantine(k, verdict, readers[k], corpus, parts)
        bad = parts / f"{k:05d}.quarantine.jsonl"
        _write_quarantine(out / "quarantine" / f"{k:05d}.jsonl", bad, duplicates)
        _finish_shard(parts, k, out, verdict == KEPT)
        _finish_languages(parts, k, out, verdict == KEPT)
        settle(report, verdict, parts, k)
        write_json(parts / f"{k:05d}.report.json", report)


def _sample(readers: list[Reader]) -> Iterator[str]:
    """Some texts of the first files, to try an engine on."""
    for reader in readers:
        records = (item for item in reader if isinstance(item, Record) and item.tokens is None)
        for record in itertools.islice(records, SAMPLE_TEXTS // 8):
            yield record.text[:SAMPLE_CHARS]


def _tokenize_one(
    k: int,
    reader: Reader,
    corpus: CorpusSettings,
    tokenizer: Encoder,
    info: ShardInfo,
    parts: Path,
    with_words: bool,
) -> None:
    parts.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "file": reader.name,
        "records": 0,
        "quarantined": Counter(),
        "dropped": Counter(),
        "languages_identified": 0,
    }
    languages: set[str] = set()
    hashes: list[bytes] = []
    sizes: list[int] = []
    schema = SCHEMA.with_metadata(shard_metadata(info))
    identified: list[tuple[int, str, str, float]] = []
    with (
        # Written at once: where a setting names the wrong field, every record ends here.
        atomic_path(parts / f"{k:05d}.quarantine.jsonl") as bad_path,
        bad_path.open("w", encoding="utf-8") as bad,
        atomic_path(parts / f"{k:05d}.parquet") as temporary,
        pq.ParquetWriter(temporary, schema, **WRITE_OPTIONS) as writer,
        local_words(parts / f"{k:05d}.words.parquet", with_words) as word_writer,
    ):
        good = keep_records(
            reader, corpus, report, identified, lambda item: bad.write(quarantine_line(item))
        )
        for batch in _batches(good):
            languages.update(lang for _, lang in batch)
            check_languages(languages, f"the first {report['records']} records of {reader.name}")
            tokens = _tokens(batch, tokenizer)
            sizes.extend(map(len, tokens))
            writer.write_table(_part_table(batch, tokens).cast(schema))
            word_writer.write(batch)
            for record, _ in batch:
                hashes.append(hashlib.blake2b(record.id.encode(), digest_size=16).digest())
                hashes.append(hashlib.blake2b(record.text.encode(), digest_size=16).digest())
    # A row a record: two numbers of the id's hash, two of the text's, and the number of tokens.
    array = np.frombuffer(b"".join(hashes), dtype="<u8").reshape(-1, 4)
    save_array(rows_path(parts, k), np.column_stack([array, np.array(sizes, dtype="<u8")]))
    report["hashes"] = reader.hashes
    report["languages"] = sorted(languages)
    write_json(parts / f"{k:05d}.languages.json", identified)
    write_json(parts / f"{k:05d}.json", report)


def _tokens(batch: list[tuple[Record, str]], tokenizer: Encoder) -> list[npt.NDArray[np.uint32]]:
    """The documents' tokens: those they came with, or else those of their text."""
    given = [record.tokens for record, _ in batch if record.tokens is not None]
    if given:
        return given  # all documents of a corpus come with tokens, or none
    return tokenizer.encode_batch([record.text for record, _ in batch])


def _batches(records: Iterator[tuple[Record, str]]) -> Iterator[list[tuple[Record, str]]]:
    """Row groups: as many records as one holds, or fewer where their texts are long."""
    batch: list[tuple[Record, str]] = []
    n_chars = 0
    for record, lang in records:
        batch.append((record, lang))
        n_chars += len(record.text)
        if len(batch) == ROWS_PER_GROUP or n_chars >= CHARS_PER_GROUP:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


def _part_table(batch: list[tuple[Record, str]], tokens: list[npt.NDArray[np.uint32]]) -> pa.Table:
    offsets = np.zeros(len(tokens) + 1, dtype=np.int32)
    np.cumsum([len(t) for t in tokens], out=offsets[1:])
    values = np.concatenate(tokens) if tokens else np.zeros(0, np.uint32)
    columns = [
        pa.array([record.id for record, _ in batch]),
        pa.array([lang for _, lang in batch]),
        pa.array([record.source for record, _ in batch]),
        pa.array([record.group for record, _ in batch], pa.string()),
        pa.array([len(record.text) for record, _ in batch], pa.int64()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.uint32())),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _drop_near_duplicates(
    parts: Path, readers: list[Reader], corpus: CorpusSettings, work: Path, engine: EngineSettings
) -> None:
    from mining.near_duplicates import find_near_duplicates  # loads all of datatrove's tokenizers

    texts = functools.partial(kept_texts, readers=readers, corpus=corpus, parts=parts)
    found = find_near_duplicates(len(readers), texts, work / "near", engine)
    # Only now: the tasks that find them read the verdicts, also when they go on after a kill.
    for k, places in enumerate(found):
        drop_near(parts, k, places)


def _write_quarantine(path: Path, bad: Path, duplicates: Iterator[Rejected]) -> None:
    """Merge a file's bad records (JSON lines) and its duplicate ids by line; no file for none."""
    with bad.open(encoding="utf-8") as lines:
        merged = heapq.merge(lines, map(quarantine_line, duplicates), key=_line_number)
        first = next(merged, None)
        if first is None:
            return
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
            handle.write(first)
            handle.writelines(merged)


def _line_number(line: str) -> int:
    return int(json.loads(line)["line"])


def quarantine_line(item: Rejected) -> str:
    """One JSON line: file, line, reason, detail, length, hash, and the record's first 64 KiB.

    `raw` holds them as text; where they are not UTF-8, `raw_base64` holds the bytes.
    """
    entry: dict[str, Any] = {
        "file": item.file,
        "line": item.line,
        "reason": item.reason,
        "detail": item.detail,
        "bytes": item.n_bytes,
        "sha256": item.sha256,
    }
    try:
        entry["raw"] = item.raw.decode("utf-8")
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(item.raw).decode("ascii")
    return json.dumps(entry, ensure_ascii=True) + "\n"


def _finish_shard(parts: Path, k: int, out: Path, keep: npt.NDArray[np.bool_]) -> None:
    part = parts / f"{k:05d}.parquet"
    with atomic_path(out / "tokens" / f"{k:05d}.parquet") as temporary:
        if keep.all():  # nothing to leave out
            try:
                os.link(part, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(part, temporary)
            return
        done = 0
        with (
            open_table(part) as file,
            pq.ParquetWriter(temporary, file.schema_arrow, **WRITE_OPTIONS) as writer,
        ):
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                mask = pa.array(keep[done : done + len(table)])
                done += len(table)
                writer.write_table(table.filter(mask))


def _finish_languages(parts: Path, k: int, out: Path, keep: npt.NDArray[np.bool_]) -> None:
    """Write how sure the identified languages of a shard's documents are; no file for none."""
    rows = [row for row in read_json(parts / f"{k:05d}.languages.json") if keep[row[0]]]
    if not rows:
        return
    _, ids, langs, confidences = zip(*rows, strict=True)
    columns = {"id": ids, "lang": langs, "confidence": confidences}
    write_table(out / "languages" / f"{k:05d}.parquet", pa.table(columns, schema=LANGUAGES_SCHEMA))
