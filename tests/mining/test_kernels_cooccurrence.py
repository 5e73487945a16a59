"""Co-occurrence kernels against brute force on small random documents."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.kernels import cooccurrence
from mining.kernels.cooccurrence import (
    NOT_AN_ITEM,
    add_document_frequencies,
    bands,
    index_block,
    pair_counts,
    unique_items,
)

# Kernels compile in the first example.
quick = settings(deadline=None, max_examples=50)
N_IDS = 12
DOCUMENTS = st.lists(st.lists(st.integers(0, N_IDS - 1), max_size=15), max_size=12)


def flatten(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    tokens = np.array(list(itertools.chain.from_iterable(documents)), dtype=np.uint32)
    return tokens, offsets


def brute_pairs(documents: list[list[int]]) -> Counter[tuple[int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for document in documents:
        pairs.update(itertools.combinations(sorted(set(document)), 2))
    return pairs


@quick
@given(DOCUMENTS, st.data())
def test_document_frequencies(documents: list[list[int]], data: st.DataObject) -> None:
    n = len(documents)
    groups = data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n))
    counts = np.zeros((2, N_IDS), dtype=np.uint64)
    add_document_frequencies(*flatten(documents), np.array(groups, dtype=np.int64), counts)
    for group, item in np.ndindex(2, N_IDS):
        expected = sum(item in d for d, g in zip(documents, groups, strict=True) if g == group)
        assert counts[group, item] == expected


@quick
@given(DOCUMENTS, st.data())
def test_unique_items(documents: list[list[int]], data: st.DataObject) -> None:
    n = len(documents)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=np.bool_)
    n_items = data.draw(st.integers(0, N_IDS))
    item_of = np.full(N_IDS, NOT_AN_ITEM, dtype=np.int32)
    item_of[data.draw(st.permutations(range(N_IDS)))[:n_items]] = np.arange(n_items)
    items, offsets = unique_items(*flatten(documents), keep, item_of, n_items)
    found = [items[a:b].tolist() for a, b in itertools.pairwise(offsets.tolist())]
    kept = [d for d, wanted in zip(documents, keep, strict=True) if wanted]
    mapped = [[item_of[t] for t in d if item_of[t] != NOT_AN_ITEM] for d in kept]
    assert found == [list(dict.fromkeys(d)) for d in mapped]


@quick
@given(DOCUMENTS, DOCUMENTS, st.integers(1, N_IDS), st.integers(1, 40))
def test_pair_counts(
    first: list[list[int]], second: list[list[int]], n_items: int, cells: int
) -> None:
    """Two blocks, bands of any size: the bands together are the whole upper triangle."""
    everything = [[t for t in d if t < n_items] for d in first + second]
    blocks = []
    for part in (everything[: len(first)], everything[len(first) :]):
        items, offsets = flatten([list(dict.fromkeys(d)) for d in part])
        blocks.append(index_block(items, offsets, n_items))
    expected = brute_pairs(everything)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "BAND_CELLS", cells)
        borders = bands(n_items)
    assert [b for b, _ in borders] == [0, *(e for _, e in borders[:-1])]
    assert borders[-1][1] == n_items
    for start, end in borders:
        counts = pair_counts(blocks, start, end, n_items)
        assert counts.dtype == np.uint32
        assert counts.shape == (end - start, n_items - start)
        for i, j in itertools.product(range(start, end), range(start, n_items)):
            assert counts[i - start, j - start] == (expected[i, j] if j > i else 0)


@quick
@given(DOCUMENTS)
def test_index_sorts_every_document(documents: list[list[int]]) -> None:
    items, offsets = flatten([list(dict.fromkeys(d)) for d in documents])
    block = index_block(items, offsets, N_IDS)
    assert block.items.dtype == np.uint16
    for (a, b), document in zip(itertools.pairwise(offsets.tolist()), documents, strict=True):
        assert block.items[a:b].tolist() == sorted(set(document))
    for item in range(N_IDS):
        rows = slice(block.row_offsets[item], block.row_offsets[item + 1])
        assert (block.items[block.positions[rows]] == item).all()


def test_narrow_accumulators_are_spilled() -> None:
    """More documents with one pair than a uint16 can count."""
    n_documents = 2 * cooccurrence.SPILL_DOCUMENTS + 3
    items = np.tile(np.array([1, 0], dtype=np.uint32), n_documents)
    offsets = np.arange(n_documents + 1, dtype=np.int64) * 2
    counts = pair_counts([index_block(items, offsets, 2)], 0, 2, 2)
    assert counts.tolist() == [[0, n_documents], [0, 0]]


def test_many_items_need_wide_numbers() -> None:
    n_items = (1 << 16) + 1
    items = np.array([n_items - 1, 3], dtype=np.uint32)
    block = index_block(items, np.array([0, 2], dtype=np.int64), n_items)
    assert block.items.dtype == np.uint32
    assert pair_counts([block], 3, 4, n_items)[0, -1] == 1


def test_bands_depend_on_the_number_of_items_only() -> None:
    assert bands(1) == [(0, 1)]
    assert len(bands(8192)) == 8
    assert bands(32768)[0] == (0, 256)
