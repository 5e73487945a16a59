"""Who is who in the generated world: its tokens, concepts, cells and planted ties.

Concepts are laid out topic by topic. Of each topic's, `training_per_topic` are training concepts:
format documents translate them, and they serve as worked examples. The others are held out, one
from each of as many equal blocks of places, so that held-out concepts are as frequent as training
ones. The blocks go through the four cells of the design in turn, and each topic starts one cell
later, so that every cell has its share of frequent and rare concepts:

    p1c0  a pivot, never in one document with its translation: pivots alone tie its words together
    p0c0  neither: what a model knows about these, it has from topic and frequency (control)
    p1c1  a pivot, and code-switched documents that hold both words
    p0c1  code-switched documents only

Pivots are one-to-one by default: a concept has at most one, a pivot belongs to one concept (else
`share_pivots` draws who shares which). Half of the held-out concepts have one by design (40 of 80
by default). The remaining pivots (152 of 192) go to training concepts, evenly over topics and
ranks: a model needs concepts that it can both translate and see beside a pivot to learn that the
same pivot means the same concept. The training concepts without a pivot (88 of 240), and the cells
p0, have only text of their own language and, in c1 and for training concepts, documents of several
languages.

A concept's place in its topic is the rank of its words' frequency. Unless `shared_frequency` is
set, the places are shuffled, separately per language, among the concepts of a topic that are alike
(training or held out, with or without a pivot). Otherwise a model finds translations by frequency:
in a trial with one seed that lifted the cell p0c0 to .28 (chance .10; shuffled, it was .04). Two
cues remain, and the cells p0 show what they are worth: the topic, which the distractors share, and
that a word never stands beside a pivot, which holds for about half of the distractors.

Names are decoys: like a pivot, a name stands beside one concept's word, but in one language only.
They are given to concepts without a pivot. Hubs belong to a topic and stand in all languages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mining.common.seeds import generator
from mining.settings import WorldSettings

TRAIN = "train"
# In the order in which the blocks of ranks go through them: every other one has a pivot.
CELLS = ("p1c0", "p0c0", "p1c1", "p0c1")

# The sounds of each language: onsets and vowels of its consonant-vowel syllables. No onset is in
# two languages, so no word is either.
FLAVOURS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("p", "t", "k", "m", "n", "l", "s", "r"), ("a", "e", "i", "o", "u")),
    (("b", "d", "g", "v", "z", "br", "dr", "gl"), ("a", "e", "o", "u", "ie")),
    (("sh", "ch", "zh", "y", "h", "w", "ts", "ng"), ("a", "i", "u", "ei", "ao")),
    (("f", "fl", "st", "sk", "pr", "kl", "tr", "sp"), ("a", "e", "i", "o", "y")),
    (("j", "x", "q", "hl", "tl", "kw", "nj", "lj"), ("a", "e", "i", "o", "oa")),
    (("th", "ph", "kh", "dh", "gh", "bh", "rh", "mh"), ("a", "i", "u", "ai", "au")),
)
# Tokens without language: consonant, vowel, consonant, two digits.
NEUTRAL_CONSONANTS = "bdfgklmnprstvz"
NEUTRAL_VOWELS = "aeiou"


@dataclass(frozen=True)
class World:
    """The plan of a world of L languages, C concepts and V tokens. Ids are int64, -1 means none.

    `vocabulary[id]` is a token's text. `codes` [L] are the languages, `names` [L] the ids of their
    name tokens (LA, ...). `function` [L, n], `neutral` [n], `hubs` [topics, n]. `words` [L, C, 2]
    is each word's first and second token. `topic` [C]; `cells` [C] is "train" or one of CELLS.
    `by_rank` [L, topics, concepts_per_topic] are the concepts of a topic by falling frequency in a
    language. `pivots` [L, C, m] are the pivots of which one may stand beside the word (the same in
    all languages unless the world is broken), `decoys` [L, C] the name. `pairs` lists the unordered
    pairs of languages, and `pair_counts` [C, len(pairs)] in how many code-switched documents a
    held-out pair of words is planted (0 for training concepts, which stand there unplanned).
    """

    vocabulary: tuple[str, ...]
    codes: tuple[str, ...]
    names: npt.NDArray[np.int64]
    function: npt.NDArray[np.int64]
    neutral: npt.NDArray[np.int64]
    hubs: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    topic: npt.NDArray[np.int64]
    by_rank: npt.NDArray[np.int64]
    cells: tuple[str, ...]
    pivots: npt.NDArray[np.int64]
    decoys: npt.NDArray[np.int64]
    pairs: tuple[tuple[int, int], ...]
    pair_counts: npt.NDArray[np.int64]

    def concept_id(self, concept: int) -> str:
        """The id of a concept in the task: topic and place in it, both from 1."""
        topic, place = divmod(concept, self.by_rank.shape[2])
        return f"{self.topic_name(topic)}-{place + 1:02d}"

    @staticmethod
    def topic_name(topic: int) -> str:
        """The name of a topic: its class in the task."""
        return f"topic{topic + 1}"

    def word(self, lang: int, concept: int) -> str:
        """The text of a concept's word."""
        return " ".join(self.vocabulary[token] for token in self.word_tokens(lang, concept))

    def word_tokens(self, lang: int, concept: int) -> list[int]:
        """The one or two token ids of a concept's word."""
        return [int(token) for token in self.words[lang, concept] if token >= 0]

    def training(self) -> npt.NDArray[np.int64]:
        """The training concepts, ascending."""
        return np.flatnonzero(np.asarray(self.cells) == TRAIN)


