"""Pivot proportion of documents (METHOD section 4, step 3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel


@kernel
def count_pivots(
    tokens: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], is_pivot: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """How many of each document's tokens are pivots: int64 [n_docs].

    `tokens` uint32 [n_tokens] holds the documents one after another, `offsets` int64 [n_docs + 1]
    their borders, `is_pivot` bool [vocabulary] the set; ids beyond it are no pivots.
    """
    # The last entry stands for all ids beyond the set, so that there is no branch to guess.
    known = np.zeros(len(is_pivot) + 1, dtype=np.uint8)
    known[:-1] = is_pivot
    beyond = np.uint64(len(is_pivot))
    counts = np.zeros(len(offsets) - 1, dtype=np.int64)
    for document in range(len(counts)):
        n_pivots = 0
        for place in range(offsets[document], offsets[document + 1]):
            n_pivots += known[min(np.uint64(tokens[place]), beyond)]
        counts[document] = n_pivots
    return counts
