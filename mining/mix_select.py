"""Which documents each arm of a mix takes (METHOD section 4, step 4).

The validation split comes first and is the same for all arms. The arms share the budget, its
division between languages (but for `original`), the fill-up documents and the order of documents.
Everything follows from the documents' ids, groups and scores and the seed, never from their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError, SettingsError
from mining.kernels.select import Limit, fill_budget, size_bins
from mining.mix_documents import Documents
from mining.mix_settings import UNMATCHED_ARMS, MixSettings

Integers = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int32]
TWICE = "random-twice"


@dataclass(frozen=True)
class Selection:
    """Documents of one token file, in its order.

    `rows` int64 [n] index the documents, `sizes` int64 [n] are the tokens taken of each, with the
    end-of-text token; `always` bool [n] marks those beside the budget, `repeats` int32 [n] counts
    the earlier places of the same document.
    """

    rows: Integers
    sizes: Integers
    always: npt.NDArray[np.bool_]
    repeats: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Draw:
    """Documents drawn for an arm in one language; as in Selection, in the order of the draw."""

    rows: Integers
    sizes: Integers
    repeats: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Pool:
    """What the draws share: all documents, and for each, [n], what may be taken of it.

    `sizes` int64 are tokens with end-of-text, `drawable` bool, `matched` int32 the group that the
    arms are matched in (of `n_matched`).
    """

    documents: Documents
    settings: MixSettings
    seed: int
    sizes: Integers
    drawable: npt.NDArray[np.bool_]
    in_validation: npt.NDArray[np.bool_]
    always: npt.NDArray[np.bool_]
    matched: Groups
    n_matched: int


def make_pool(documents: Documents, settings: MixSettings, seed: int) -> Pool:
    """Set the validation split and the documents that stand in every arm aside."""
    if unknown := sorted(set(settings.always_sources) - set(documents.sources)):
        raise SettingsError(f"mix.always_sources: no document has the source {', '.join(unknown)}")
    always = documents.of_sources(settings.always_sources)
    groups = documents.group_hashes(seed)
    in_validation = groups < np.uint64(settings.validation_share * 2.0**64)
    # A group that stands in every arm is no validation.
    in_validation &= ~np.isin(groups, groups[always])
    drawable = ~in_validation & ~always & (documents.n_tokens >= settings.min_document_tokens)
    if not drawable.any():
        raise InputError(
            f"mix: none of {len(documents)} documents may be drawn: they are in the validation "
            "split, of always_sources, or shorter than min_document_tokens"
        )
    sizes = documents.n_tokens + 1
    if settings.max_document_tokens is not None:
        sizes = np.minimum(sizes, settings.max_document_tokens)
    matched = matched_groups(documents, sizes, settings.match)
    n_matched = int(matched.max()) + 1
    return Pool(
        documents, settings, seed, sizes, drawable, in_validation, always, matched, n_matched
    )


def matched_groups(documents: Documents, sizes: Integers, match: Sequence[str]) -> Groups:
    """The group of each document by source, length (a power of two), both or neither: int32 [n]."""
    key = documents.source.astype(np.int64) if "source" in match else np.zeros_like(sizes)
    if "length" in match:
        key = key * 64 + size_bins(sizes)
    return np.unique(key, return_inverse=True)[1].astype(np.int32)


def select_documents(pool: Pool, names: Mapping[str, str] | None = None) -> dict[str, Selection]:
    """The documents of every arm and, under `validation/<lang>`, of validation.

    `names`: what errors call an arm, where that is not its name here.
    """
    documents, settings = pool.documents, pool.settings
    place = documents.id_hashes(pool.seed, "order")
    _check_ids(documents, place)
    present = [documents.languages[k] for k in np.unique(documents.lang[pool.drawable])]
    budgets = language_budgets(settings, present)
    draws: dict[str, dict[str, Draw]] = {}
    # Where arms are matched, the one that they are matched with comes first.
    for arm in sorted(settings.arms, key=lambda name: bool(settings.match) and name != "pivot"):
        matched = settings.match and arm not in ("pivot", *UNMATCHED_ARMS)
        own = {lang: 2 * tokens for lang, tokens in budgets.items()} if arm == TWICE else budgets
        try:
            draws[arm] = _draw_arm(pool, arm, own, draws["pivot"] if matched else {})
        except SettingsError as error:
            name = (names or {}).get(arm, arm)
            raise SettingsError(f"mix.budget_tokens: arm {name}: {error}") from None

    selections: dict[str, Selection] = {
        arm: _in_order(pool, list(draws[arm].values()), place) for arm in settings.arms
    }
    held = pool.in_validation & ~pool.always
    for code in np.unique(documents.lang[held]):
        rows = np.flatnonzero(held & (documents.lang == code))
        rows = rows[documents.rank(rows, [place[rows]])]
        rows, taken = fill_budget(rows, pool.sizes, settings.max_validation_tokens)
        rows, taken = rows[taken > 1], taken[taken > 1]
        nothing = np.zeros(len(rows), dtype=np.int32)
        name = f"validation/{documents.languages[code]}"
        selections[name] = Selection(rows, taken, nothing.astype(bool), nothing)
    return selections


def _check_ids(documents: Documents, hashes: npt.NDArray[np.uint64]) -> None:
    """Raise InputError where two documents have one id: repeats must be the arm's own."""
    order = np.argsort(hashes, kind="stable")
    for k in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
        first, second = (documents.ids[int(row)].as_py() for row in order[k : k + 2])
        if first == second:
            raise InputError(
                f"mix: two documents have the id '{first}'; `pivots tokenize` writes each id once"
            )


