"""The `words` stage: how often a task's words and word pairs stand in documents, and their pivots.

Words are looked for in the text, not among tokens: tokens run across word borders in Chinese and
Japanese, so that most occurrences there have no token sequence of their own. A word counts in a
document whatever the document's language.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.errors import InputError
from mining.common.logs import log, progress
from mining.common.shards import common_info, list_shards, write_table
from mining.common.stage import FilesInput, StageInput, begin, require_same, settings_dict
from mining.common.task import Concept, Task, read_task, task_files
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.documents import CorpusInput
from mining.items import token_holds_letter, tokenizer_input
from mining.kernels.assoc import npmi_array
from mining.kernels.lift import smallest, strongest
from mining.kernels.match import common_documents, fold
from mining.settings import CorpusSettings, EngineSettings, WordsSettings
from mining.token_counts import count_tokens
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
LIFTS = pa.schema(
    [
        ("lang", pa.string()),
        ("concept", pa.string()),
        ("word", pa.string()),
        ("token", pa.uint32()),
        ("text", pa.string()),
        ("share", pa.float64()),
        ("background", pa.float64()),
        ("lift", pa.float64()),
    ]
)
PAIR_PIVOTS = pa.schema(
    [
        ("concept", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("rank", pa.uint32()),
        ("token", pa.uint32()),
        ("text", pa.string()),
        ("pivot", pa.float64()),
        ("source_share", pa.float64()),
        ("target_share", pa.float64()),
        ("background", pa.float64()),
        ("path", pa.float64()),
    ]
)
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Statistics:
    """What the tables are made from.

    `pattern[concept, lang]` is the row of `shares` (float64 [n_patterns, n_ids]: f(t | w), 0 for
    words that were not found) that a word has; `n_word` float64 [n_patterns] its exact document
    frequency. `background` float64 [n_ids] is f(t), `doc_freq` float64 [n_ids] exact, over all
    `n_documents`. `ordinary` bool [n_ids] marks the tokens that are not special, `candidate` bool
    [n_ids] those that may be pivots of some pair.
    """

    pattern: dict[tuple[str, str], int]
    counts: npt.NDArray[np.uint32]
    n_sampled: npt.NDArray[np.int64]
    n_word: npt.NDArray[np.float64]
    background: npt.NDArray[np.float64]
    doc_freq: npt.NDArray[np.float64]
    n_documents: int
    ordinary: npt.NDArray[np.bool_]
    candidate: npt.NDArray[np.bool_]

    def share(self, pattern: int) -> npt.NDArray[np.float64]:
        """f(t | w) of a word for each token, float64 [n_ids]; 0 where the word was not found."""
        row: npt.NDArray[np.float64] = self.counts[pattern] / max(1, self.n_sampled[pattern])
        return row

    def npmi(self, pattern: int) -> npt.NDArray[np.float64]:
        """NPMI of a word with each token, float64 [n_ids].

        The number of common documents is n(w) f(t | w): exact where all documents of the word are
        in its sample, else an estimate from it.
        """
        n_word = self.n_word[pattern]
        n_first = np.full_like(self.doc_freq, n_word)
        common = n_word * self.share(pattern)
        return npmi_array(common, n_first, self.doc_freq, float(self.n_documents))


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
        patterns, settings.case_sensitive, corpus, tokens, seed, run.work / "text", engine
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
    lifts, pivots = _token_rows(parsed, statistics, loaded, settings.pivots_per_pair, settings)
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


def usable_tokens(
    tokenizer: Tokenizer,
    doc_freq: npt.NDArray[np.uint64],
    n_documents: int,
    settings: WordsSettings,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks (bool [n_ids]) of the tokens that are not special, and of those that may be pivots."""
    ordinary = np.ones(len(doc_freq), dtype=np.bool_)
    ordinary[sorted(tokenizer.special_ids)] = False
    candidate = ordinary & (doc_freq <= settings.max_doc_share * n_documents)
    if not settings.keep_punctuation:
        letters = [token_holds_letter(tokenizer, token) for token in range(len(doc_freq))]
        candidate &= np.array(letters, dtype=np.bool_)
    return ordinary, candidate


def word_tokens(tokenizer: Tokenizer, word: str) -> list[int]:
    """Every token of a word, with and without a space before it."""
    return sorted({*tokenizer.encode(" " + word), *tokenizer.encode(word)})


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


def _token_rows(
    task: Task, statistics: Statistics, tokenizer: Tokenizer, at_most: int, settings: WordsSettings
) -> tuple[Rows, Rows]:
    """The rows of the tables of lifts and of pair pivots."""
    lifts: Rows = []
    pivots: Rows = []
    names = [tokenizer.piece(token) for token in range(len(statistics.doc_freq))]
    with progress("words: pivots", len(task.concepts), "concepts") as ticker:
        for concept in task.concepts:
            for lang in task.languages:
                share = statistics.share(statistics.pattern[concept.id, lang])
                lift = share - statistics.background
                for token in strongest(lift, statistics.ordinary, at_most).tolist():
                    word = (lang, concept.id, concept.words[lang], token, names[token])
                    known = share[token], statistics.background[token], lift[token]
                    lifts.append((*word, *known))
            pivots += _concept_pivots(task, concept, statistics, tokenizer, names, settings)
            ticker.advance()
    return lifts, pivots


def _concept_pivots(
    task: Task,
    concept: Concept,
    statistics: Statistics,
    tokenizer: Tokenizer,
    names: list[str],
    settings: WordsSettings,
) -> Rows:
    """Rows of the pivots of all ordered pairs of a concept's words (METHOD section 3)."""
    numbers = {lang: statistics.pattern[concept.id, lang] for lang in task.languages}
    share = {lang: statistics.share(number) for lang, number in numbers.items()}
    tied = {lang: statistics.npmi(number) >= settings.min_npmi for lang, number in numbers.items()}
    own = {lang: word_tokens(tokenizer, concept.words[lang]) for lang in task.languages}
    rows: Rows = []
    for a, b in task.directions():
        if not statistics.n_word[numbers[a]] or not statistics.n_word[numbers[b]]:
            continue
        value = np.minimum(share[a], share[b]) - statistics.background
        allowed = statistics.candidate & tied[a] & tied[b]
        allowed[own[a] + own[b]] = False
        path = np.minimum(
            statistics.n_word[numbers[a]] * share[a], statistics.n_word[numbers[b]] * share[b]
        )
        chosen = strongest(value, allowed, settings.pivots_per_pair).tolist()
        for rank, token in enumerate(chosen, start=1):
            where = (concept.id, a, b, rank, token, names[token], value[token])
            known = share[a][token], share[b][token], statistics.background[token], path[token]
            rows.append((*where, *known))
    return rows


def _write(path: Path, rows: Rows, schema: pa.Schema) -> None:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)
    ]
    write_table(path, pa.Table.from_arrays(arrays, schema=schema))
