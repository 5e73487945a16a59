"""The `words` stage: how often a task's words and word pairs stand in documents, and their pivots.

Words are looked for in the text, not among tokens: tokens run across word borders in Chinese and
Japanese, so that most occurrences there have no token sequence of their own. A word counts in a
document whatever the document's language.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mining.common.errors import InputError
from mining.common.logs import log
from mining.common.shards import common_info, list_shards, write_table
from mining.common.stage import FilesInput, StageInput, begin, require_same, settings_dict
from mining.common.task import Task, read_task, task_files
from mining.common.tokenizer import load_tokenizer
from mining.inputs import CorpusInput
from mining.items import tokenizer_input
from mining.kernels.lift import smallest
from mining.kernels.match import common_documents, fold
from mining.settings import CorpusSettings, EngineSettings, WordsSettings
from mining.token_counts import count_tokens
from mining.word_pivots import LIFTS, PAIR_PIVOTS, Rows, Statistics, token_rows, usable_tokens
from mining.word_postings import Postings, find_postings

WORDS = pa.schema(
    [
        ("concept", pa.string()),
        ("lang", pa.string()),
        ("word", pa.string()),
        ("doc_freq", pa.uint64()),
        ("doc_freq_own_lang", pa.uint64()),
    ]
)
PAIRS = pa.schema(
    [
        ("concept", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("source_doc_freq", pa.uint64()),
        ("target_doc_freq", pa.uint64()),
        ("pair_doc_freq", pa.uint64()),
    ]
)


def run_words(
    settings: WordsSettings,
    out: Path,
    corpus: CorpusSettings,
    tokens: Path,
    tokenizer: Path,
    task: Path,
    engine: EngineSettings,
    seed: int,
) -> None:
    """Find the words of a task file in the documents that the token shards hold.

    Writes `words.parquet`, `pairs.parquet`, `lifts.parquet` and `pair_pivots.parquet`. Raises
    MismatchError where corpus, shards and tokenizer do not belong together.
    """
    if not task.is_file():
        raise InputError(f"{task}: no such task file")
    run = begin(
        "words",
        out,
        {**settings_dict(settings), "corpus": settings_dict(corpus), "seed": seed},
        {
            "documents": CorpusInput(corpus),
            "tokens": StageInput(tokens, "tokenize"),
            "tokenizer": tokenizer_input(tokenizer),
            "task": FilesInput(task_files(task)),
        },
    )
    if run is None:
        return
    loaded = load_tokenizer(tokenizer)
    shards = list_shards(tokens / "tokens")
    found = common_info(shards).fingerprint
    require_same("tokenizer", {str(tokens): found, str(tokenizer): loaded.fingerprint})
    parsed = read_task(task)
    pattern, patterns = number_words(parsed, settings.case_sensitive)
    postings = find_postings(
        patterns,
        settings.case_sensitive,
        corpus,
        tokens,
        tokenizer,
        seed,
        run.work / "text",
        engine,
    )
    run.record_hashes("documents", postings.hashes)
    n_documents = len(postings.keys)
    if not n_documents:
        raise InputError(f"{tokens}: holds no document to look for words in")
    at_most = settings.sample_documents
    samples = [smallest(postings.of(p), postings.keys, at_most) for p in range(len(patterns))]
    everything = np.arange(n_documents, dtype=np.int64)
    samples.append(smallest(everything, postings.keys, at_most))
    counts, doc_freq = count_tokens(
        samples, n_documents, shards, loaded.vocab_size, run.work / "tokens", engine
    )
    ordinary, candidate = usable_tokens(loaded, doc_freq, n_documents, settings)
    statistics = Statistics(
        pattern=pattern,
        counts=counts[:-1],
        n_sampled=np.array([len(sample) for sample in samples[:-1]], dtype=np.int64),
        n_word=np.diff(postings.offsets).astype(np.float64),
        background=counts[-1] / len(samples[-1]),
        doc_freq=doc_freq.astype(np.float64),
        n_documents=n_documents,
        ordinary=ordinary,
        candidate=candidate,
    )
    words = list(_word_rows(parsed, pattern, postings))
    pairs = list(_pair_rows(parsed, pattern, postings))
    _write(out / "words.parquet", words, WORDS)
    _write(out / "pairs.parquet", pairs, PAIRS)
    lifts, pivots = token_rows(parsed, statistics, loaded, settings)
    _write(out / "lifts.parquet", lifts, LIFTS)
    _write(out / "pair_pivots.parquet", pivots, PAIR_PIVOTS)
    n_found = sum(row[3] > 0 for row in words)
    log.info("words: %d of %d words stand in %d documents", n_found, len(words), n_documents)
    run.finish(
        {
            "documents": n_documents,
            "background_documents": len(samples[-1]),
            "fingerprint": loaded.fingerprint,
            "words": len(words),
            "words_found": n_found,
            "pairs": len(pairs),
            "pairs_found": sum(row[-1] > 0 for row in pairs),
            "pair_pivots": len(pivots),
        }
    )


def number_words(
    task: Task, case_sensitive: bool
) -> tuple[dict[tuple[str, str], int], tuple[str, ...]]:
    """Number the different folded words of a task: ((concept, lang) -> number, words by number)."""
    folded = {
        (concept.id, lang): fold(concept.words[lang], case_sensitive)
        for concept in task.concepts
        for lang in task.languages
    }
    patterns = tuple(sorted(set(folded.values())))
    number = {word: place for place, word in enumerate(patterns)}
    return {key: number[word] for key, word in folded.items()}, patterns


def _word_rows(
    task: Task, pattern: dict[tuple[str, str], int], postings: Postings
) -> Iterator[tuple[Any, ...]]:
    codes = {lang: code for code, lang in enumerate(postings.languages)}
    for concept in task.concepts:
        for lang in task.languages:
            documents = postings.of(pattern[concept.id, lang])
            own = int(np.count_nonzero(postings.lang[documents] == codes.get(lang, -1)))
            yield concept.id, lang, concept.words[lang], len(documents), own


def _pair_rows(
    task: Task, pattern: dict[tuple[str, str], int], postings: Postings
) -> Iterator[tuple[Any, ...]]:
    for concept in task.concepts:
        common = {
            frozenset((a, b)): common_documents(
                postings.of(pattern[concept.id, a]), postings.of(pattern[concept.id, b])
            )
            for a, b in itertools.combinations(task.languages, 2)
        }
        for a, b in task.directions():
            yield (
                concept.id,
                a,
                b,
                concept.words[a],
                concept.words[b],
                len(postings.of(pattern[concept.id, a])),
                len(postings.of(pattern[concept.id, b])),
                common[frozenset((a, b))],
            )


def _write(path: Path, rows: Rows, schema: pa.Schema) -> None:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)
    ]
    write_table(path, pa.Table.from_arrays(arrays, schema=schema))
