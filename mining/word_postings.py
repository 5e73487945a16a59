"""Finds words in the documents: one pass over the corpus, counts and samples out.

Nothing that is kept grows with the corpus: frequencies of words and pairs are added up, and of each
sampled word only the documents of its sample are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.files import read_json, write_json
from mining.common.seeds import hash64
from mining.common.shards import list_shards, read_columns, read_shard
from mining.corpus_text import SHARD_COLUMNS, documents_of, open_text, require_unchanged
from mining.documents import Record
from mining.engine_settings import EngineSettings
from mining.inputs import Reader, merge_hashes
from mining.kernels.lift import smallest
from mining.kernels.match import code_points, count_common, fold, word_characters
from mining.kernels.trie import build_trie, find_patterns
from mining.pieces import save_array
from mining.settings import CorpusSettings, WordsSettings
from mining.tasks import run_tasks
from mining.word_lists import Wanted

BATCH_CHARS = 1 << 20


@dataclass(frozen=True)
class Matches:
    """In which documents the patterns stand: by the text, or by tokens where only these count.

    `doc_freq` int64 [P], `by_language` int64 [P, L] in the order of `languages`, `pair_freq` int64
    [n_pairs]. `samples` holds the sampled patterns' documents, then the background's, each int64,
    ascending, numbered over all shards in order. `hashes` are the corpus files' SHA-256.
    Where words were looked for in both: `token_freq` and `both_freq` int64 [P], the documents found
    by tokens, and by tokens and text; `token_pair_freq` int64 [n_pairs].
    """

    doc_freq: npt.NDArray[np.int64]
    by_language: npt.NDArray[np.int64]
    languages: tuple[str, ...]
    pair_freq: npt.NDArray[np.int64]
    samples: list[npt.NDArray[np.int64]]
    n_documents: int
    hashes: dict[str, str]
    token_freq: npt.NDArray[np.int64] | None = None
    both_freq: npt.NDArray[np.int64] | None = None
    token_pair_freq: npt.NDArray[np.int64] | None = None


class Postings(NamedTuple):
    """Pattern p stands in documents[offsets[p]:offsets[p + 1]], int64, ascending."""

    documents: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


class PatternFinder:
    """Finds which of many sequences of symbols stand in documents."""

    def __init__(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        patterns: Sequence[int],
        joins: npt.NDArray[np.bool_],
    ) -> None:
        """See mining.kernels.trie; symbols are below len(joins)."""
        self._trie = build_trie(sequences, patterns, len(joins))
        self._joins = joins
        self._n_patterns = 1 + max(patterns, default=-1)

    def find(
        self, text: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The different patterns of each document, see mining.kernels.trie.find_patterns."""
        return find_patterns(text, offsets, self._joins, self._n_patterns, *self._trie)


