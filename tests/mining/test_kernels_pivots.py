"""NPMI, links, gaps and samples against straightforward Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.kernels.assoc import npmi, npmi_array
from mining.kernels.lift import add_token_counts, smallest, strongest
from mining.kernels.match import common_documents
from mining.kernels.pivots import (
    NO_LANGUAGE,
    add_links,
    empty_links,
    gaps,
    item_languages,
    second_largest,
)

# Kernels compile in the first example.
quick = settings(max_examples=50)


def plain_npmi(both: float, a: float, b: float, n: float) -> float:
    if both == 0:
        return -1.0
    if both == n:
        return 0.0
    return math.log(both * n / (a * b)) / -math.log(both / n)


@quick
@given(st.data())
def test_npmi(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 1000))
    a, b = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    both = data.draw(st.integers(max(0, a + b - n), min(a, b)))
    value = npmi(float(both), float(a), float(b), float(n))
    assert value == pytest.approx(plain_npmi(both, a, b, n), abs=1e-9)
    assert -1 <= value <= 1
    arrays = (np.array([x], dtype=np.float64) for x in (both, a, b))
    assert npmi_array(*arrays, float(n))[0] == value


def test_npmi_landmarks() -> None:
    assert npmi(0.0, 5.0, 5.0, 10.0) == -1.0
    assert npmi(5.0, 5.0, 5.0, 10.0) == pytest.approx(1.0)
    assert npmi(4.0, 8.0, 8.0, 16.0) == pytest.approx(0.0)
    assert npmi(10.0, 10.0, 10.0, 10.0) == 0.0


@quick
@given(st.data())
def test_links(data: st.DataObject) -> None:
    """Degree, reach and the strongest links, whatever the order of the pairs."""
    n_items, n_languages, n_documents, m = 7, 3, 20, 3
    doc_freq = np.array(
        data.draw(st.lists(st.integers(1, 20), min_size=n_items, max_size=n_items)),
        dtype=np.float64,
    )
    language = np.array(
        data.draw(st.lists(st.integers(-1, 2), min_size=n_items, max_size=n_items)), dtype=np.int64
    )
    pairs = [
        (i, j, data.draw(st.integers(1, int(min(doc_freq[i], doc_freq[j])))))
        for i, j in itertools.combinations(range(n_items), 2)
        if data.draw(st.booleans())
    ]
    by_count = data.draw(st.booleans())
    threshold = data.draw(st.sampled_from([1.0, 3.0] if by_count else [-0.5, 0.0, 0.2]))
    shuffled = data.draw(st.permutations(pairs))
    links = empty_links(n_items, n_languages, m)
    cut = len(pairs) // 2
    for part in (shuffled[:cut], shuffled[cut:]):
        i, j, n = np.array(part, dtype=np.int64).reshape(-1, 3).T
        add_links(
            i.astype(np.uint32), j.astype(np.uint32), n.astype(np.uint64),
            doc_freq, language, float(n_documents), threshold, by_count, *links,
        )  # fmt: skip
    near: dict[int, list[tuple[float, int]]] = {item: [] for item in range(n_items)}
    for i, j, n in pairs:
        value = float(n)
        if not by_count:
            value = npmi(value, doc_freq[i], doc_freq[j], float(n_documents))
        near[i].append((value, j))
        near[j].append((value, i))
    for item in range(n_items):
        assert links.degree[item] == sum(v >= threshold for v, _ in near[item])
        for lang in range(n_languages):
            inside = [(v, other) for v, other in near[item] if language[other] == lang]
            assert links.reach[item, lang] == sum(v >= threshold for v, _ in inside)
            best = sorted([p for p in inside if p[0] > 0], key=lambda p: (-p[0], p[1]))[:m]
            best += [(0.0, -1)] * (m - len(best))
            assert links.strongest[item, lang].tolist() == [v for v, _ in best]
            assert links.neighbours[item, lang].tolist() == [other for _, other in best]


def test_gaps_and_second_largest() -> None:
    values = np.array([[[0.9, 0.5, 0.2], [0.4, 0.3, 0.0]]])
    assert gaps(values, 1)[0].tolist() == pytest.approx([0.4, 0.1])
    assert gaps(values, 2)[0].tolist() == pytest.approx([0.7, 0.4])
    assert second_largest(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 0.0]])).tolist() == [2.0, 5.0]
    assert second_largest(np.array([[3.0], [1.0]])).tolist() == [0.0, 0.0]


@quick
@given(st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=8))
def test_item_languages(rows: list[list[int]]) -> None:
    by_language = np.array(rows, dtype=np.uint64) + np.uint64(1)
    total = by_language.sum(axis=1)
    found = item_languages(total, by_language, 0.75).tolist()
    for code, row in zip(found, by_language.tolist(), strict=True):
        expected = [k for k, n in enumerate(row) if n >= 0.75 * sum(row)]
        assert code == (expected[0] if expected else NO_LANGUAGE)


@quick
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(1, 10), st.data())
def test_smallest_is_a_sample_by_key(keys: list[int], at_most: int, data: st.DataObject) -> None:
    found = smallest(np.array(keys, dtype=np.uint64), at_most).tolist()
    assert found == sorted(sorted(range(len(keys)), key=lambda d: (keys[d], d))[:at_most])
    # The smallest of two parts' smallest are those of the whole, so files can be taken one by one.
    cut = data.draw(st.integers(0, len(keys)))
    parts = [np.array(part, dtype=np.uint64) for part in (keys[:cut], keys[cut:])]
    first, second = (smallest(part, at_most) for part in parts)
    both = np.concatenate([first, second + cut])
    merged = both[smallest(np.array(keys, dtype=np.uint64)[both], at_most)]
    assert merged.tolist() == found


@quick
@given(st.lists(st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 3))), max_size=10))
def test_token_counts(documents: list[tuple[set[int], set[int]]]) -> None:
    def flat(column: int) -> tuple[list[int], np.ndarray]:
        sets = [document[column] for document in documents]
        offsets = np.cumsum([0, *map(len, sets)]).astype(np.int64)
        return [x for group in sets for x in group], offsets

    tokens, offsets = flat(0)
    samples, sample_offsets = flat(1)
    counts = np.zeros((4, 10), dtype=np.uint32)
    add_token_counts(
        np.array(tokens, dtype=np.uint32), offsets,
        np.array(samples, dtype=np.int64), sample_offsets, counts,
    )  # fmt: skip
    for sample, token in np.ndindex(4, 10):
        assert counts[sample, token] == sum(token in d and sample in s for d, s in documents)


@quick
@given(st.lists(st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.3]), max_size=12), st.integers(1, 5))
def test_strongest(values: list[float], at_most: int) -> None:
    allowed = np.array([k % 3 != 0 for k in range(len(values))], dtype=np.bool_)
    found = strongest(np.array(values, dtype=np.float64), allowed, at_most).tolist()
    ranked = sorted((-v, k) for k, v in enumerate(values) if v > 0 and k % 3 != 0)
    assert found == [k for _, k in ranked[:at_most]]


@quick
@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_common_documents(first: set[int], second: set[int]) -> None:
    arrays = (np.array(sorted(s), dtype=np.int64) for s in (first, second))
    assert common_documents(*arrays) == len(first & second)


def test_a_language_that_holds_exactly_the_share_counts() -> None:
    by_language = np.array([[55, 45], [54, 46]], dtype=np.uint64)
    found = item_languages(by_language.sum(axis=1), by_language, 0.55)
    assert found.tolist() == [0, NO_LANGUAGE]
