"""The generated world's documents as arrays of token ids; the text is these tokens between spaces.

The pool's documents are of one language and one topic. They are rows of units drawn independently:
a function word, a neutral token, a hub, or a concept's word, whose pivot (or name) may stand before
or after it. Code-switched documents join the two words of held-out pairs; format documents
translate training concepts; identity documents repeat words. No pivot stands in these three, and
only code-switched and format documents hold more than one language, which is why the c0 cells never
have both of their words in one document.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mining.common.seeds import generator
from mining.settings import WorldSettings
from mining.world_plan import TRAIN, World

POOL_CHUNK = 16_384


@dataclass(frozen=True)
class PoolDocuments:
    """Documents of one language: `tokens` int32 [n, document_tokens], `topic` int64 [n], and
    `rate` float64 [n], the probability with which a word brings its pivot there."""

    topic: npt.NDArray[np.int64]
    rate: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int32]


@dataclass(frozen=True)
class FixedDocument:
    """A document of every arm; `lang` is its language's index, None where it has several."""

    source: str
    lang: int | None
    tokens: list[int]


def pool_sizes(settings: WorldSettings) -> list[int]:
    """Documents of the pool per language: equal but for one."""
    n, languages = settings.pool_documents, settings.languages
    return [n // languages + (lang < n % languages) for lang in range(languages)]


def pool_documents(
    world: World, settings: WorldSettings, lang: int, seed: int
) -> Iterator[PoolDocuments]:
    """One language's documents of the pool, in chunks; a function of the arguments only."""
    left = pool_sizes(settings)[lang]
    for chunk in itertools.count():
        if left <= 0:
            return
        rng = generator(seed, "world", "pool", world.codes[lang], chunk)
        yield draw_pool(world, settings, lang, min(left, POOL_CHUNK), rng)
        left -= POOL_CHUNK


def draw_pool(
    world: World, settings: WorldSettings, lang: int, n: int, rng: np.random.Generator
) -> PoolDocuments:
    """n documents of a language's pool.

    A unit that would cross the end of the document is left out, and function words take the places
    that remain, so that no word is cut and every document has exactly `document_tokens` tokens.
    """
    width = settings.document_tokens
    shape = (n, width)  # a unit has at least one token, so there are never too few of them
    topic = rng.integers(settings.topics, size=n)
    rate = rng.beta(settings.pivot_alpha, settings.pivot_beta, size=n)
    concept = world.by_rank[lang][topic[:, None], _ranks(settings, shape, rng)]
    words = world.words[lang].astype(np.int32)[concept]
    beside = _companions(world, settings, lang, concept, rate, rng)

    ends = np.cumsum([settings.function_share, settings.neutral_share, settings.used_hub_share()])
    kind = np.searchsorted(ends, rng.random(shape), side="right")
    single = np.empty(shape, dtype=np.int32)
    sets = [np.broadcast_to(world.function[lang], (settings.topics, settings.function_words)),
            np.broadcast_to(world.neutral, (settings.topics, settings.neutral_words)),
            world.hubs]  # fmt: skip
    for i, ids in enumerate(sets):
        if ids.shape[1]:
            drawn = ids[topic[:, None], rng.integers(ids.shape[1], size=shape)]
            np.copyto(single, drawn, casting="same_kind", where=kind == i)
    content = kind == len(sets)

    before = rng.random(shape) < 0.5
    units = np.full((*shape, 4), -1, dtype=np.int32)
    units[..., 0] = np.where(content & before, beside, -1)
    units[..., 1] = np.where(content, words[..., 0], single)
    units[..., 2] = np.where(content, words[..., 1], -1)
    units[..., 3] = np.where(content & ~before, beside, -1)
    filler = world.function[lang][rng.integers(settings.function_words, size=shape)]
    return PoolDocuments(topic, rate, lay_out(units, filler.astype(np.int32)))


def lay_out(units: npt.NDArray[np.int32], filler: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Rows of tokens from rows of units: int32 [n, width].

    `units` int32 [n, n_units, slots] has -1 in empty slots; `filler` int32 [n, width] is what
    stands where the whole units leave places over.
    """
    n, width = filler.shape
    taken = units >= 0
    end = np.cumsum(taken.sum(axis=2, dtype=np.int32), axis=1, dtype=np.int32)
    taken &= (end <= width)[:, :, None]
    flat = taken.reshape(n, -1)
    place = np.cumsum(flat, axis=1, dtype=np.int32) - 1
    row, column = np.nonzero(flat)
    tokens = filler.copy()
    tokens[row, place[row, column]] = units.reshape(n, -1)[row, column]
    return tokens


def fixed_documents(world: World, settings: WorldSettings, seed: int) -> list[FixedDocument]:
    """Code-switched, format and identity documents, in this order."""
    documents = _code_switched(world, settings, seed)
    rng = generator(seed, "world", "format")
    for a, b in itertools.permutations(range(settings.languages), 2):
        order = _passes(world.training(), settings.format_passes, rng)
        rows = [_named(world, a, c) + _named(world, b, c) for c in order]
        documents += [
            FixedDocument("format", None, t) for t in pack(rows, settings.document_tokens)
        ]
    rng = generator(seed, "world", "identity")
    for lang in range(settings.languages):
        order = _passes(np.arange(len(world.cells)), settings.identity_passes, rng)
        rows = [_named(world, lang, c) * 2 for c in order]
        documents += [
            FixedDocument("identity", lang, t) for t in pack(rows, settings.document_tokens)
        ]
    return documents


def pack(units: list[list[int]], width: int) -> list[list[int]]:
    """Put units one after another into documents of at most `width` tokens, none cut."""
    documents: list[list[int]] = []
    for unit in units:
        if not documents or len(documents[-1]) + len(unit) > width:
            documents.append([])
        documents[-1] += unit
    return documents


def spread(counts: npt.NDArray[np.int64], per_bin: int) -> list[list[int]]:
    """Deal item i into counts[i] different bins, about `per_bin` items to a bin.

    Items go round the bins one after another, and there are never fewer bins than the largest
    count, so that no bin holds an item twice.
    """
    n_bins = max(int(counts.max(initial=0)), -(-int(counts.sum()) // per_bin))
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    for i, item in enumerate(np.repeat(np.arange(len(counts)), counts)):
        bins[i % n_bins].append(int(item))
    return bins


def _ranks(
    settings: WorldSettings, shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Frequency ranks within a topic, 0 the most frequent, drawn by Zipf's law."""
    weights = np.arange(1, settings.concepts_per_topic + 1, dtype=np.float64) ** -settings.zipf
    ends = np.cumsum(weights / weights.sum())
    return np.searchsorted(ends[:-1], rng.random(shape), side="right").astype(np.int64)


def _companions(
    world: World,
    settings: WorldSettings,
    lang: int,
    concept: npt.NDArray[np.int64],
    rate: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int32]:
    """The token beside each word, int32 of concept's shape: its pivot or name, or -1."""
    pivots = world.pivots[lang].astype(np.int32)
    if pivots.shape[1] == 1:
        pivot = pivots[concept, 0]
    else:
        pivot = pivots[concept, rng.integers(pivots.shape[1], size=concept.shape)]
    # Of shared pivots each stands here as often as concepts have it.
    all_pivots = pivots[pivots >= 0]
    if len(all_pivots):
        other = all_pivots[rng.integers(len(all_pivots), size=concept.shape)]
        np.copyto(
            pivot, other, where=(pivot >= 0) & (rng.random(concept.shape) < settings.pivot_noise)
        )
    draw = rng.random(concept.shape)
    pivot[draw >= rate[:, None]] = -1
    # Names come at a rate of their own, so that documents rich in pivots are not rich in names.
    name = world.decoys[lang].astype(np.int32)[concept]
    name[draw >= settings.name_rate] = -1
    both: npt.NDArray[np.int32] = np.maximum(pivot, name)  # no concept has a pivot and a name
    return both


def _code_switched(world: World, settings: WorldSettings, seed: int) -> list[FixedDocument]:
    documents = []
    for column, pair in enumerate(world.pairs):
        rng = generator(seed, "world", "codeswitch", *(world.codes[lang] for lang in pair))
        for planted in spread(world.pair_counts[:, column], settings.pairs_per_document):
            units = []
            for concept in planted:
                first, second = (world.word_tokens(pair[i], concept) for i in rng.permutation(2))
                gloss = rng.random() < settings.gloss_share
                units += [first + second] if gloss else [first, second]
            n_planted = len(units)
            units += _filler(world, settings, pair, world.topic[planted], rng)
            tokens = _within(units, n_planted, settings.document_tokens, rng)
            documents.append(FixedDocument("codeswitch", None, tokens))
    return documents


def _filler(
    world: World,
    settings: WorldSettings,
    pair: tuple[int, int],
    topics: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> list[list[int]]:
    """Units of two languages about the given topics; of concepts, training ones only.

    This keeps the planted counts exact, and words of a c0 cell away from their translations.
    """
    n = settings.document_tokens
    lang = np.asarray(pair)[rng.integers(2, size=n)]
    concept = world.by_rank[lang, rng.choice(topics, size=n), _ranks(settings, (n,), rng)]
    function = world.function[lang, rng.integers(settings.function_words, size=n)]
    neutral = world.neutral[rng.integers(settings.neutral_words, size=n)]
    kind = rng.random(n)
    units: list[list[int]] = []
    for i in range(n):
        if kind[i] < settings.function_share:
            units.append([int(function[i])])
        elif kind[i] < settings.function_share + settings.neutral_share:
            units.append([int(neutral[i])])
        elif world.cells[concept[i]] == TRAIN:
            units.append(world.word_tokens(int(lang[i]), int(concept[i])))
    return units


def _within(
    units: list[list[int]], n_needed: int, width: int, rng: np.random.Generator
) -> list[int]:
    """Shuffle the first n_needed units with as many of the rest as fill `width` tokens."""
    kept = list(units[:n_needed])
    length = sum(map(len, kept))
    for unit in units[n_needed:]:
        if length + len(unit) <= width:
            kept.append(unit)
            length += len(unit)
    return [token for i in rng.permutation(len(kept)) for token in kept[i]]


def _named(world: World, lang: int, concept: int) -> list[int]:
    return [int(world.names[lang]), *world.word_tokens(lang, concept)]


def _passes(items: npt.NDArray[np.int64], n: int, rng: np.random.Generator) -> list[int]:
    return [int(item) for _ in range(n) for item in rng.permutation(items)]
