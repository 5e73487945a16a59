"""Co-occurrence kernels against brute force on small random documents."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.kernels.cooccurrence import (
    NOT_AN_ITEM,
    Block,
    GatherBand,
    PopcountBand,
    add_document_frequencies,
    bands,
    has_popcount,
    index_block,
    pair_counts,
    unique_items,
)

# Kernels compile in the first example.
quick = settings(max_examples=50)
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


Way = type[PopcountBand] | type[GatherBand]
WAYS = pytest.mark.parametrize("way", [PopcountBand, GatherBand])


def blocks_of(documents: list[list[int]], n_items: int, n_blocks: int) -> list[Block]:
    parts = [documents[number::n_blocks] for number in range(n_blocks)]
    return [index_block(*flatten(part), n_items) for part in parts]


@WAYS
@quick
@given(st.integers(1, 1100), st.integers(1, 3), st.data())
def test_pair_counts(way: Way, n_items: int, n_blocks: int, data: st.DataObject) -> None:
    """Empty documents, full ones, one item, tiles begun and left half, several blocks and bands."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 30, 1100]), max_size=40))
    documents = [rng.permutation(n_items)[:size].tolist() for size in sizes]
    matrix = np.zeros((len(documents), n_items), dtype=np.int64)
    for number, document in enumerate(documents):
        matrix[number, document] = 1
    expected = np.triu(matrix.T @ matrix, 1)
    blocks = blocks_of(documents, n_items, n_blocks)
    cut = data.draw(st.integers(0, n_items))
    for start, end in [(0, cut), (cut, n_items)]:
        if start < end:
            counts = pair_counts(blocks, start, end, n_items, way)
            assert counts.dtype == np.uint32
            assert (counts == expected[start:end, start:]).all()


@WAYS
@quick
@given(DOCUMENTS)
def test_pair_counts_of_few_items(way: Way, documents: list[list[int]]) -> None:
    unique = [list(dict.fromkeys(d)) for d in documents]
    expected = brute_pairs(unique)
    counts = pair_counts(blocks_of(unique, N_IDS, 1), 0, N_IDS, N_IDS, way)
    for i, j in np.ndindex(N_IDS, N_IDS):
        assert counts[i, j] == (expected[i, j] if j > i else 0)


@pytest.mark.parametrize("n_documents", [15, 16, 17, 31, 255, 256, 65_535, 65_536, 131_073])
def test_vertical_counters_carry(n_documents: int) -> None:
    """Counts just below and above each power of two that a bit plane stands for."""
    items = np.tile(np.array([1, 0], dtype=np.uint32), n_documents)
    offsets = np.arange(n_documents + 1, dtype=np.int64) * 2
    counts = pair_counts([index_block(items, offsets, 2)], 0, 2, 2, PopcountBand)
    assert counts.tolist() == [[0, n_documents], [0, 0]]


def test_counts_reach_the_end_of_32_bits() -> None:
    block = index_block(*flatten([[0, 1]] * 300), 2)
    counter = PopcountBand(0, 2, 2)
    counter._transposed[:] = (1 << 32) - 1 - 300  # as if that many documents had been added
    counter.add(block)
    assert counter.counts()[0, 1] == (1 << 32) - 1


@quick
@given(DOCUMENTS)
def test_index_lists_every_document(documents: list[list[int]]) -> None:
    unique = [list(dict.fromkeys(d)) for d in documents]
    block = index_block(*flatten(unique), N_IDS)
    assert block.documents.dtype == np.uint16
    for item in range(N_IDS):
        rows = slice(block.row_offsets[item], block.row_offsets[item + 1])
        found = block.documents[rows].tolist()
        assert found == [number for number, d in enumerate(unique) if item in d]


@WAYS
@pytest.mark.parametrize(("n_items", "n_documents"), [((1 << 16) + 1, 1), (4, 1 << 16)])
def test_wide_numbers(way: Way, n_items: int, n_documents: int) -> None:
    """Items that do not fit 16 bits, and as many documents."""
    items = np.tile(np.array([n_items - 1, 3 % (n_items - 1)], dtype=np.uint32), n_documents)
    offsets = 2 * np.arange(n_documents + 1, dtype=np.int64)
    block = index_block(items, offsets, n_items)
    assert block.documents.dtype == (np.uint16 if n_documents == 1 else np.uint32)
    first = 3 % (n_items - 1)
    assert pair_counts([block], first, first + 1, n_items, way)[0, -1] == n_documents


def test_popcount_is_what_counts_here() -> None:
    assert has_popcount()


def test_bands_are_whole_tiles_and_depend_on_the_number_of_items_only() -> None:
    assert bands(1) == [(0, 1)]
    assert len(bands(8192)) == 8
    assert bands(32_768)[1] == (512, 1024)
    for n_items in (1, 511, 513, 8192, 100_000):
        borders = bands(n_items)
        assert [b for b, _ in borders] == [0, *(e for _, e in borders[:-1])]
        assert borders[-1][1] == n_items
        assert all(b % 512 == 0 for b, _ in borders)
