"""Finds words in the text of the documents: one pass over the corpus, postings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from ahocorasick_rs import AhoCorasick

from mining.common.errors import MismatchError
from mining.common.files import read_json, write_json
from mining.common.seeds import hash64
from mining.common.shards import list_shards
from mining.common.stage import read_manifest
from mining.documents import Record
from mining.inputs import Reader, input_files, merge_hashes, open_readers
from mining.kernels.match import fold, stands_alone
from mining.pieces import save_array
from mining.settings import CorpusSettings, EngineSettings
from mining.tasks import run_tasks


@dataclass(frozen=True)
class Postings:
    """The documents of each pattern, and what is known of the documents.

    Pattern p stands in documents[offsets[p]:offsets[p + 1]] (int64, ascending), numbered over all
    shards in order. `lang` int64 [n_docs] points into `languages`; `keys` uint64 [n_docs] orders
    documents at random (see `kernels.lift.smallest`). `hashes` are the corpus files' SHA-256.
    """

    documents: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    languages: tuple[str, ...]
    lang: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    hashes: dict[str, str]

    def of(self, pattern: int) -> npt.NDArray[np.int64]:
        """The documents of one pattern."""
        return self.documents[self.offsets[pattern] : self.offsets[pattern + 1]]


class WordFinder:
    """Finds which of many words stand in a text, with one automaton for all of them."""

    def __init__(self, words: Sequence[str], case_sensitive: bool) -> None:
        """`words` are folded (kernels.match.fold) and all different."""
        self.case_sensitive = case_sensitive
        self._automaton: Any = AhoCorasick(list(words)) if words else None

    def find(self, text: str) -> list[int]:
        """The words (their places in the list, ascending) that stand alone somewhere in `text`."""
        if self._automaton is None:
            return []
        folded = fold(text, self.case_sensitive)
        found: set[int] = set()
        for word, start, end in self._automaton.find_matches_as_indexes(folded, overlapping=True):
            if word not in found and stands_alone(folded, start, end):
                found.add(word)
        return sorted(found)


def find_postings(
    patterns: Sequence[str],
    case_sensitive: bool,
    corpus: CorpusSettings,
    tokens: Path,
    tokenizer: Path,
    seed: int,
    work: Path,
    engine: EngineSettings,
) -> Postings:
    """Look for the patterns (folded words) in every document that the token shards hold.

    `tokens` is the folder of the `tokenize` stage, `tokenizer` the one it used; partial results
    go to `work`, one a part of the corpus.
    Raises MismatchError where the corpus is not the one that the shards were made from.
    """
    readers = open_readers(corpus, tokenizer)
    shards = list_shards(tokens / "tokens")
    _check_names(sorted(input_files(corpus)), len(readers), tokens, len(shards))
    task = partial(
        _search_files,
        patterns=tuple(patterns),
        case_sensitive=case_sensitive,
        readers=readers,
        shards=shards,
        seed=seed,
        work=work,
    )
    run_tasks("words: text", task, len(readers), work / "tasks", engine)
    return _collect(len(readers), len(patterns), work, tokens)


def _check_names(names: list[str], n_parts: int, tokens: Path, n_shards: int) -> None:
    recorded = read_manifest(tokens, "tokenize").inputs.get("documents", {}).get("files")
    if n_parts != n_shards or (recorded is not None and sorted(recorded) != names):
        raise MismatchError(
            f"corpus.path has {len(names)} files, but {tokens} was made from "
            f"{n_shards if recorded is None else len(recorded)}, or from others; "
            "run `pivots tokenize` again"
        )


def _search_files(
    rank: int,
    world: int,
    patterns: tuple[str, ...],
    case_sensitive: bool,
    readers: list[Reader],
    shards: list[Path],
    seed: int,
    work: Path,
) -> None:
    finder = WordFinder(patterns, case_sensitive)
    for k in range(rank, len(readers), world):
        reader = readers[k]
        shard = pq.read_table(shards[k], columns=["id", "lang", "n_chars"])
        found: list[int] = []
        n_found: list[int] = []
        keys: list[int] = []
        for record in _documents_of(reader, shard, shards[k]):
            words = finder.find(record.text)
            found += words
            n_found.append(len(words))
            keys.append(hash64(seed, "sample", record.id))
        save_array(work / f"{k:05d}-words.npy", np.array(found, dtype=np.int64))
        save_array(work / f"{k:05d}-sizes.npy", np.array(n_found, dtype=np.int64))
        save_array(work / f"{k:05d}-keys.npy", np.array(keys, dtype=np.uint64))
        langs = shard.column("lang").to_pylist()
        write_json(work / f"{k:05d}.json", {"hashes": reader.hashes, "lang": langs})


def _documents_of(reader: Reader, shard: Any, path: Path) -> Iterator[Record]:
    """The records that the shard holds, in order.

    A shard is its file's records without the rejected and dropped ones, so both are walked through
    side by side. Length and language tell a document from one of the same id that was dropped.
    """
    ids = shard.column("id").to_pylist()
    langs = shard.column("lang").to_pylist()
    lengths = shard.column("n_chars").to_pylist()
    row = 0
    for record in reader:
        if (
            row < len(ids)
            and isinstance(record, Record)
            and record.id == ids[row]
            and len(record.text) == lengths[row]
            and record.lang in (None, langs[row])
        ):
            row += 1
            yield record
    if row < len(ids):
        raise MismatchError(
            f"{reader.path}: the document '{ids[row]}' of {path} is not there, or another length; "
            "the corpus changed, run `pivots tokenize` again"
        )


def _collect(n_parts: int, n_patterns: int, work: Path, tokens: Path) -> Postings:
    parts = [read_json(work / f"{k:05d}.json") for k in range(n_parts)]
    hashes = merge_hashes(part["hashes"] for part in parts)
    recorded = read_manifest(tokens, "tokenize").inputs.get("documents", {}).get("files", {})
    for name, entry in recorded.items():
        if name in hashes and entry.get("sha256", hashes[name]) != hashes[name]:
            raise MismatchError(f"{name}: changed since {tokens}; run `pivots tokenize` again")

    def load(what: str) -> list[npt.NDArray[Any]]:
        paths = [work / f"{k:05d}-{what}.npy" for k in range(n_parts)]
        return [np.load(path, allow_pickle=False) for path in paths]

    found, sizes = np.concatenate(load("words")), np.concatenate(load("sizes"))
    documents = np.repeat(np.arange(len(sizes)), sizes)
    order = np.argsort(found, kind="stable")  # the documents of each pattern stay in order
    offsets = np.zeros(n_patterns + 1, dtype=np.int64)
    np.cumsum(np.bincount(found, minlength=n_patterns), out=offsets[1:])
    lang = [code for part in parts for code in part["lang"]]
    languages, codes = np.unique(np.array(lang, dtype=np.str_), return_inverse=True)
    return Postings(
        documents=documents[order],
        offsets=offsets,
        languages=tuple(languages.tolist()),
        lang=codes.astype(np.int64),
        keys=np.concatenate(load("keys")),
        hashes=hashes,
    )