def plan_world(settings: WorldSettings, seed: int) -> World:
    """Draw a world's plan; a function of (settings, seed) only."""
    n_topics, per_topic = settings.topics, settings.concepts_per_topic
    n_concepts = n_topics * per_topic
    topic = np.repeat(np.arange(n_topics), per_topic)
    cells = draw_cells(settings, generator(seed, "world", "cells"))
    vocabulary = _Vocabulary(seed)
    codes = tuple(f"l{chr(ord('a') + i)}" for i in range(settings.languages))
    names = vocabulary.add([code.upper() for code in codes])
    function = [
        vocabulary.words(code, i, settings.function_words, "function", (1, 2))
        for i, code in enumerate(codes)
    ]
    words = [
        _word_table(vocabulary, code, i, n_concepts, settings.two_token_share, seed)
        for i, code in enumerate(codes)
    ]
    n_hubs = n_topics * settings.hubs_per_topic
    # One draw for all tokens without language, so that their look tells nothing about their part.
    has_pivot = draw_pivot_concepts(settings, cells, generator(seed, "world", "pivots"))
    owned = share_pivots(settings, topic[has_pivot], generator(seed, "world", "shared pivots"))
    n_pivots = int(owned.max()) + 1
    plain = vocabulary.neutral(settings.neutral_words + n_hubs + n_pivots)
    neutral, hubs, pivot_ids = np.split(plain, np.cumsum([settings.neutral_words, n_hubs]))
    pivots = np.full((settings.languages, n_concepts, settings.pivots_per_concept), -1, np.int64)
    pivots[:, has_pivot] = pivot_ids[owned]
    if settings.broken_pivots:
        _break(pivots, topic, generator(seed, "world", "broken"))
    decoys = np.full((settings.languages, n_concepts), -1, dtype=np.int64)
    free = np.setdiff1d(np.arange(n_concepts), has_pivot)
    for i, code in enumerate(codes):
        rng = generator(seed, "world", "names", code)
        given = np.sort(rng.choice(free, size=settings.names_per_language, replace=False))
        decoys[i, given] = vocabulary.words(code, i, len(given), "names", (2, 3), capital=True)
    pairs = tuple(itertools.combinations(range(settings.languages), 2))
    return World(
        vocabulary=tuple(vocabulary.texts),
        codes=codes,
        names=names,
        function=np.stack(function),
        neutral=neutral,
        hubs=hubs.reshape(n_topics, settings.hubs_per_topic),
        words=np.stack(words),
        topic=topic,
        by_rank=_by_rank(settings, cells, has_pivot, seed),
        cells=cells,
        pivots=pivots,
        decoys=decoys,
        pairs=pairs,
        pair_counts=_pair_counts(settings, cells, pairs, generator(seed, "world", "pair counts")),
    )


def draw_cells(settings: WorldSettings, rng: np.random.Generator) -> tuple[str, ...]:
    """The cell of each concept; see the module's text."""
    held = settings.concepts_per_topic - settings.training_per_topic
    blocks = np.array_split(np.arange(settings.concepts_per_topic), held)
    cells = []
    for topic in range(settings.topics):
        row = [TRAIN] * settings.concepts_per_topic
        for i, block in enumerate(blocks):
            row[int(rng.choice(block))] = CELLS[(i + topic) % len(CELLS)]
        cells += row
    return tuple(cells)


