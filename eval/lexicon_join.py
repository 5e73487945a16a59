"""Concepts out of dictionaries: an n-way join over a pivot language (METHOD section 1, Data).

For a pivot word and a part of speech, the linked words of every other language are candidates; a
link holds where it is translated back. The candidates fall into senses: words that one dictionary
lists under one sense of the pivot word belong together, and so do words of two languages that a
dictionary of these two languages links (without such a dictionary, the best words of the two). A
sense that has a word in every language is a concept. Its best word of a language is the one that
most dictionaries agree on, in the earliest sense; languages are taken in their order, and a later
one looks at the words taken in the earlier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from eval.lexicon_index import fold_key
from eval.lexicons import Entry

# (language, word) -> in how many documents of that language it stands.
Frequency = Callable[[str, str], int]


class Evidence(NamedTuple):
    """One entry that pairs a pivot word with a word; `forward` where the pivot is the headword."""

    source: int
    forward: bool
    pos: str
    sense: int
    label: str


@dataclass(frozen=True)
class Candidate:
    """A concept that may go into the task; `strength` orders candidates, the larger first.

    `words[lang]` is the best word, `alternatives[lang]` the others of the same sense. `cls` is
    empty where no source gives a class.
    """

    pos: str
    words: Mapping[str, str]
    alternatives: Mapping[str, tuple[str, ...]]
    strength: tuple[int, ...] = ()
    cls: str = ""
    id: str = ""
    group: str = ""
    example: str = ""


class Dropped(NamedTuple):
    """A candidate that did not become a concept: what it was, the kind of reason, the details."""

    reason: str
    detail: str
    id: str
    pos: str
    words: Mapping[str, str]


class LinkedWord(NamedTuple):
    """A word of a language other than the pivot (folded), with the entries that link it."""

    lang: str
    word: str
    evidence: tuple[Evidence, ...]


# (word, the words of its sense) -> its place among those of its language, the smallest first.
Rank = Callable[[LinkedWord, Sequence[LinkedWord]], tuple[bool, int, int, int, int, str]]


@dataclass
class Lexicon:
    """All entries by the pairs of words that they link; words under their folded keys."""

    pivot: str
    links: dict[str, dict[str, dict[str, list[Evidence]]]] = field(default_factory=dict)
    others: dict[tuple[str, str], set[tuple[str, str]]] = field(default_factory=dict)
    spellings: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    senses: dict[tuple[str, str], dict[tuple[int, str], set[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, pivot: str, sources: Iterable[tuple[int, Entry]]) -> Lexicon:
        """Collect entries, each with the number of its source."""
        lexicon = cls(pivot)
        for number, entry in sources:
            lexicon._add(number, entry)
        return lexicon

    def _add(self, number: int, e: Entry) -> None:
        source, target = fold_key(e.source), fold_key(e.target)
        self.spellings.setdefault((e.source_lang, source), Counter())[e.source] += 1
        self.spellings.setdefault((e.target_lang, target), Counter())[e.target] += 1
        senses = self.senses.setdefault((e.source_lang, source), {})
        senses.setdefault((number, e.target_lang), set()).add(e.sense)
        if e.source_lang == self.pivot:
            words = self.links.setdefault(e.target_lang, {}).setdefault(source, {})
            words.setdefault(target, []).append(Evidence(number, True, e.pos, e.sense, e.label))
        elif e.target_lang == self.pivot:
            words = self.links.setdefault(e.source_lang, {}).setdefault(target, {})
            words.setdefault(source, []).append(Evidence(number, False, e.pos, e.sense, ""))
        else:
            first, second = (e.source_lang, source), (e.target_lang, target)
            for (lang, word), (other, translation) in ((first, second), (second, first)):
                self.others.setdefault((lang, other), set()).add((word, translation))

    def linked(self, lang: str, word: str, other: str, translation: str) -> bool:
        """Whether an entry of two languages other than the pivot links two folded words."""
        return (word, translation) in self.others.get((lang, other), ())

    def spelling(self, lang: str, word: str) -> str:
        """How a folded word is mostly written; ties: capitals first, as German nouns want it."""
        counts = self.spellings[lang, word]
        return min(counts, key=lambda text: (-counts[text], text))

    def n_senses(self, lang: str, word: str) -> int:
        """The most senses that any one dictionary gives a folded word; 0 where it has no entry."""
        return max((len(s) for s in self.senses.get((lang, word), {}).values()), default=0)


def join(
    lexicon: Lexicon,
    languages: Sequence[str],
    frequency: Frequency,
    minimum: Mapping[str, int],
    back_translation: bool = True,
    only: Collection[tuple[str, str]] | None = None,
) -> tuple[list[Candidate], list[Dropped]]:
    """Candidates with one word in each of `languages` (the pivot is one of them), and the rest.

    With `back_translation` a link counts only where entries stand in both directions, or where it
    is led back to the pivot word over a further language. `only` restricts the join to some pairs
    of a folded pivot word and a part of speech. Words rarer than their language's `minimum` are
    chosen only where there is no other. Both lists are in the order of the pivot words.
    """
    others = [lang for lang in languages if lang != lexicon.pivot]

    def rank(word: LinkedWord, sense: Sequence[LinkedWord]) -> tuple[bool, int, int, int, int, str]:
        doc_freq = frequency(word.lang, lexicon.spelling(word.lang, word.word))
        return doc_freq < minimum.get(word.lang, 0), *rank_key(lexicon, word, sense, doc_freq)

    candidates: list[Candidate] = []
    dropped: list[Dropped] = []
    for pivot_word in sorted({word for lang in others for word in lexicon.links.get(lang, {})}):
        for pos in _parts_of_speech(lexicon, others, pivot_word):
            if only is not None and (pivot_word, pos) not in only:
                continue
            words, lacking = _words(lexicon, others, pivot_word, pos, back_translation)
            name = {lexicon.pivot: lexicon.spelling(lexicon.pivot, pivot_word)}
            if lacking:
                dropped.append(Dropped("no translation", "; ".join(lacking), "", pos, name))
                continue
            for sense in _senses(lexicon, words, rank):
                covered = {w.lang for w in sense}
                if missing := [lang for lang in others if lang not in covered]:
                    found = {w.lang: lexicon.spelling(w.lang, w.word) for w in reversed(sense)}
                    detail = f"this sense has no word in {', '.join(missing)}"
                    dropped.append(Dropped("sense not shared", detail, "", pos, name | found))
                    continue
                candidates.append(_candidate(lexicon, pivot_word, pos, others, sense, rank))
    return candidates, dropped


def _parts_of_speech(lexicon: Lexicon, langs: Iterable[str], pivot_word: str) -> list[str]:
    """The parts of speech that entries give to links of a pivot word; [""] where none does."""
    found = {
        e.pos
        for lang in langs
        for evidence in lexicon.links.get(lang, {}).get(pivot_word, {}).values()
        for e in evidence
    }
    return sorted(found - {""}) or [""]


def _words(
    lexicon: Lexicon, langs: Sequence[str], pivot_word: str, pos: str, back_translation: bool
) -> tuple[list[LinkedWord], list[str]]:
    """The words whose link holds, and for each language without one, why."""
    words: list[LinkedWord] = []
    lacking: list[str] = []
    for lang in langs:
        listed = lexicon.links.get(lang, {}).get(pivot_word, {})
        n_fitting = 0
        held = []
        for word, evidence in listed.items():
            fitting = _fitting(evidence, pos)
            n_fitting += bool(fitting)
            if fitting and (
                not back_translation or _holds(lexicon, pivot_word, lang, word, pos, fitting)
            ):
                held.append(LinkedWord(lang, word, fitting))
        if not held:
            why = f"{n_fitting} of this part of speech, none translated back"
            lacking.append(f"{lang}: {len(listed)} listed" + (f", {why}" if listed else ""))
        words += sorted(held)
    return words, lacking


def _fitting(evidence: Sequence[Evidence], pos: str) -> tuple[Evidence, ...]:
    """The entries of a link that may be of a part of speech.

    Those without one fit any; but not alone, where other entries of the link name another.
    """
    named = {e.pos for e in evidence} - {""}
    if named and pos not in named:
        return ()
    return tuple(e for e in evidence if e.pos in (pos, ""))


def _holds(
    lexicon: Lexicon, pivot_word: str, lang: str, word: str, pos: str, fitting: Sequence[Evidence]
) -> bool:
    directions = {e.forward for e in fitting}
    if len(directions) == 2:
        return True
    # Over a further language: pivot -> word -> its translation there -> pivot, or the other way.
    wanted = not directions.pop()
    for third, listed in lexicon.links.items():
        if third == lang or pivot_word not in listed:
            continue
        for translation, evidence in listed[pivot_word].items():
            if lexicon.linked(lang, word, third, translation) and any(
                e.forward == wanted and e.pos in (pos, "") for e in evidence
            ):
                return True
    return False


def _senses(lexicon: Lexicon, words: Sequence[LinkedWord], rank: Rank) -> list[list[LinkedWord]]:
    """Connected components of the words, see the module's text; in the order of their words."""
    parent = list(range(len(words)))

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for first, second in combinations(range(len(words)), 2):
        if _same_sense(lexicon, words[first], words[second]):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    for first, second in _unlinked_best(lexicon, words, rank):
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups: dict[int, list[LinkedWord]] = {}
    for place, word in enumerate(words):
        groups.setdefault(root(place), []).append(word)
    return list(groups.values())


