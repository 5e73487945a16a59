"""Choice of documents up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel

Integers = npt.NDArray[np.int64]


class Limit(NamedTuple):
    """At most `left[g]` more tokens of the documents of group g.

    `groups` int32 [n_docs] are the documents' groups, `left` int64 [n_groups]; taking documents
    lowers it in place. `whole`: the last document of a group is not cut, and may go beyond.
    """

    groups: npt.NDArray[np.int32]
    left: Integers
    whole: bool = False


def fill_budget(
    order: Integers, sizes: Integers, budget: int, limits: Sequence[Limit] = ()
) -> tuple[Integers, Integers]:
    """Take documents in the given order until the budget is full.

    A document of which a limit, or the budget, leaves only a part is cut to it; one of which they
    leave nothing is passed over. `order` int64 [n] are indices into `sizes` int64 (tokens of each
    document, at least 1). Returns the indices taken, in order, and the tokens taken of each, both
    int64 [m]. Without limits the tokens' sum is the budget, or the sum of all sizes if that is
    smaller.
    """
    n_groups = max((len(limit.left) for limit in limits), default=1)
    left = np.zeros((len(limits), n_groups), dtype=np.int64)
    for row, limit in zip(left, limits, strict=True):
        row[: len(limit.left)] = limit.left
    groups = np.stack([limit.groups for limit in limits]) if limits else _no_groups(len(sizes))
    whole = np.array([limit.whole for limit in limits], dtype=np.bool_)
    lengths = _fill(order, sizes, budget, groups, left, whole)
    for row, limit in zip(left, limits, strict=True):
        limit.left[:] = row[: len(limit.left)]
    taken = np.flatnonzero(lengths)
    return order[taken], lengths[taken]


def _no_groups(n: int) -> npt.NDArray[np.int32]:
    return np.zeros((0, n), dtype=np.int32)


@kernel
def _fill(
    order: Integers,
    sizes: Integers,
    budget: int,
    groups: npt.NDArray[np.int32],
    left: Any,
    whole: npt.NDArray[np.bool_],
) -> Integers:
    """Tokens taken of each document of `order`; limit c holds for groups[c] and is in left[c]."""
    lengths = np.zeros(len(order), dtype=np.int64)
    for k in range(len(order)):
        if budget <= 0:
            break
        document = order[k]
        room = min(sizes[document], budget)
        for c in range(len(groups)):
            rest = left[c, groups[c, document]]
            if rest <= 0 or not whole[c]:
                room = min(room, rest)
        if room > 0:
            lengths[k] = room
            budget -= room
            for c in range(len(groups)):
                left[c, groups[c, document]] -= room
    return lengths


def size_bins(sizes: Integers) -> npt.NDArray[np.int32]:
    """The power of two that each size is at least, as its exponent: 1, 2-3, 4-7, ... int32 [n]."""
    return (np.frexp(sizes.astype(np.float64))[1] - 1).astype(np.int32)
