from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.kernels.proportion import count_pivots
from mining.kernels.select import Limit, fill_budget, size_bins


@settings(deadline=None)  # the first call compiles
@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6),
    mask=st.lists(st.booleans(), max_size=8),
)
def test_count_pivots_equals_a_plain_loop(documents: list[list[int]], mask: list[bool]) -> None:
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    tokens = np.array([t for d in documents for t in d], dtype=np.uint32)
    found = count_pivots(tokens, offsets, np.array(mask, dtype=bool))
    assert found.tolist() == [sum(t < len(mask) and mask[t] for t in d) for d in documents]


@settings(deadline=None)  # the first call compiles
@given(
    sizes=st.lists(st.integers(1, 9), max_size=12),
    budget=st.integers(0, 60),
    order=st.randoms(),
    limits=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=3), max_size=2),
)
def test_fill_budget_equals_a_plain_loop(
    sizes: list[int], budget: int, order: Any, limits: list[list[int]]
) -> None:
    indices = list(range(len(sizes)))
    order.shuffle(indices)
    groups = [[order.randrange(len(left)) for _ in sizes] for left in limits]
    whole = [order.random() < 0.3 for _ in limits]
    given_limits = [
        Limit(np.array(group, np.int32), np.array(left, np.int64), soft)
        for group, left, soft in zip(groups, limits, whole, strict=True)
    ]
    taken, lengths = fill_budget(
        np.array(indices, np.int64), np.array(sizes, np.int64), budget, given_limits
    )
    expected = []
    rest, left = budget, [list(row) for row in limits]
    for i in indices:
        lefts = [row[g[i]] for row, g in zip(left, groups, strict=True)]
        room = min([sizes[i], rest, *(n for n, w in zip(lefts, whole, strict=True) if not w)])
        room = room if all(n > 0 for n in lefts) else 0
        if room > 0:
            expected.append((i, room))
            rest -= room
            for row, g in zip(left, groups, strict=True):
                row[g[i]] -= room
    assert list(zip(taken.tolist(), lengths.tolist(), strict=True)) == expected
    assert [limit.left.tolist() for limit in given_limits] == left
    if not limits:
        assert lengths.sum() == min(budget, sum(sizes))


@given(st.lists(st.integers(1, 1 << 40), min_size=1))
def test_size_bins_are_powers_of_two(sizes: list[int]) -> None:
    assert size_bins(np.array(sizes)).tolist() == [n.bit_length() - 1 for n in sizes]
