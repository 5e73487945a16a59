"""Text to counts to scores: the stages one after another, against reading and tokenising alone.

    python -m launch.bench.text_to_scores [--corpus FOLDER] [--megabytes 500]

The documents of a folder (or generated ones) again and again, each time cut elsewhere and put
together the other way round, so that no two are the same. The chain is `tokenize`, `count`,
`pivots`, `score` as `pivots run` calls them, with all they write, hash and check. Alone means that
the same readers' records go through the same encoder in the same batches and tasks, and the ids are
thrown away. The two take turns. Everything ran before, so that compiled code is on disk.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.bench.timing import report
from mining.common.files import read_json, remove_tree
from mining.common.manifest import RUN, read_manifest
from mining.common.shards import ROWS_PER_GROUP
from mining.common.tokenizer import load_tokenizer
from mining.count import run_count
from mining.documents import FileReader, Record, list_documents
from mining.engine_settings import EngineSettings
from mining.inputs import Reader, open_readers
from mining.pivots import run_pivots
from mining.score import run_score
from mining.settings import (
    CorpusSettings,
    CountSettings,
    ModelType,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
)
from mining.tasks import run_tasks
from mining.tokenize import run_tokenize, task_encoder
from mining.train_tokenizer import run_tokenizer

TARGET = 0.9
LANGUAGES = ("aa", "bb", "cc", "zh")


@dataclass(frozen=True)
class Work:
    """What both ways work on."""

    corpus: CorpusSettings
    tokenizer: Path
    fingerprint: str
    top_items: int
    engine: EngineSettings


def given_texts(folder: str) -> list[tuple[str, str]]:
    """(language, text) of the documents of a folder; those without a language are left out."""
    corpus = CorpusSettings(path=folder)
    return [
        (item.lang, item.text)
        for name, path in list_documents(corpus).items()
        for item in FileReader(path, name, corpus)
        if isinstance(item, Record) and item.lang is not None
    ]


def generated_texts(n_documents: int) -> list[tuple[str, str]]:
    """Documents of made-up words that are partly shared, in four languages, one without spaces."""
    rng = np.random.default_rng(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 5))) for _ in range(20_000)]
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    texts = []
    for number in range(n_documents):
        language = number % len(LANGUAGES)
        spaced = LANGUAGES[language] != "zh"
        pool = words[language * 4000 : language * 4000 + 8000] if spaced else characters
        ranks = np.minimum(rng.zipf(1.2, 400) - 1, len(pool) - 1)
        text = (" " if spaced else "").join(pool[rank] for rank in ranks)
        texts.append((LANGUAGES[language], text))
    return texts


def write_corpus(texts: list[tuple[str, str]], folder: Path, n_bytes: int, n_files: int) -> int:
    """Write `n_files` of together about `n_bytes` of text; returns the bytes."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    order = rng.permutation(len(texts))  # so that a part of them has all languages
    size = 0
    numbers = itertools.count()
    for k in range(n_files):
        path = folder / f"{k:03d}.jsonl.gz"
        with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
            while size < n_bytes * (k + 1) / n_files:
                turn, place = divmod(number := next(numbers), len(texts))
                language, text = texts[order[place]]
                if turn:
                    cut = int(rng.integers(len(text) + 1))
                    text = f"{text[cut:]} {turn} {text[:cut]}"
                size += len(text.encode())
                record = {"id": f"d{number}", "lang": language, "text": text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return size


def read_and_encode(
    rank: int, world: int, readers: list[Reader], tokenizer: Path, fingerprint: str
) -> None:
    """Read and tokenise the parts rank, rank + world, ... and throw the ids away."""
    encoder = task_encoder(tokenizer, fingerprint, fast=True)
    for reader in readers[rank::world]:
        records: Iterator[Record] = (item for item in reader if isinstance(item, Record))
        while batch := list(itertools.islice(records, ROWS_PER_GROUP)):
            encoder.encode_batch([record.text for record in batch])


def alone(work: Work, root: Path) -> float:
    """Seconds of reading and tokenising alone."""
    remove_tree(root)
    start = time.perf_counter()
    readers = open_readers(work.corpus, work.tokenizer)
    task = functools.partial(
        read_and_encode, readers=readers, tokenizer=work.tokenizer, fingerprint=work.fingerprint
    )
    run_tasks("reading and tokenising alone", task, len(readers), root, work.engine)
    return time.perf_counter() - start


def chain(work: Work, root: Path) -> dict[str, float]:
    """Seconds of each stage from text to scores."""
    remove_tree(root)
    tokens, count, pivots, engine = root / "tokens", root / "count", root / "pivots", work.engine
    stages: dict[str, Callable[[], None]] = {
        "tokenize": lambda: run_tokenize(
            TokenizeSettings(), work.corpus, tokens, work.tokenizer, engine
        ),
        "count": lambda: run_count(
            CountSettings(top_items=work.top_items), count, tokens, work.tokenizer, engine
        ),
        "pivots": lambda: run_pivots(PivotsSettings(), pivots, count, engine=engine),
        "score": lambda: run_score(ScoreSettings(), root / "score", tokens, pivots, engine),
    }
    seconds = {}
    for name, stage in stages.items():
        start = time.perf_counter()
        stage()
        seconds[name] = time.perf_counter() - start
    return seconds


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", help="folder of documents with languages; else generated ones")
    parser.add_argument("--megabytes", type=float, default=60.0, help="text in all")
    parser.add_argument("--items", type=int, default=8192)
    parser.add_argument("--model_type", choices=("unigram", "bpe"), default="unigram")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", help="where to write; a temporary folder without it")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # one core a worker, also where there is only one

    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        root = Path(temporary)
        texts = given_texts(options.corpus) if options.corpus else generated_texts(20_000)
        first = root / "little"
        write_corpus(texts, first, 1_000_000, 2)
        n_bytes = write_corpus(texts, root / "text", int(options.megabytes * 1e6), options.files)
        corpus = CorpusSettings(path=str(root / "text"))
        kind: ModelType = options.model_type
        trained = TokenizerSettings(
            model_type=kind, vocab_size=options.vocab_size, sample_chars=3_000_000
        )
        run_tokenizer(trained, corpus, root / "tokenizer", seed=0)
        tokenizer = root / "tokenizer"
        fingerprint = load_tokenizer(tokenizer).fingerprint
        found: dict[str, dict[str, Any]] = {}
        for workers in options.workers:
            engine = EngineSettings(workers=workers)
            warm = Work(CorpusSettings(path=str(first)), tokenizer, fingerprint, 1024, engine)
            alone(warm, root / "alone")
            chain(warm, root / "chain")
            work = Work(corpus, tokenizer, fingerprint, options.items, engine)
            bare, stages = [], []
            for _ in range(options.repeats):
                bare.append(alone(work, root / "alone"))
                stages.append(chain(work, root / "chain"))
            bare.append(alone(work, root / "alone"))
            seconds = {name: statistics.median(run[name] for run in stages) for name in stages[0]}
            total, floor = sum(seconds.values()), statistics.median(bare)
            found[str(workers)] = {
                "ratio": round(floor / total, 3),
                "alone_seconds": round(floor, 2),
                "chain_seconds": round(total, 2),
                "stages": {name: round(value, 2) for name, value in seconds.items()},
                "alone_mb_per_second": round(n_bytes / 1e6 / floor, 2),
                "chain_mb_per_second": round(n_bytes / 1e6 / total, 2),
            }
            print(f"workers {workers}: {json.dumps(found[str(workers)])}", flush=True)
        counted = read_manifest(root / "chain" / "count", "count").counts
        tokens = read_manifest(root / "chain" / "tokens", "tokenize").counts["tokens"]
        peak = read_json(root / "chain" / "count" / RUN)["peak_rss_mib"]
    report(
        "text_to_scores",
        min(entry["ratio"] for entry in found.values()),
        TARGET,
        corpus="given" if options.corpus else "generated",
        megabytes=round(n_bytes / 1e6, 1),
        documents=counted["documents"],
        tokens=tokens,
        items=counted["items"],
        pairs=counted["pairs"],
        peak_rss_mib=peak,
        workers=found,
    )


if __name__ == "__main__":
    main()
