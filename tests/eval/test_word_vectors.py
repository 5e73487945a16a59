"""PPMI-SVD vectors against dense numpy, and groups of neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.word_vectors import neighbour_groups, ppmi, svd_vectors, unit_rows


def documents(seed: int, n_items: int, n_documents: int) -> np.ndarray:
    """bool [n_documents, n_items]; no item without a document."""
    rng = np.random.default_rng(seed)
    found = rng.random((n_documents, n_items)) < rng.uniform(0.1, 0.6, n_items)
    found[0] = True
    return found


def pair_table(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    both = found.astype(np.int64).T @ found
    i, j = np.nonzero(np.triu(both, k=1))
    return i, j, both[i, j], np.diag(both)


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), n_items=st.integers(4, 12), n_documents=st.integers(3, 40))
def test_vectors_equal_a_dense_twin(seed: int, n_items: int, n_documents: int) -> None:
    found = documents(seed, n_items, n_documents)
    i, j, n, doc_freq = pair_table(found)
    dense = np.zeros((n_items, n_items))
    for a in range(n_items):
        for b in range(n_items):
            both = np.count_nonzero(found[:, a] & found[:, b])
            if a != b and both:
                expected = found[:, a].sum() * found[:, b].sum() / n_documents
                dense[a, b] = max(0.0, np.log(both / expected))
    matrix = ppmi(i, j, n, doc_freq, n_documents)
    np.testing.assert_allclose(matrix.toarray(), dense, atol=1e-12)

    vectors = svd_vectors(matrix, n_items - 1)
    u, s, _ = np.linalg.svd(dense)
    assert vectors.shape == (n_items, n_items - 1)
    if dense.any():
        # Lengths and order of the dimensions; the vectors themselves where no values are equal.
        lengths = np.linalg.norm(vectors, axis=0)
        np.testing.assert_allclose(lengths, np.sqrt(s[:-1]), atol=1e-6)
        twin = u[:, :-1] * np.sqrt(s[:-1])
        gaps = np.abs(np.diff(s))
        for k in range(n_items - 1):
            if min(gaps[max(k - 1, 0) : k + 1]) > 1e-3 and s[k] > 1e-3:
                same = np.abs(vectors[:, k] @ twin[:, k]) / s[k]
                assert same == pytest.approx(1.0, abs=1e-6)
        assert (vectors.max(axis=0) >= -vectors.min(axis=0) - 1e-9).all()
    else:
        assert not vectors.any()


def test_vectors_are_the_same_every_time() -> None:
    i, j, n, doc_freq = pair_table(documents(3, 30, 50))
    first, second = (svd_vectors(ppmi(i, j, n, doc_freq, 50), 8) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@given(seed=st.integers(0, 1000), n=st.integers(0, 60), size=st.integers(2, 9))
def test_groups_hold_everybody_and_are_large_enough(seed: int, n: int, size: int) -> None:
    vectors = unit_rows(np.random.default_rng(seed).standard_normal((n, 5)))
    labels = neighbour_groups(vectors, size)
    counts = np.bincount(labels) if n else np.zeros(0)
    assert len(labels) == n
    assert len(counts) == max(1, n // size) or n == 0
    assert counts.sum() == n
    if n >= size:
        assert counts.min() >= size


def test_groups_find_what_lies_together() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4)[np.repeat(np.arange(4), 13)]
    order = rng.permutation(len(centres))
    vectors = unit_rows(centres + 0.05 * rng.standard_normal(centres.shape))[order]
    labels = neighbour_groups(vectors, 13)
    truth = np.repeat(np.arange(4), 13)[order]
    assert len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 4


def test_unit_rows_leave_zeros() -> None:
    np.testing.assert_array_equal(
        unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]]
    )