def language_budgets(settings: MixSettings, languages: Sequence[str]) -> dict[str, int]:
    """Tokens of the budget for each language; the same in every arm but `original`."""
    budget = settings.budget_tokens
    shares = settings.languages
    if not shares and not settings.language_tokens:
        even = {lang: budget // len(languages) for lang in languages}
        even[languages[0]] += budget - sum(even.values())
        return even
    budgets = {lang: round(share * budget) for lang, share in shares.items()}
    budgets |= settings.language_tokens
    left = budget - sum(budgets.values())
    fill = settings.fill_language
    if abs(left) <= len(shares):  # what rounding leaves over, or took too much
        budgets[next(iter(budgets))] += left
    elif fill is not None and fill not in budgets:
        budgets[fill] = left
    else:
        raise SettingsError(
            f"mix.languages: the shares and mix.language_tokens leave {left} tokens of "
            "mix.budget_tokens over, and mix.fill_language names no further language to fill them "
            "up with"
        )
    return budgets


def _draw_arm(
    pool: Pool, arm: str, budgets: dict[str, int], targets: dict[str, Draw]
) -> dict[str, Draw]:
    """What an arm draws in each language; `targets` are the draws that it is matched with."""
    documents, settings = pool.documents, pool.settings
    if arm == "original":
        rows = np.flatnonzero(pool.drawable)
        what = "the whole corpus"
        return {what: _draw(pool, what, settings.budget_tokens, rows, "original", None)}
    wanted = bool(settings.languages or settings.language_tokens)
    draws = {}
    for lang, budget in budgets.items():
        code = documents.languages.index(lang) if lang in documents.languages else -1
        rows = np.flatnonzero(pool.drawable & (documents.lang == code))
        named = lang in settings.languages or lang in settings.language_tokens
        filler = wanted and not named
        # Twice the budget: the documents of random, and as many more.
        rule = "random" if filler or arm == TWICE else arm
        draws[lang] = _draw(pool, lang, budget, rows, rule, None if filler else targets.get(lang))
    return draws


def _draw(
    pool: Pool, what: str, budget: int, rows: Integers, rule: str, target: Draw | None
) -> Draw:
    """Take documents of `rows` for a budget by an arm's rule; SettingsError where it stays short.

    `target`: the draw whose tokens by matched group are taken too, as far as there are any.
    """
    settings, sizes = pool.settings, pool.sizes
    available = int(sizes[rows].sum())
    order = _preference(pool, rows, rule)
    # Of different documents no more than this; what is missing then are repeats.
    distinct = min(budget, int(settings.max_pool_share * available))
    sources = None
    if settings.max_source_share is not None:
        most = int(settings.max_source_share * budget)
        sources = np.full(len(pool.documents.sources), most, dtype=np.int64)
    first = [_group_limit(pool, rows, None)] if rule == "pivot" and settings.match else []
    draw = _fill(pool, order, budget, distinct, sources, target, first, settings.max_repeats)
    if target is not None and (left := budget - int(draw.sizes.sum())):
        # Where this arm has too little of a group, the rest comes from any.
        rest = order[~np.isin(order, draw.rows)]
        distinct -= int(draw.sizes[draw.repeats == 0].sum())
        more = _fill(pool, rest, left, distinct, sources, None, [_group_limit(pool, rows, draw)], 1)
        draw = _repeat(pool, _join([draw, more]), budget, sources)
    given = int(draw.sizes.sum())
    if given < budget:
        raise SettingsError(
            f"{what} needs {budget} tokens, but may give only {given} "
            f"({_limits(settings, rule, available)}); lower the budget or the language's share"
        )
    return draw


def _group_limit(pool: Pool, rows: Integers, taken: Draw | None) -> Limit:
    """`max_pool_share` of each matched group's tokens in `rows`, less those `taken` already."""
    held = np.bincount(pool.matched[rows], pool.sizes[rows], pool.n_matched)
    left = (pool.settings.max_pool_share * held).astype(np.int64)
    if taken is not None:
        new = taken.repeats == 0
        groups = pool.matched[taken.rows[new]]
        left -= np.bincount(groups, taken.sizes[new], pool.n_matched).astype(np.int64)
    # Not cut: of a group of one document none would ever stay whole.
    return Limit(pool.matched, left, whole=True)


def _repeat(pool: Pool, draw: Draw, budget: int, sources: Integers | None) -> Draw:
    """Take a draw's documents again, those that stand fewest times first, up to the budget."""
    lasting = [] if sources is None else [Limit(pool.documents.source, sources)]
    new = draw.repeats == 0
    order, sizes = draw.rows[new], pool.sizes.copy()
    sizes[order] = draw.sizes[new]
    for repeat in range(1, pool.settings.max_repeats):
        left = budget - int(draw.sizes.sum())
        if left == 0:
            break
        times = np.bincount(draw.rows, minlength=len(sizes))
        rows, lengths = fill_budget(order[times[order] == repeat], sizes, left, lasting)
        again = Draw(rows, lengths, np.full(len(rows), repeat, dtype=np.int32))
        draw = _join([draw, again])
    return draw


def _limits(settings: MixSettings, rule: str, available: int) -> str:
    """The settings that limit a draw, in words."""
    texts = [f"mix.max_pool_share {settings.max_pool_share} of {available} in the pool"]
    named = ["max_source_share", *(("match",) if settings.match and rule != "original" else ())]
    if rule in ("pivot", "low-pivot"):
        named += ["top_share", "min_proportion"]
    texts += [f"mix.{key} {value}" for key in named if (value := getattr(settings, key))]
    return ", ".join([*texts, f"mix.max_repeats {settings.max_repeats}"])


def _fill(
    pool: Pool,
    order: Integers,
    budget: int,
    distinct: int,
    sources: Integers | None,
    target: Draw | None,
    first: Sequence[Limit],
    max_repeats: int,
) -> Draw:
    """Take documents in order, and the same ones again up to max_repeats times, up to the budget.

    `distinct`: tokens of different documents at most. `sources` int64 [n_sources]: tokens of each
    source that may still be taken; lowered in place. `target`: see `_draw`. `first`: limits of
    different documents.
    """
    lasting = [] if sources is None else [Limit(pool.documents.source, sources)]
    passes = []
    sizes = pool.sizes
    wanted = np.zeros(pool.n_matched, dtype=np.int64)
    for repeat in range(max_repeats):
        limits = [*lasting, *first] if repeat == 0 else lasting
        if target is not None:
            # As many different documents as the target has; in later passes the rest.
            part = (target.repeats == 0) == (repeat == 0)
            if repeat < 2:
                groups = pool.matched[target.rows[part]]
                wanted += np.bincount(groups, target.sizes[part], pool.n_matched).astype(np.int64)
            limits = [*lasting, Limit(pool.matched, wanted)]
        most = min(budget, distinct) if repeat == 0 else budget
        rows, lengths = fill_budget(order, sizes, most, limits)
        passes.append(Draw(rows, lengths, np.full(len(rows), repeat, dtype=np.int32)))
        budget -= int(lengths.sum())
        if budget == 0 or len(rows) == 0:
            break
        if repeat == 0:
            order = rows
            sizes = sizes.copy()
            sizes[rows] = lengths
    return _join(passes)


def _join(draws: Sequence[Draw]) -> Draw:
    return Draw(
        np.concatenate([draw.rows for draw in draws]),
        np.concatenate([draw.sizes for draw in draws]),
        np.concatenate([draw.repeats for draw in draws]),
    )


def _preference(pool: Pool, rows: Integers, rule: str) -> Integers:
    """The documents of `rows` that an arm may take, in the order in which it takes them.

    Ties break by a hash of the id, then by the id. A draw of its own for each arm: many documents
    tie, at 0 above all, and arms that broke their ties alike would hold the same ones.
    """
    documents, settings = pool.documents, pool.settings
    hashes = documents.id_hashes(pool.seed, rule, rows)
    sign = {"pivot": -1.0, "low-pivot": 1.0}.get(rule)
    if sign is None:
        return rows[documents.rank(rows, [hashes])]
    proportion = documents.proportion[rows]
    if settings.min_proportion is not None:
        kept = (proportion >= settings.min_proportion) == (rule == "pivot")
        rows, hashes = rows[kept], hashes[kept]
        return rows[documents.rank(rows, [hashes])]
    best = documents.rank(rows, [sign * proportion, hashes])
    if settings.top_share is None:
        return rows[best]
    ends = np.cumsum(pool.sizes[rows[best]])
    best = (
        best[: 1 + int(np.searchsorted(ends, settings.top_share * ends[-1]))] if len(best) else best
    )
    rows, hashes = rows[best], hashes[best]
    return rows[documents.rank(rows, [hashes])]


def _in_order(pool: Pool, draws: Sequence[Draw], place: npt.NDArray[np.uint64]) -> Selection:
    """An arm's documents in its order, with those that stand in every arm.

    A document's repeats stand evenly around the order, the first of them at the document's place.
    """
    drawn = _join(draws)
    extra = np.flatnonzero(pool.always)
    rows = np.concatenate([drawn.rows, extra])
    sizes = np.concatenate([drawn.sizes, pool.sizes[extra]])
    repeats = np.concatenate([drawn.repeats, np.zeros(len(extra), dtype=np.int32)])
    times = np.bincount(rows, minlength=len(pool.documents))[rows].astype(np.uint64)
    # Unsigned 64-bit numbers wrap around, as the order does.
    steps = np.uint64(2**64 - 1) // times * repeats.astype(np.uint64)
    order = pool.documents.rank(rows, [place[rows] + steps], repeats)
    always = np.arange(len(rows)) >= len(drawn.rows)
    return Selection(rows[order], sizes[order], always[order], repeats[order])
