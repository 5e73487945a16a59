"""What dictionaries list as translations of a word, in either direction, for look-ups.

Two words are linked where any entry pairs them, in any sense and whichever of the two is the
headword. Words are compared folded: NFC, case folded, and for Japanese without the する that makes
a verb of a noun (one dictionary lists 勉強, the other 勉強する).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Set
from itertools import permutations

from eval.lexicons import Entry
from mining.common.task import Avoided, Concept

SURU = "する"
_NONE: frozenset[str] = frozenset()


def fold_key(word: str) -> str:
    """The form in which words are compared: NFC and case folded, no white space at the ends."""
    return unicodedata.normalize("NFC", word.strip().casefold())


def fold_word(word: str, lang: str) -> str:
    """The form in which a word of `lang` is looked up."""
    folded = fold_key(word)
    if lang == "ja" and folded != SURU:
        folded = folded.removesuffix(SURU)
    return folded


class LexiconIndex:
    """The links of a set of dictionary entries."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._links: dict[tuple[str, str], dict[str, set[str]]] = {}
        for entry in entries:
            source = fold_word(entry.source, entry.source_lang)
            target = fold_word(entry.target, entry.target_lang)
            self._add(entry.source_lang, source, entry.target_lang, target)
            self._add(entry.target_lang, target, entry.source_lang, source)

    def _add(self, source_lang: str, source: str, target_lang: str, target: str) -> None:
        words = self._links.setdefault((source_lang, target_lang), {})
        words.setdefault(source, set()).add(target)

    def language_pairs(self) -> Set[tuple[str, str]]:
        """The ordered pairs of languages that have links; each stands in both orders."""
        return self._links.keys()

    def translations(self, source_lang: str, target_lang: str, word: str) -> Set[str]:
        """Folded words of `target_lang` linked to `word`; empty where it is not known."""
        words = self._links.get((source_lang, target_lang), {})
        return words.get(fold_word(word, source_lang), _NONE)


def folded_forms(concept: Concept, lang: str) -> list[str]:
    """The concept's word and its alternatives in `lang`, folded, without repetition."""
    words = (concept.words[lang], *concept.alternatives[lang])
    return list(dict.fromkeys(fold_word(word, lang) for word in words))


def ambiguous_pairs(
    concepts: Iterable[Concept], languages: Iterable[str], index: LexiconIndex
) -> dict[Avoided, str]:
    """(source_lang, target_lang, id, sibling) where the sibling may translate the concept's word.

    Siblings are of the same part of speech. The value is the evidence: `direct` where a form of the
    concept in the source language is linked to a form of the sibling in the target language.
    `through` where the link leads over a third language: the source word is linked to the sibling's
    word there, so that it has the sibling's meaning too, or the concept's word there is linked to
    the sibling's word of the target language. A dictionary of every pair of languages is thus not
    needed. Sorted by key.
    """
    listed, langs = list(concepts), list(languages)
    holders: dict[tuple[str, str, str], list[int]] = {}
    for place, concept in enumerate(listed):
        for lang in langs:
            for form in folded_forms(concept, lang):
                holders.setdefault((concept.pos, lang, form), []).append(place)
    found: dict[Avoided, str] = {}

    def note(source: str, target: str, concept: Concept, sibling: Concept, evidence: str) -> None:
        key = (source, target, concept.id, sibling.id)
        if evidence == "direct" or key not in found:
            found[key] = evidence

    for concept in listed:
        for first, second in permutations(langs, 2):
            siblings = {
                place
                for form in folded_forms(concept, first)
                for translation in index.translations(first, second, form)
                for place in holders.get((concept.pos, second, translation), ())
                if listed[place].id != concept.id
            }
            for sibling in (listed[place] for place in siblings):
                note(first, second, concept, sibling, "direct")
                for other in langs:
                    if other not in (first, second):
                        # The concept's word in `first` also means the sibling, in any language;
                        # the sibling's word in `second` also means the concept.
                        note(first, other, concept, sibling, "through")
                        note(other, second, concept, sibling, "through")
    return dict(sorted(found.items()))
