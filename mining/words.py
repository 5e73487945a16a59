"""The `words` stage: how often a task's words and word pairs stand in documents, and their pivots.

Words are looked for in the text, not among tokens: tokens run across word borders in Chinese and
Japanese, so that most occurrences there have no token sequence of their own (words.matching says
how many). A word counts in a document whatever the document's language.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mining.common.errors import InputError
from mining.common.logs import log
from mining.common.manifest import require_same
from mining.common.shards import common_info, list_shards, write_table
from mining.common.stage import FilesInput, StageInput, begin, settings_dict
from mining.common.task import Task, read_task, task_files
from mining.common.tokenizer import load_tokenizer
from mining.engine_settings import EngineSettings
from mining.inputs import CorpusInput
from mining.items import tokenizer_input
from mining.settings import CorpusSettings, WordsSettings
from mining.token_counts import count_tokens
from mining.word_lists import (
    LangWord,
    Wanted,
    list_inputs,
    number_words,
    read_pairs,
    read_words,
    token_sequences,
)
from mining.word_pivots import LIFTS, PAIR_PIVOTS, Rows, Statistics, token_rows, usable_tokens
from mining.word_postings import Matches, find_matches

WORDS = pa.schema(
    [
        ("concept", pa.string()),
        ("lang", pa.string()),
        ("word", pa.string()),
        ("doc_freq", pa.uint64()),
        ("doc_freq_own_lang", pa.uint64()),
        ("doc_freq_tokens", pa.uint64()),
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
        ("pair_doc_freq_tokens", pa.uint64()),
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
    """Find the words of a task file, and of given lists, in the documents of the token shards.

    Writes `words.parquet`, `pairs.parquet`, `lifts.parquet` and `pair_pivots.parquet` of the task,
    and `listed_words.parquet` and `listed_pairs.parquet` of the lists. Raises MismatchError where
    corpus, shards and tokenizer do not belong together.
    """
    if not task.is_file():
        raise InputError(f"{task}: no such task file")
    run = begin(
        "words",
        out,
        {**settings_dict(settings), "corpus": settings_dict(corpus), "seed": seed},
        {
            **({} if settings.matching == "tokens" else {"documents": CorpusInput(corpus)}),
            "tokens": StageInput(tokens, "tokenize"),
            "tokenizer": tokenizer_input(tokenizer),
            "task": FilesInput(task_files(task)),
            **list_inputs(settings),
        },
    )
    if run is None:
        return
    loaded = load_tokenizer(tokenizer)
    shards = list_shards(tokens / "tokens")
    found = common_info(shards).fingerprint
    require_same("tokenizer", {str(tokens): found, str(tokenizer): loaded.fingerprint})
    parsed = read_task(task)
    listed_words = read_words(Path(settings.word_list)) if settings.word_list else []
    listed_pairs = read_pairs(Path(settings.pair_list)) if settings.pair_list else []
    wanted = number_words(parsed, listed_words, listed_pairs, settings)
    sequences = ([], []) if settings.matching == "text" else token_sequences(wanted, loaded)
    matches = find_matches(
        wanted, sequences, loaded.vocab_size, settings, corpus, tokens,
        tokenizer, seed, run.work / "text", engine,
    )  # fmt: skip
    if matches.hashes:
        run.record_hashes("documents", matches.hashes)
    n_documents = matches.n_documents
    if not n_documents:
        raise InputError(f"{tokens}: holds no document to look for words in")
    missing = [lang for lang in parsed.languages if lang not in matches.languages]
    if missing:
        # Its words may still stand in documents of other languages.
        log.warning("words: no document is in %s, of the task's languages", ", ".join(missing))
    counts, doc_freq = count_tokens(
        matches.samples, n_documents, shards, loaded.vocab_size, run.work / "tokens", engine
    )
    ordinary, candidate = usable_tokens(loaded, doc_freq, n_documents, settings)
    row = {int(pattern): number for number, pattern in enumerate(wanted.sampled)}
    statistics = Statistics(
        pattern={
            (concept.id, lang): row[wanted.number[concept.words[lang]]]
            for concept in parsed.concepts
            for lang in parsed.languages
        },
        counts=counts[:-1],
        n_sampled=np.array([len(sample) for sample in matches.samples[:-1]], dtype=np.int64),
        n_word=matches.doc_freq[wanted.sampled].astype(np.float64),
        background=counts[-1] / len(matches.samples[-1]),
        doc_freq=doc_freq.astype(np.float64),
        n_documents=n_documents,
        ordinary=ordinary,
        candidate=candidate,
    )
    words = list(_word_rows(_task_words(parsed), wanted, matches))
    pairs = list(_pair_rows(_task_pairs(parsed), wanted, matches))
    _write(out / "words.parquet", words, WORDS)
    _write(out / "pairs.parquet", pairs, PAIRS)
    lifts, pivots = token_rows(parsed, statistics, loaded, settings)
    _write(out / "lifts.parquet", lifts, LIFTS)
    _write(out / "pair_pivots.parquet", pivots, PAIR_PIVOTS)
    named = list(dict.fromkeys([*listed_words, *(word for pair in listed_pairs for word in pair)]))
    if named:
        rows = _word_rows((("", lang, word) for lang, word in named), wanted, matches)
        _write(out / "listed_words.parquet", [r[1:] for r in rows], WORDS.remove(0))
    if listed_pairs:
        rows = _pair_rows((("", a, b) for a, b in listed_pairs), wanted, matches)
        _write(out / "listed_pairs.parquet", [r[1:] for r in rows], PAIRS.remove(0))
    n_found = int(sum(row[3] > 0 for row in words))
    log.info("words: %d of %d words stand in %d documents", n_found, len(words), n_documents)
    run.finish(
        {
            "documents": n_documents,
            "languages_without_documents": missing,
            "background_documents": len(matches.samples[-1]),
            "fingerprint": loaded.fingerprint,
            "words": len(words),
            "words_found": n_found,
            "pairs": len(pairs),
            "pairs_found": int(sum(row[7] > 0 for row in pairs)),
            "pair_pivots": len(pivots),
            "listed_words": len(named),
            "listed_pairs": len(listed_pairs),
            **_token_recall([*_lang_words(parsed), *named], wanted, matches),
        }
    )


def _lang_words(task: Task) -> list[LangWord]:
    return [(lang, word) for _, lang, word in _task_words(task)]


def _task_words(task: Task) -> Iterator[tuple[str, str, str]]:
    for concept in task.concepts:
        for lang in task.languages:
            yield concept.id, lang, concept.words[lang]


def _task_pairs(task: Task) -> Iterator[tuple[str, LangWord, LangWord]]:
    for concept in task.concepts:
        for a, b in task.directions():
            yield concept.id, (a, concept.words[a]), (b, concept.words[b])


def _word_rows(
    words: Iterable[tuple[str, str, str]], wanted: Wanted, matches: Matches
) -> Iterator[tuple[Any, ...]]:
    codes = {lang: code for code, lang in enumerate(matches.languages)}
    for concept, lang, word in words:
        pattern = wanted.number[word]
        own = matches.by_language[pattern, codes[lang]] if lang in codes else 0
        by_tokens = None if matches.token_freq is None else matches.token_freq[pattern]
        yield concept, lang, word, matches.doc_freq[pattern], own, by_tokens


def _pair_rows(
    pairs: Iterable[tuple[str, LangWord, LangWord]], wanted: Wanted, matches: Matches
) -> Iterator[tuple[Any, ...]]:
    listed = list(pairs)
    places = wanted.pair_places((a, b) for _, (_, a), (_, b) in listed)
    for (concept, (lang_a, a), (lang_b, b)), place in zip(listed, places, strict=True):
        by_tokens = None if matches.token_pair_freq is None else matches.token_pair_freq[place]
        yield (
            concept,
            lang_a,
            lang_b,
            a,
            b,
            matches.doc_freq[wanted.number[a]],
            matches.doc_freq[wanted.number[b]],
            matches.pair_freq[place],
            by_tokens,
        )


def _token_recall(words: Iterable[LangWord], wanted: Wanted, matches: Matches) -> dict[str, Any]:
    """How many (word, document) matches in the text the words' token sequences find, by language.

    `recall` is the share of the text's matches that tokens find too, `precision` the share of the
    tokens' matches that stand in the text. Empty unless words were looked for in both.
    """
    if matches.token_freq is None or matches.both_freq is None:
        return {}
    by_lang: dict[str, set[int]] = {}
    for lang, word in words:
        by_lang.setdefault(lang, set()).add(wanted.number[word])
    found = {}
    for lang, patterns in sorted(by_lang.items()):
        chosen = sorted(patterns)
        text, by_tokens, both = (
            int(freq[chosen].sum())
            for freq in (matches.doc_freq, matches.token_freq, matches.both_freq)
        )
        found[lang] = {
            "words": len(chosen),
            "text": text,
            "tokens": by_tokens,
            "both": both,
            "recall": both / text if text else None,
            "precision": both / by_tokens if by_tokens else None,
        }
        log.info("words: %s: token sequences find %d of %d matches in the text", lang, both, text)
    return {"token_matching": found}


def _write(path: Path, rows: Rows, schema: pa.Schema) -> None:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)
    ]
    write_table(path, pa.Table.from_arrays(arrays, schema=schema))
