"""Which candidates become concepts: filters that give a reason, and the classes of what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from eval.build_frequencies import Frequencies, Vectors
from eval.build_settings import BuildTaskSettings
from eval.build_sources import is_single_word
from eval.lexicon_index import fold_key
from eval.lexicon_join import Candidate, Dropped, Lexicon
from eval.word_vectors import neighbour_groups, unit_rows

UNKNOWN_POS = "word"
# (short reason, details) or None.
Fault = tuple[str, str] | None


def choose(
    candidates: Sequence[Candidate],
    settings: BuildTaskSettings,
    lexicon: Lexicon,
    frequency: Frequencies,
) -> tuple[list[Candidate], list[Dropped]]:
    """The candidates that pass every filter, and the others with the first reason against each.

    Of two candidates with the same word in a language the stronger is kept (ties: by id, which for
    joined candidates is the pivot word). Kept ones come in that order.
    """
    kept: list[Candidate] = []
    dropped: list[Dropped] = []
    holders: dict[tuple[str, str], str] = {}
    order = sorted(
        candidates,
        key=lambda c: (
            tuple(-value for value in c.strength),
            c.id,
            c.pos,
            tuple(c.words.values()),
        ),
    )
    for candidate in order:
        candidate = dataclasses.replace(candidate, pos=candidate.pos or UNKNOWN_POS)
        fault = _fault(candidate, settings, lexicon, frequency) or _taken(candidate, holders)
        if fault is None and len(kept) == settings.max_concepts:
            fault = ("beyond max_concepts", f"{settings.max_concepts} are kept")
        if fault is not None:
            dropped.append(Dropped(*fault, candidate.id, candidate.pos, candidate.words))
            continue
        kept.append(candidate)
        for lang, word in candidate.words.items():
            holders[lang, fold_key(word)] = candidate.id
    return kept, dropped


def _fault(
    candidate: Candidate, settings: BuildTaskSettings, lexicon: Lexicon, frequency: Frequencies
) -> Fault:
    if candidate.pos not in settings.pos:
        return "part of speech", candidate.pos
    for lang, word in candidate.words.items():
        if settings.single_words and not is_single_word(word):
            return "not a single word", f"{lang}: {word}"
        if lang in settings.lower_case and word[0].isupper():
            return "capitalised", f"{lang}: {word}"
        n_senses = lexicon.n_senses(lang, fold_key(word))
        if settings.max_senses is not None and n_senses > settings.max_senses:
            return "too many senses", f"{lang}: {word} has {n_senses}"
        if (n := frequency(lang, word)) < settings.min_doc_freq.get(lang, 0):
            return "rare", f"{lang}: {word} in {n} documents"
    return None


def _taken(candidate: Candidate, holders: dict[tuple[str, str], str]) -> Fault:
    for lang, word in candidate.words.items():
        if (other := holders.get((lang, fold_key(word)))) is not None:
            return "word taken", f"{lang}: {word} is the word of {other}"
    return None


def add_classes(
    candidates: Sequence[Candidate], vectors: Callable[[], Vectors] | None, class_size: int
) -> list[Candidate]:
    """Give a class to the candidates that have none.

    Within a part of speech, groups of near neighbours (`neighbour_groups`) by the mean similarity
    of their words over the languages; words of no vector in any language share one class. Without
    vectors the part of speech is the class.
    """
    result = list(candidates)
    without = [place for place, c in enumerate(result) if not c.cls]
    if not without:
        return result
    found = vectors() if vectors is not None else None
    for pos in sorted({result[place].pos for place in without}):
        places = [place for place in without if result[place].pos == pos]
        names = [pos] * len(places)
        if found is not None:
            rows = np.array(
                [
                    np.concatenate(
                        [unit_rows(found.of(w)[None])[0] for w in result[place].words.values()]
                    )
                    for place in places
                ]
            )
            rows = unit_rows(rows)
            known = np.flatnonzero(rows.any(axis=1))
            labels = neighbour_groups(rows[known], class_size)
            names = [f"{pos}-other"] * len(places)
            for number, label in zip(known.tolist(), labels.tolist(), strict=True):
                names[number] = f"{pos}-{label + 1:03d}"
        for place, name in zip(places, names, strict=True):
            result[place] = dataclasses.replace(result[place], cls=name)
    return result
