"""Pivot proportion of documents (METHOD section 4, step 3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def count_pivots(
    tokens: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], is_pivot: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """How many of each document's tokens are pivots: int64 [n_docs].

    `tokens` uint32 [n_tokens] holds the documents one after another, `offsets` int64 [n_docs + 1]
    their borders, `is_pivot` bool [vocabulary] the set; ids beyond it are no pivots.
    """
    known = tokens < len(is_pivot)
    hits = is_pivot[np.where(known, tokens, 0)] & known if len(is_pivot) else known
    before = np.zeros(len(tokens) + 1, dtype=np.int64)
    np.cumsum(hits, out=before[1:])
    return before[offsets[1:]] - before[offsets[:-1]]
