"""Document co-occurrence: our kernel against scipy's sparse `X.T @ X`, same documents, same counts.

    python -m launch.bench.cooccurrence

Generated documents with Zipf frequencies, about as many distinct items each as in PERFORMANCE's
study. One core.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.sparse

from launch.bench.timing import medians, report
from mining.kernels.cooccurrence import bands, index_block, pair_counts

TARGET = 60.0  # of the positional-popcount kernel; the row-gather kernel here is its reference


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=8192)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--draws", type=int, default=420, help="items drawn for each document")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, options.items + 1) ** 0.7
    drawn = rng.choice(
        options.items, size=(options.documents, options.draws), p=weights / weights.sum()
    )
    documents = [np.unique(row) for row in drawn]
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate(documents).astype(np.uint32)
    n_pairs = int((lengths * (lengths - 1) // 2).sum())

    def ours() -> list[np.ndarray[tuple[int, int], np.dtype[np.uint32]]]:
        block = index_block(items, offsets, options.items)
        return [
            pair_counts([block], first, last, options.items) for first, last in bands(options.items)
        ]

    def scipys() -> scipy.sparse.csr_matrix:
        ones = np.ones(len(items), dtype=np.int32)
        matrix = scipy.sparse.csr_matrix((ones, items, offsets), (len(lengths), options.items))
        return (matrix.T @ matrix).tocsr()

    upper = np.triu(scipys().toarray(), 1)
    for (first, last), counts in zip(bands(options.items), ours(), strict=True):
        assert (counts == upper[first:last, first:]).all(), "the two ways count differently"
    seconds = medians({"ours": ours, "scipy": scipys}, options.repeats)
    print(f"ours {n_pairs / seconds['ours'] / 1e6:.0f} M pairs/s")
    print(f"scipy {n_pairs / seconds['scipy'] / 1e6:.0f} M pairs/s")
    report(
        "cooccurrence",
        seconds["scipy"] / seconds["ours"],
        TARGET,
        items=options.items,
        documents=options.documents,
        postings=len(items),
        pairs=n_pairs,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
