"""Choice of documents up to a budget of tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def fill_budget(
    order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], budget: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Take documents in the given order until the budget is full; the last one is cut to fit.

    `order` int64 [n] are indices into `sizes` int64 (tokens of each document, at least 1). Returns
    the indices taken and the tokens taken of each, both int64 [m]; the tokens' sum is the budget,
    or the sum of all sizes if that is smaller.
    """
    ends = np.cumsum(sizes[order])
    n_taken = int(np.searchsorted(ends, budget)) + 1 if budget > 0 else 0
    taken = order[:n_taken]
    lengths = sizes[taken].copy()
    if len(taken) and ends[len(taken) - 1] > budget:
        lengths[-1] -= ends[len(taken) - 1] - budget
    return taken, lengths
