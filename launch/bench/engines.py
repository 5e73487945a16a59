"""Equality over engines: the same documents, counted and scored on each of them, byte by byte.

    python -m launch.bench.engines --corpus FOLDER

The corpus is laid into files in two ways: in its order into few, shuffled into more, and counted in
differing numbers of parts. The tables of `count` must be the same bytes on all engines and for both
ways, for every number of items; all other outputs on all engines. The last line is JSON; the exit
code is 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.pipeline import DEFAULT_TASK, find_task
from mining.common.files import sha256_file, write_text
from mining.common.logs import setup_logging
from mining.common.manifest import MANIFEST, read_manifest
from mining.common.seeds import hash64
from mining.count import run_count
from mining.documents import FileReader, Record, list_documents
from mining.engine_settings import EngineSettings, SparkSettings
from mining.mix import run_mix
from mining.mix_settings import MixSettings
from mining.pivots import run_pivots
from mining.score import run_score
from mining.settings import (
    CorpusSettings,
    CountSettings,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
)
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer
from mining.words import run_words

ENGINES = ("local", "slurm", "spark", "spark-standalone")
ITEMS = (512, 2048, 5000)  # one is not a whole number of tiles
SEED = 0
# Of one split: the hash of each output by "stage/file", and of the manifests.
Digests = dict[str, str]


@dataclass(frozen=True)
class Split:
    """How documents are laid into files, and into how many parts they are counted."""

    n_files: int
    map_tasks: int
    shuffled: bool


SPLITS = {"few": Split(2, 1, False), "more": Split(3, 2, True)}


@dataclass(frozen=True)
class Prepared:
    """A corpus laid out: `corpora` and `tokens` (a local `tokenize` folder) by split."""

    n_documents: int
    tokenizer: Path
    corpora: dict[str, CorpusSettings]
    tokens: dict[str, Path]


@contextlib.contextmanager
def open_engine(name: str, workers: int) -> Iterator[EngineSettings]:
    """An engine of ENGINES, ready to run tasks; what it needs is stopped afterwards."""
    if name == "spark-standalone":
        from launch.bench.spark_cluster import standalone_cluster

        with standalone_cluster(workers=2) as cluster:
            spark = SparkSettings(master=cluster.master)
            yield EngineSettings(kind="spark", workers=workers, spark=spark)
    elif name == "spark":
        spark = SparkSettings(master=f"local[{workers}]")
        yield EngineSettings(kind="spark", workers=workers, spark=spark)
    elif name == "slurm":
        yield EngineSettings(kind="slurm", workers=workers)
    else:
        yield EngineSettings(workers=workers)


def choose_documents(corpus: CorpusSettings, limit: int | None) -> list[Record]:
    """The documents of different texts, in order; of each language an equal share of `limit`.

    Those with the smallest hashes of their ids are taken.
    """
    by_text: dict[str, Record] = {}
    for name, path in list_documents(corpus).items():
        for item in FileReader(path, name, corpus):
            if isinstance(item, Record):
                by_text.setdefault(item.text, item)
    if limit is None:
        return list(by_text.values())
    by_lang: dict[str | None, list[Record]] = defaultdict(list)
    for record in sorted(by_text.values(), key=lambda record: hash64("engines", record.id)):
        by_lang[record.lang].append(record)
    share = limit // len(by_lang)
    chosen = {record.text for records in by_lang.values() for record in records[:share]}
    return [record for record in by_text.values() if record.text in chosen]


def prepare(
    corpus: CorpusSettings, limit: int | None, folder: Path, vocab_size: int, workers: int
) -> Prepared:
    """Lay the documents out in both ways; train a tokenizer and tokenise them locally."""
    documents = choose_documents(corpus, limit)
    corpora = {}
    for name, split in SPLITS.items():
        _lay_out(documents, split, folder / "documents" / name)
        corpora[name] = CorpusSettings(path=str(folder / "documents" / name))
    tokenizer = folder / "tokenizer"
    settings = TokenizerSettings(model_type="bpe", vocab_size=vocab_size, sample_chars=1_000_000)
    run_tokenizer(settings, corpora["few"], tokenizer, SEED)
    tokens = {}
    for name, laid in corpora.items():
        tokens[name] = folder / "tokenize" / name
        engine = EngineSettings(workers=workers)
        run_tokenize(TokenizeSettings(), laid, tokens[name], tokenizer, engine)
    return Prepared(len(documents), tokenizer, corpora, tokens)


def _lay_out(documents: list[Record], split: Split, folder: Path) -> None:
    if split.shuffled:
        documents = sorted(documents, key=lambda record: hash64("lay out", record.id))
    borders = [len(documents) * k // split.n_files for k in range(split.n_files + 1)]
    for k in range(split.n_files):
        rows = [
            {"id": r.id, "text": r.text, "source": r.source, **({"lang": r.lang} if r.lang else {})}
            for r in documents[borders[k] : borders[k + 1]]
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / f"{k}.jsonl", "".join(lines))


def run_split(
    prepared: Prepared,
    name: str,
    engine: EngineSettings,
    items: Sequence[int],
    out: Path,
    every_stage: bool = False,
) -> Digests:
    """Count, score and mix a split on one engine.

    With `every_stage` the engine also tokenises it itself, looks for the words of the task that
    comes with the package, and measures the pivots' stability.
    """
    corpus, tokens, tokenizer = prepared.corpora[name], prepared.tokens[name], prepared.tokenizer
    stages = [f"count-{n_items}" for n_items in items]
    if every_stage:
        tokens = out / "tokenize"
        run_tokenize(TokenizeSettings(words=True), corpus, tokens, tokenizer, engine)
        task = find_task(DEFAULT_TASK)
        run_words(WordsSettings(), out / "words", corpus, tokens, tokenizer, task, engine, SEED)
        stages += ["tokenize", "words"]
    for n_items, stage in zip(items, stages, strict=False):
        settings = CountSettings(top_items=n_items, map_tasks=SPLITS[name].map_tasks)
        run_count(settings, out / stage, tokens, tokenizer, engine)
    pivots = PivotsSettings(top_share=0.1, stability=every_stage)
    run_pivots(pivots, out / "pivots", out / stages[len(items) // 2], tokens, engine)
    run_score(ScoreSettings(), out / "score", tokens, out / "pivots", engine)
    by_lang = read_manifest(out / "score").counts["by_lang"].values()
    budget = len(by_lang) * min(entry["tokens"] for entry in by_lang) // 4
    mix = MixSettings(budget_tokens=budget, fill_language=None)
    run_mix(mix, out / "mix", corpus, tokens, out / "score", tokenizer, engine, SEED)
    digests = {}
    for stage in [*stages, "pivots", "score", "mix"]:
        for file, entry in read_manifest(out / stage).outputs.items():
            digests[f"{stage}/{file}"] = entry["sha256"]
        digests[f"{stage}/{MANIFEST}"] = sha256_file(out / stage / MANIFEST)
    return digests


def find_differences(results: Mapping[str, Mapping[str, Digests]]) -> list[str]:
    """What is not as on the first engine, and which tables of `count` the split changes.

    `results` are the digests by engine and split; returns "engine/split/stage/file", sorted.
    """
    reference = next(iter(results.values()))
    found = set()
    for engine, by_split in results.items():
        for split, digests in by_split.items():
            others = [(reference[split], digests)]
            others += [(_tables(other), _tables(digests)) for other in by_split.values()]
            for expected, here in others:
                names = {n for n in {*expected, *here} if expected.get(n) != here.get(n)}
                found |= {f"{engine}/{split}/{name}" for name in names}
    return sorted(found)


def _tables(digests: Digests) -> Digests:
    """The tables of `count`: what no split may change (a manifest names the shards it counted)."""
    return {
        name: digest
        for name, digest in digests.items()
        if name.startswith("count-") and not name.endswith(MANIFEST)
    }


def main() -> int:
    """Run the comparison; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder of documents, as corpus.path")
    parser.add_argument("--documents", type=int, help="take this many, evenly of the languages")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--items", type=int, nargs="+", default=list(ITEMS))
    parser.add_argument("--vocab_size", type=int, default=16_000)
    parser.add_argument("--workers", type=int, default=EngineSettings().worker_count())
    parser.add_argument("--work", help="folder for the results, on a file system that all share")
    options = parser.parse_args()
    setup_logging()
    results: dict[str, dict[str, Digests]] = {}
    seconds = {}
    if options.work is not None:
        Path(options.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        folder = Path(temporary)
        corpus = CorpusSettings(path=options.corpus)
        prepared = prepare(corpus, options.documents, folder, options.vocab_size, options.workers)
        for name in options.engines:
            with open_engine(name, options.workers) as engine:
                start = time.perf_counter()
                results[name] = {
                    split: run_split(
                        prepared, split, engine, options.items, folder / name / split, True
                    )
                    for split in SPLITS
                }
                seconds[name] = round(time.perf_counter() - start, 1)
            print(f"{name}: {seconds[name]} s", flush=True)
    different = find_differences(results)
    line = {
        "name": "engines",
        "documents": prepared.n_documents,
        "files": {name: split.n_files for name, split in SPLITS.items()},
        "items": options.items,
        "engines": options.engines,
        "outputs_compared": sum(len(d) for splits in results.values() for d in splits.values()),
        "all_equal": not different,
        "different": different[:20],
        "seconds": seconds,
    }
    print(json.dumps(line))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