class WordFinder:
    """Finds which of many words stand alone somewhere in texts."""

    def __init__(self, words: Sequence[str], settings: WordsSettings) -> None:
        """`words` are folded as the settings say."""
        self._settings = settings
        symbols = [code_points(word) for word in words]
        self._finder = PatternFinder(symbols, range(len(words)), word_characters())

    def find(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The different words of each text (places in the list), and where each text's end."""
        case_sensitive, form = self._settings.case_sensitive, self._settings.normalize
        folded = [fold(text, case_sensitive, form) for text in texts]
        offsets = np.cumsum([0, *map(len, folded)], dtype=np.int64)
        # A copy: kernels are compiled for arrays that can be written.
        return self._finder.find(code_points("".join(folded)).copy(), offsets)


@dataclass(frozen=True)
class Search:
    """What a task has to know.

    `readers` read the corpus' parts, one a shard; None where the text is not read.
    `sequences` are as `token_sequences` gives them, of ids below `n_ids`.
    """

    wanted: Wanted
    sequences: tuple[list[npt.NDArray[np.uint32]], list[int]]
    n_ids: int
    settings: WordsSettings
    readers: list[Reader] | None
    shards: list[Path]
    seed: int
    work: Path


def find_matches(
    wanted: Wanted,
    sequences: tuple[list[npt.NDArray[np.uint32]], list[int]],
    n_ids: int,
    settings: WordsSettings,
    corpus: CorpusSettings,
    tokens: Path,
    tokenizer: Path,
    seed: int,
    work: Path,
    engine: EngineSettings,
) -> Matches:
    """Look for words in every document that the token shards hold.

    `tokens` is the folder of the `tokenize` stage, `tokenizer` the one it used; partial results
    go to `work`, some files for each shard. Raises MismatchError where the corpus is not the one
    that the shards were made from.
    """
    shards = list_shards(tokens / "tokens")
    readers = None
    if settings.matching != "tokens":
        readers = open_text(corpus, tokens, tokenizer, len(shards))
    search = Search(wanted, sequences, n_ids, settings, readers, shards, seed, work)
    run_tasks(
        "words: text", partial(_search_files, search=search), len(shards), work / "tasks", engine
    )
    return _collect(search, tokens)


def _search_files(rank: int, world: int, search: Search) -> None:
    texts, ids = search.readers is not None, search.settings.matching != "text"
    words = WordFinder(search.wanted.patterns, search.settings) if texts else None
    no_borders = np.zeros(search.n_ids, dtype=np.bool_)
    sequences = PatternFinder(*search.sequences, no_borders) if ids else None
    n_patterns = len(search.wanted.patterns)
    for k in range(rank, len(search.shards), world):
        shard = read_columns(search.shards[k], SHARD_COLUMNS)
        found: dict[str, Postings] = {}
        hashes: dict[str, str] = {}
        if words is not None and search.readers is not None:
            reader = search.readers[k]
            records = documents_of(reader, shard, search.shards[k])
            found["text"] = invert(_text_matches(words, records), n_patterns)
            hashes = dict(reader.hashes)
        if sequences is not None:
            parts = _token_matches(sequences, search.shards[k], search.n_ids)
            found["tokens"] = invert(parts, n_patterns)
        keys = [hash64(search.seed, "sample", id_) for id_ in shard.column("id").to_pylist()]
        langs = np.array(shard.column("lang").to_pylist(), dtype=np.str_)
        _save(search, k, found, np.array(keys, dtype=np.uint64), langs, hashes)


Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _text_matches(finder: WordFinder, records: Iterator[Record]) -> Iterator[Found]:
    texts: list[str] = []
    n_chars = 0
    for record in records:
        texts.append(record.text)
        n_chars += len(record.text)
        if n_chars >= BATCH_CHARS:
            yield finder.find(texts)
            texts, n_chars = [], 0
    yield finder.find(texts)


def _token_matches(finder: PatternFinder, shard: Path, n_ids: int) -> Iterator[Found]:
    for batch in read_shard(shard):
        largest = int(batch.tokens.max(initial=0))
        if largest >= n_ids:
            raise InputError(f"{shard}: holds the id {largest}, the vocabulary has {n_ids}")
        yield finder.find(batch.tokens.copy(), batch.offsets)


def invert(parts: Iterator[Found], n_patterns: int) -> Postings:
    """The postings of patterns (int64) and where each document's end, in consecutive parts."""
    patterns = [np.zeros(0, dtype=np.int64)]
    sizes = [np.zeros(0, dtype=np.int64)]
    for found, ends in parts:
        patterns.append(found)
        sizes.append(np.diff(ends))
    every = np.concatenate(patterns)
    documents = np.repeat(np.arange(sum(map(len, sizes))), np.concatenate(sizes))
    order = np.argsort(every, kind="stable")  # the documents of each pattern stay in order
    offsets = np.zeros(n_patterns + 1, dtype=np.int64)
    np.cumsum(np.bincount(every, minlength=n_patterns), out=offsets[1:])
    return Postings(documents[order], offsets)


def _save(
    search: Search,
    k: int,
    found: dict[str, Postings],
    keys: npt.NDArray[np.uint64],
    langs: npt.NDArray[np.str_],
    hashes: dict[str, str],
) -> None:
    """Write what the k-th file adds to the whole."""
    wanted, at_most = search.wanted, search.settings.sample_documents
    first = found["text" if "text" in found else "tokens"]
    languages, codes = np.unique(langs, return_inverse=True)
    n_patterns, n_documents = len(wanted.patterns), len(keys)
    pattern = np.repeat(np.arange(n_patterns), np.diff(first.offsets))
    cells = pattern * len(languages) + codes[first.documents]
    by_language = np.bincount(cells, minlength=n_patterns * len(languages))
    counts = {
        "by_language": by_language.reshape(n_patterns, len(languages)),
        "pairs": count_common(*first, wanted.pairs),
    }
    if len(found) == 2:
        second = found["tokens"]
        counts["tokens"] = np.diff(second.offsets)
        counts["both"] = _both(first, second, n_documents)
        counts["token_pairs"] = count_common(*second, wanted.pairs)
    postings = [first.documents[first.offsets[p] : first.offsets[p + 1]] for p in wanted.sampled]
    postings.append(np.arange(n_documents, dtype=np.int64))
    samples = [part[smallest(keys[part], at_most)] for part in postings]
    every = np.concatenate(samples)
    counts["samples"], counts["sample_sizes"] = every, np.array(list(map(len, samples)))
    for what, array in counts.items():
        save_array(search.work / f"{k:05d}-{what}.npy", array)
    save_array(search.work / f"{k:05d}-sample_keys.npy", keys[every])
    write_json(
        search.work / f"{k:05d}.json",
        {"hashes": hashes, "languages": languages.tolist(), "documents": n_documents},
    )


def _both(first: Postings, second: Postings, n_documents: int) -> npt.NDArray[np.int64]:
    """For each pattern the documents in both postings."""
    n_patterns = len(first.offsets) - 1

    def keys(part: Postings) -> npt.NDArray[np.int64]:
        pattern = np.repeat(np.arange(n_patterns), np.diff(part.offsets))
        return pattern * n_documents + part.documents

    common = np.intersect1d(keys(first), keys(second), assume_unique=True) // max(1, n_documents)
    return np.bincount(common, minlength=n_patterns)


class _Samples:
    """The documents with the smallest keys of each pattern, from files that come in order."""

    def __init__(self, n_samples: int, at_most: int) -> None:
        self._at_most = at_most
        self.documents = [np.zeros(0, dtype=np.int64) for _ in range(n_samples)]
        self._keys = [np.zeros(0, dtype=np.uint64) for _ in range(n_samples)]

    def add(self, number: int, documents: npt.NDArray[np.int64], keys: npt.NDArray[Any]) -> None:
        if len(documents):
            every = np.concatenate([self.documents[number], documents])
            every_key = np.concatenate([self._keys[number], keys])
            chosen = smallest(every_key, self._at_most)
            self.documents[number], self._keys[number] = every[chosen], every_key[chosen]


def _collect(search: Search, tokens: Path) -> Matches:
    parts = [read_json(search.work / f"{k:05d}.json") for k in range(len(search.shards))]
    hashes = merge_hashes(part["hashes"] for part in parts)
    require_unchanged(hashes, tokens)

    def load(k: int, what: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(search.work / f"{k:05d}-{what}.npy", allow_pickle=False)
        return array

    def total(what: str) -> npt.NDArray[np.int64]:
        found = load(0, what)
        for k in range(1, len(parts)):
            found = found + load(k, what)
        return found

    languages = sorted({lang for part in parts for lang in part["languages"]})
    by_language = np.zeros((len(search.wanted.patterns), len(languages)), dtype=np.int64)
    samples = _Samples(len(search.wanted.sampled) + 1, search.settings.sample_documents)
    n_documents = 0
    for k, part in enumerate(parts):
        places = [languages.index(lang) for lang in part["languages"]]
        by_language[:, places] += load(k, "by_language")
        ends = np.cumsum(load(k, "sample_sizes"))[:-1]
        documents = np.split(load(k, "samples") + n_documents, ends)
        for number, (chosen, keys) in enumerate(
            zip(documents, np.split(load(k, "sample_keys"), ends), strict=True)
        ):
            samples.add(number, chosen, keys)
        n_documents += part["documents"]
    both = search.settings.matching == "both"
    return Matches(
        doc_freq=by_language.sum(axis=1),
        by_language=by_language,
        languages=tuple(languages),
        pair_freq=total("pairs"),
        samples=samples.documents,
        n_documents=n_documents,
        hashes=hashes,
        token_freq=total("tokens") if both else None,
        both_freq=total("both") if both else None,
        token_pair_freq=total("token_pairs") if both else None,
    )
