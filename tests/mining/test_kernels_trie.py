"""The trie against a plain search."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.kernels.match import count_common
from mining.kernels.trie import build_trie, find_patterns

N_SYMBOLS = 6
SYMBOLS = st.integers(0, N_SYMBOLS - 1)


def plain(
    patterns: list[tuple[int, list[int]]], document: list[int], joins: list[bool]
) -> set[int]:
    found = set()
    for number, pattern in patterns:
        for start in range(len(document) - len(pattern) + 1):
            end = start + len(pattern)
            if not pattern or document[start:end] != pattern:
                continue
            if start and joins[document[start - 1]] and joins[document[start]]:
                continue
            if end < len(document) and joins[document[end - 1]] and joins[document[end]]:
                continue
            found.add(number)
    return found


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.lists(SYMBOLS, max_size=5)), max_size=12),
    st.lists(st.lists(SYMBOLS, max_size=30), max_size=4),
    st.lists(st.booleans(), min_size=N_SYMBOLS, max_size=N_SYMBOLS),
)
def test_equals_a_plain_search(
    patterns: list[tuple[int, list[int]]], documents: list[list[int]], joins: list[bool]
) -> None:
    sequences = [np.array(pattern, dtype=np.uint32) for _, pattern in patterns]
    trie = build_trie(sequences, [number for number, _ in patterns], N_SYMBOLS)
    text = np.array([symbol for document in documents for symbol in document], dtype=np.uint32)
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    found, ends = find_patterns(text, offsets, np.array(joins), 8, *trie)
    assert ends[0] == 0
    assert ends[-1] == len(found)
    for number, document in enumerate(documents):
        here = found[ends[number] : ends[number + 1]].tolist()
        assert len(here) == len(set(here))
        assert set(here) == plain(patterns, document, joins)


def test_more_is_found_than_fits_into_the_first_buffer() -> None:
    sequences = [np.array([k], dtype=np.uint32) for k in range(3000)]
    trie = build_trie(sequences, range(3000), 3000)
    text = np.tile(np.arange(3000, dtype=np.uint32), 2)
    offsets = np.array([0, 3000, 6000], dtype=np.int64)
    found, ends = find_patterns(text, offsets, np.zeros(3000, dtype=np.bool_), 3000, *trie)
    assert found.tolist() == [*range(3000), *range(3000)]
    assert ends.tolist() == [0, 3000, 6000]


@given(st.lists(st.sets(st.integers(0, 9)), min_size=1, max_size=5), st.data())
def test_common_documents_of_pairs(postings: list[set[int]], data: st.DataObject) -> None:
    place = st.integers(0, len(postings) - 1)
    pairs = data.draw(st.lists(st.tuples(place, place), max_size=6))
    documents = np.array([d for part in postings for d in sorted(part)], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, postings)], dtype=np.int64)
    found = count_common(documents, offsets, np.array(pairs, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == [len(postings[a] & postings[b]) for a, b in pairs]
