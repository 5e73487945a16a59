"""The words and pairs to look for: a task's, and those of given lists."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.stage import FilesInput, Input
from mining.common.task import Task
from mining.common.tokenizer import Tokenizer
from mining.kernels.match import fold
from mining.settings import WordsSettings

LangWord = tuple[str, str]


@dataclass(frozen=True)
class Wanted:
    """Words and pairs of words, numbered.

    `number[word]` is the pattern of a word as it was given, `patterns` are the different folded
    words in order. `pairs` int64 [n_pairs, 2] are different pairs of patterns, the smaller first,
    in order; `sampled` int64 the patterns (ascending) that documents are sampled of.
    """

    number: dict[str, int]
    patterns: tuple[str, ...]
    pairs: npt.NDArray[np.int64]
    sampled: npt.NDArray[np.int64]

    def pair_places(self, pairs: Iterable[tuple[str, str]]) -> npt.NDArray[np.int64]:
        """Where pairs of words, in any order, stand in `pairs`: int64 [n]."""
        wanted = _pair_array(self.number, pairs)
        keys = self.pairs[:, 0] * len(self.patterns) + self.pairs[:, 1]
        return np.searchsorted(keys, wanted[:, 0] * len(self.patterns) + wanted[:, 1])


def number_words(
    task: Task, words: Iterable[LangWord], pairs: Iterable[tuple[LangWord, LangWord]],
    settings: WordsSettings,
) -> Wanted:  # fmt: skip
    """Number the words and pairs of a task and of two lists; those of the task are sampled."""
    listed = list(pairs)
    own = {concept.words[lang] for concept in task.concepts for lang in task.languages}
    given = {word for _, word in itertools.chain(words, *listed)}
    folded = {w: fold(w, settings.case_sensitive, settings.normalize) for w in sorted(own | given)}
    patterns = tuple(sorted(set(folded.values())))
    places = {pattern: place for place, pattern in enumerate(patterns)}
    number = {word: places[pattern] for word, pattern in folded.items()}
    in_task = (
        pair
        for concept in task.concepts
        for pair in itertools.combinations([concept.words[lang] for lang in task.languages], 2)
    )
    in_list = ((a, b) for (_, a), (_, b) in listed)
    every = _pair_array(number, itertools.chain(in_task, in_list))
    return Wanted(
        number=number,
        patterns=patterns,
        pairs=np.unique(every, axis=0),
        sampled=np.array(sorted({number[word] for word in own}), dtype=np.int64),
    )


def _pair_array(number: dict[str, int], pairs: Iterable[tuple[str, str]]) -> npt.NDArray[np.int64]:
    found = [(number[a], number[b]) for a, b in pairs]
    return np.sort(np.array(found, dtype=np.int64).reshape(-1, 2), axis=1)


def list_inputs(settings: WordsSettings) -> dict[str, Input]:
    """The list files as inputs of a stage; InputError where one is missing."""
    named = {"word_list": settings.word_list, "pair_list": settings.pair_list}
    return {name: FilesInput.folder(Path(path)) for name, path in named.items() if path is not None}


def read_words(path: Path) -> list[LangWord]:
    """(language, word) of each line of a tab-separated file."""
    return [(lang, word) for lang, word in _rows(path, 2, "language, word")]


def read_pairs(path: Path) -> list[tuple[LangWord, LangWord]]:
    """Two (language, word) of each line of a tab-separated file."""
    expected = "language, word, language, word"
    return [((la, a), (lb, b)) for la, a, lb, b in _rows(path, 4, expected)]


def _rows(path: Path, n_columns: int, expected: str) -> Iterator[list[str]]:
    """The cells of each line that is not empty; InputError names a line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if not any(cells):
            continue
        if len(cells) != n_columns or not all(cells):
            raise InputError(
                f"{path}:{number}: found {line[:80]!r}, expected {expected}, with tabs between"
            )
        yield cells


def token_sequences(
    wanted: Wanted, tokenizer: Tokenizer
) -> tuple[list[npt.NDArray[np.uint32]], list[int]]:
    """The token sequences of each word, with and without a space before it, and their patterns.

    A bare space token at the beginning is left out: it is no part of the word. So are sequences
    with a special token, such as the unknown one, which would be found everywhere.
    """
    found: set[tuple[int, tuple[int, ...]]] = set()
    for word, pattern in wanted.number.items():
        for text in (" " + word, word):
            ids = tokenizer.encode(text)
            while ids and not tokenizer.piece(ids[0]).strip():
                ids = ids[1:]
            if ids and not tokenizer.special_ids & set(ids):
                found.add((pattern, tuple(ids)))
    ordered = sorted(found)
    return [np.array(ids, dtype=np.uint32) for _, ids in ordered], [p for p, _ in ordered]