def _unlinked_best(
    lexicon: Lexicon, words: Sequence[LinkedWord], rank: Rank
) -> Iterator[tuple[int, int]]:
    """Places of the best words of two languages of which no source can tell whether they agree.

    That is where no dictionary of the two is given and no source lists both under common labels;
    the best word of each is then taken for the same sense.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(word.lang, []).append(place)
    for one, two in combinations(places, 2):
        labelled = {e.source for p in places[one] for e in words[p].evidence if e.label} & {
            e.source for p in places[two] for e in words[p].evidence if e.label
        }
        if not labelled and (one, two) not in lexicon.others:
            first, second = (
                min(places[lang], key=lambda p: rank(words[p], words)) for lang in (one, two)
            )
            yield first, second


def _same_sense(lexicon: Lexicon, first: LinkedWord, second: LinkedWord) -> bool:
    if first.lang != second.lang and lexicon.linked(
        first.lang, first.word, second.lang, second.word
    ):
        return True
    # Sense numbers compare within one dictionary of one pair of languages, labels within one.
    for a in first.evidence:
        for b in second.evidence:
            if not (a.forward and b.forward and a.source == b.source and a.pos == b.pos):
                continue
            if a.label or b.label:
                if a.label == b.label:
                    return True
            elif first.lang == second.lang and a.sense == b.sense:
                return True
    return False


def _candidate(
    lexicon: Lexicon,
    pivot_word: str,
    pos: str,
    langs: Sequence[str],
    sense: Sequence[LinkedWord],
    rank: Rank,
) -> Candidate:
    pivot = lexicon.pivot
    words = {pivot: lexicon.spelling(pivot, pivot_word)}
    alternatives: dict[str, tuple[str, ...]] = {pivot: ()}
    agreement = place = links = 0
    left = list(sense)
    for lang in langs:
        # Of languages done, `left` holds only the word taken, so that the words fit each other.
        ranked = sorted((rank(w, left), w) for w in left if w.lang == lang)
        spelled = [lexicon.spelling(lang, w.word) for _, w in ranked]
        words[lang], alternatives[lang] = spelled[0], tuple(spelled[1:])
        (_, disagreement, late, *_), best = ranked[0]
        left = [w for w in left if w.lang != lang or w == best]
        agreement -= disagreement
        place += late
        links += sum(
            lexicon.linked(lang, best.word, other, fold_key(words[other]))
            for other in langs
            if other in words and other != lang
        )
    return Candidate(pos, words, alternatives, (links, agreement, -place))


def rank_key(
    lexicon: Lexicon, word: LinkedWord, sense: Sequence[LinkedWord], doc_freq: int
) -> tuple[int, int, int, int, str]:
    """The order of a language's words in a sense, the best first.

    By how many dictionaries and directions list the link and in how many further languages a word
    of the sense is linked to it (more first); the sum of its lowest sense numbers in the two
    directions; its document frequency (higher first); how many words of the sense in further
    languages are linked to it (more first); the word itself.
    """
    listed = {(e.source, e.forward) for e in word.evidence}
    linked = [
        other.lang
        for other in sense
        if other.lang != word.lang and lexicon.linked(word.lang, word.word, other.lang, other.word)
    ]
    lowest: dict[bool, int] = {}
    for e in word.evidence:
        lowest[e.forward] = min(e.sense, lowest.get(e.forward, e.sense))
    spelled = lexicon.spelling(word.lang, word.word)
    agreement = len(listed) + len(set(linked))
    return -agreement, sum(lowest.values()), -doc_freq, -len(linked), spelled