def draw_pivot_concepts(
    settings: WorldSettings, cells: tuple[str, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The concepts that have a pivot, int64 [settings.pivots], ascending.

    All held-out concepts of the p1 cells, and training concepts at even distances (a systematic
    sample over topics and, within them, ranks).
    """
    held = np.flatnonzero([cell.startswith("p1") for cell in cells])
    training = np.flatnonzero(np.asarray(cells) == TRAIN)
    wanted = settings.pivots - len(held)
    step = len(training) / max(1, wanted)
    picked = np.floor((np.arange(wanted) + rng.random()) * step).astype(np.int64)
    return np.sort(np.concatenate([held, training[picked]]))


def share_pivots(
    settings: WorldSettings, topic: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Which pivots, numbered from 0, each concept with pivots has: int64 [n, pivots_per_concept].

    `topic` int64 [n] of these concepts, ascending. Within a topic every pivot is dealt to
    `concepts_per_pivot` concepts (one of them to fewer where the numbers do not divide), at random
    and never twice to one.
    """
    each, shared = settings.pivots_per_concept, settings.concepts_per_pivot
    owned = np.empty((len(topic), each), dtype=np.int64)
    first = 0
    for one in np.unique(topic):
        rows = np.flatnonzero(topic == one)
        # A concept's pivots differ, however few concepts a topic has.
        n_pivots = max(each, -(-len(rows) * each // shared))
        left = np.full(n_pivots, shared)
        for row in rows:
            if each == shared == 1:
                taken = np.flatnonzero(left)[:1]
            else:
                # Those with the most places left first, ties at random: none is left over.
                taken = np.lexsort((rng.random(n_pivots), -left))[:each]
            left[taken] -= 1
            owned[row] = first + np.sort(taken)
        first += n_pivots
    return owned


def _by_rank(
    settings: WorldSettings, cells: tuple[str, ...], has_pivot: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.int64]:
    shape = (settings.languages, settings.topics, settings.concepts_per_topic)
    order = np.broadcast_to(np.arange(len(cells)), (shape[0], len(cells))).copy()
    if not settings.shared_frequency:
        kind = 2 * (np.asarray(cells) == TRAIN) + np.isin(np.arange(len(cells)), has_pivot)
        group = 4 * (np.arange(len(cells)) // shape[2]) + kind
        for lang in range(shape[0]):
            rng = generator(seed, "world", "frequency", lang)
            for one in np.unique(group):
                where = np.flatnonzero(group == one)
                order[lang, where] = rng.permutation(where)
    return order.reshape(shape)


def _break(
    pivots: npt.NDArray[np.int64], topic: npt.NDArray[np.int64], rng: np.random.Generator
) -> None:
    """Turn the pivots of each topic in a drawn cycle, once more for each language."""
    for of_topic in range(int(topic.max()) + 1):
        where = np.flatnonzero((topic == of_topic) & (pivots[0, :, 0] >= 0))
        ids, place = np.unique(pivots[0, where], return_inverse=True)
        order, new = rng.permutation(len(ids)), np.empty_like(ids)
        for lang in range(len(pivots)):
            new[order] = np.roll(ids[order], lang)
            pivots[lang, where] = new[place].reshape(len(where), -1)


def _pair_counts(
    settings: WorldSettings,
    cells: tuple[str, ...],
    pairs: tuple[tuple[int, int], ...],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    low, high = settings.min_pair_count, settings.max_pair_count
    drawn = np.exp(rng.uniform(np.log(low), np.log(high + 1), size=(len(cells), len(pairs))))
    joined = np.asarray([cell.endswith("c1") for cell in cells])
    counts = np.where(joined[:, None], np.clip(np.floor(drawn), low, high), 0)
    return counts.astype(np.int64)


def _word_table(
    vocabulary: _Vocabulary, code: str, flavour: int, n: int, two_token_share: float, seed: int
) -> npt.NDArray[np.int64]:
    table = np.full((n, 2), -1, dtype=np.int64)
    table[:, 0] = vocabulary.words(code, flavour, n, "words", (2, 3))
    long = np.sort(
        generator(seed, "world", "long words", code).permutation(n)[: round(two_token_share * n)]
    )
    table[long, 1] = vocabulary.words(code, flavour, len(long), "second tokens", (2, 3))
    return table


class _Vocabulary:
    """Collects token texts; each gets the next id, and none is given twice, whatever its case."""

    def __init__(self, seed: int) -> None:
        self.texts: list[str] = []
        self._seen: set[str] = set()
        self._seed = seed

    def add(self, texts: list[str]) -> npt.NDArray[np.int64]:
        first = len(self.texts)
        self.texts += texts
        self._seen.update(text.casefold() for text in texts)
        return np.arange(first, len(self.texts), dtype=np.int64)

    def words(
        self,
        code: str,
        flavour: int,
        n: int,
        part: str,
        syllables: tuple[int, int],
        capital: bool = False,
    ) -> npt.NDArray[np.int64]:
        """n new words of a language, each of either number of syllables."""
        onsets, vowels = FLAVOURS[flavour]
        rng = generator(self._seed, "world", part, "spelling", code)

        def draw() -> str:
            length = syllables[int(rng.integers(2))]
            sounds = ""
            for _ in range(length):
                sounds += onsets[int(rng.integers(len(onsets)))]
                sounds += vowels[int(rng.integers(len(vowels)))]
            return sounds.capitalize() if capital else sounds

        return self._new(n, draw)

    def neutral(self, n: int) -> npt.NDArray[np.int64]:
        """n new tokens without language."""
        rng = generator(self._seed, "world", "neutral", "spelling")

        def draw() -> str:
            first, last = rng.integers(len(NEUTRAL_CONSONANTS), size=2)
            vowel = NEUTRAL_VOWELS[int(rng.integers(len(NEUTRAL_VOWELS)))]
            number = int(rng.integers(10, 100))
            return f"{NEUTRAL_CONSONANTS[first]}{vowel}{NEUTRAL_CONSONANTS[last]}{number}"

        return self._new(n, draw)

    def _new(self, n: int, draw: Callable[[], str]) -> npt.NDArray[np.int64]:
        # Ends, because the settings allow far fewer tokens than there are spellings.
        texts: list[str] = []
        while len(texts) < n:
            text = draw()
            if text.casefold() not in self._seen:
                self._seen.add(text.casefold())
                texts.append(text)
        return self.add(texts)
