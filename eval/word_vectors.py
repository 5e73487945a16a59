"""Word vectors from document counts, and groups of near neighbours made of them.

Vectors are the truncated singular value decomposition of the positive pointwise mutual information
of words in documents (Levy and Goldberg, 2014), U sqrt(S). Everything is deterministic: a fixed
start vector, fixed signs, ties by place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

Floats = npt.NDArray[np.float64]

# Similarities are compared to this many decimals, so that the last bits of a sum decide nothing.
DECIMALS = 9


def ppmi(
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    n_both: npt.NDArray[np.int64],
    doc_freq: npt.NDArray[np.int64],
    n_documents: int,
) -> csr_array:
    """Positive PMI of items, symmetric: max(0, ln(n_ij N / (n_i n_j))), no diagonal.

    `first`, `second`, `n_both` [n_pairs] name each unordered pair once; `doc_freq` [n_items].
    Returns a sparse float64 [n_items, n_items].
    """
    expected = doc_freq[first].astype(np.float64) * doc_freq[second] / n_documents
    values = np.log(n_both / expected)
    above = values > 0
    i, j, values = first[above], second[above], values[above]
    size = len(doc_freq)
    rows, columns = np.concatenate([i, j]), np.concatenate([j, i])
    return csr_array((np.concatenate([values, values]), (rows, columns)), shape=(size, size))


def svd_vectors(matrix: csr_array, dimensions: int) -> Floats:
    """U sqrt(S) of the largest singular values, the largest first: float64 [n_items, dimensions].

    Fewer dimensions where the matrix has fewer than dimensions + 1 rows. In each dimension the
    entry of the largest size is positive. A matrix without entries gives zeros.
    """
    size = matrix.shape[0]
    k = min(dimensions, size - 1)
    if k < 1 or matrix.nnz == 0:
        return np.zeros((size, max(k, 0)))
    # A start vector without structure, the same every time.
    start = np.random.default_rng(0).standard_normal(size)
    u, s, _ = svds(matrix, k=k, v0=start)
    order = np.argsort(-s, kind="stable")
    vectors = u[:, order] * np.sqrt(np.maximum(s[order], 0))
    extremes = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(k)]
    return np.asarray(vectors * np.where(extremes < 0, -1.0, 1.0))


def unit_rows(vectors: Floats) -> Floats:
    """Rows divided by their length; rows of zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return result


def neighbour_groups(vectors: Floats, size: int) -> npt.NDArray[np.int64]:
    """Groups of at least `size` near neighbours: labels int64 [n] from 0, in the order they form.

    `vectors` float64 [n, d] of unit rows. Those with the closest neighbours are first to gather
    the size - 1 nearest that are still free; the last, too few for a group, join the group of the
    nearest mean each. With fewer than `size` rows there is one group.
    """
    n = len(vectors)
    labels = np.full(n, -1, dtype=np.int64)
    if n < 2 * size:
        return np.zeros(n, dtype=np.int64)
    closeness = np.empty(n)
    for place in range(n):
        others = np.delete(vectors @ vectors[place], place)
        closeness[place] = np.partition(others, n - size)[n - size :].mean()
    n_groups = n // size
    free = np.ones(n, dtype=np.bool_)
    label = 0
    for seed in np.argsort(-closeness.round(DECIMALS), kind="stable"):
        if label == n_groups:
            break
        if not free[seed]:
            continue
        free[seed] = False
        places = np.flatnonzero(free)
        similarity = (vectors[places] @ vectors[seed]).round(DECIMALS)
        nearest = places[np.argsort(-similarity, kind="stable")[: size - 1]]
        labels[[seed, *nearest]] = label
        free[nearest] = False
        label += 1
    rest = np.flatnonzero(free)
    means = unit_rows(np.array([vectors[labels == g].mean(axis=0) for g in range(n_groups)]))
    labels[rest] = np.argmax((vectors[rest] @ means.T).round(DECIMALS), axis=1)
    return labels
