"""What `build-task` takes from mined counts: document frequencies of words, and word vectors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from eval.lexicon_index import fold_key
from eval.word_vectors import ppmi, svd_vectors
from mining.common.errors import InputError
from mining.common.manifest import read_manifest
from mining.common.shards import read_columns


class Frequencies:
    """In how many documents of a language a word stands; 0 for words that were not counted."""

    def __init__(self, counted: dict[tuple[str, str], int]) -> None:
        self._counted = counted

    def __call__(self, lang: str, word: str) -> int:
        return self._counted.get((lang, fold_key(word)), 0)


def no_frequencies() -> Frequencies:
    """Frequencies that know no word."""
    return Frequencies({})


def count_frequencies(folder: Path, languages: Iterable[str]) -> Frequencies:
    """Frequencies from a finished `count` folder; InputError where its items are not words."""
    _require_words(folder)
    table = read_columns(folder / "items.parquet")
    words = [fold_key(word) for word in table.column("text").to_pylist()]
    counted: dict[tuple[str, str], int] = {}
    for lang in languages:
        if f"doc_freq_{lang}" not in table.column_names:
            raise InputError(f"{folder}: counts no documents of language '{lang}'")
        for word, n in zip(words, table.column(f"doc_freq_{lang}").to_pylist(), strict=True):
            counted[lang, word] = counted.get((lang, word), 0) + n
    return Frequencies(counted)


def word_frequencies(folder: Path) -> Frequencies:
    """Frequencies from a finished `words` folder, in documents of the word's own language."""
    read_manifest(folder, "words")
    table = read_columns(
        folder / "words.parquet", columns=["lang", "word", "doc_freq_own_lang"]
    ).to_pylist()
    return Frequencies(
        {(row["lang"], fold_key(row["word"])): row["doc_freq_own_lang"] for row in table}
    )


class Vectors:
    """Vectors of counted words: float64 [n_items, d], found by the folded word."""

    def __init__(self, words: list[str], vectors: npt.NDArray[np.float64]) -> None:
        self._places = {word: place for place, word in reversed(list(enumerate(words)))}
        self._vectors = vectors

    def of(self, word: str) -> npt.NDArray[np.float64]:
        """The vector of a word; zeros where it was not counted."""
        place = self._places.get(fold_key(word))
        return np.zeros(self._vectors.shape[1]) if place is None else self._vectors[place]


def count_vectors(folder: Path, dimensions: int, min_pair_documents: int) -> Vectors:
    """PPMI-SVD vectors of all items of a finished `count` folder with word items."""
    _require_words(folder)
    items = read_columns(folder / "items.parquet", columns=["text", "doc_freq"])
    parts = []
    for path in sorted((folder / "pairs").glob("*.parquet")):
        table = read_columns(path)
        table = table.filter(pc.greater_equal(table.column("n"), min_pair_documents))
        parts.append([table.column(c).to_numpy().astype(np.int64) for c in ("i", "j", "n")])
    empty = np.zeros(0, dtype=np.int64)
    i, j, n = (np.concatenate([empty, *(part[c] for part in parts)]) for c in range(3))
    doc_freq = items.column("doc_freq").to_numpy().astype(np.int64)
    matrix = ppmi(i, j, n, doc_freq, read_manifest(folder).counts["documents"])
    return Vectors(items.column("text").to_pylist(), svd_vectors(matrix, dimensions))


def _require_words(folder: Path) -> None:
    unit = read_manifest(folder, "count").counts["unit"]
    if unit != "word":
        raise InputError(
            f"{folder}: counts {unit}s, expected words; run `pivots count --count.unit word` on "
            "shards made with tokenize.words"
        )
