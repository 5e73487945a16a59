"""Tokens that go with words, and the semantic pivots of word pairs (METHOD section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.logs import progress
from mining.common.task import Concept, Task
from mining.common.tokenizer import Tokenizer
from mining.items import token_holds_letter
from mining.kernels.assoc import npmi_array
from mining.kernels.lift import strongest
from mining.settings import WordsSettings

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
    """What is known of words and tokens.

    `pattern[concept, lang]` is a word's number; `counts` uint32 [n_words, n_ids] holds the document
    frequencies of tokens in each word's sample of `n_sampled` int64 [n_words] documents, `n_word`
    float64 [n_words] the words' exact document frequencies. `background` float64 [n_ids] is f(t),
    `doc_freq` float64 [n_ids] exact, over all `n_documents`. `ordinary` bool [n_ids] marks the
    tokens that are not special, `candidate` bool [n_ids] those that may be pivots of some pair.
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


def token_rows(
    task: Task, statistics: Statistics, tokenizer: Tokenizer, settings: WordsSettings
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
                for token in strongest(
                    lift, statistics.ordinary, settings.pivots_per_pair
                ).tolist():
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
