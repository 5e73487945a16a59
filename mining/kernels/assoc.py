"""Association of two events from document counts: normalised pointwise mutual information."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel


@kernel
def npmi(n_both: float, n_first: float, n_second: float, n_documents: float) -> float:
    """Normalised PMI: ln(p(a, b) / (p(a) p(b))) / -ln p(a, b), from -1 to 1 (METHOD section 4).

    Two that never meet get -1, the limit. Two that stand together in every document get 0: the
    formula is 0/0 there, and what is everywhere tells nothing.
    """
    if n_both <= 0:
        return -1.0
    if n_both >= n_documents:
        return 0.0
    log_share = np.log(n_both / n_documents)
    lift = (n_both / n_first) * (n_documents / n_second)
    value: float = np.log(lift) / -log_share
    return min(1.0, max(-1.0, value))


@kernel
def npmi_array(
    n_both: npt.NDArray[np.float64],
    n_first: npt.NDArray[np.float64],
    n_second: npt.NDArray[np.float64],
    n_documents: float,
) -> npt.NDArray[np.float64]:
    """`npmi` of each entry; four times float64 [n]."""
    result = np.empty(len(n_both), dtype=np.float64)
    for place in range(len(n_both)):
        result[place] = npmi(n_both[place], n_first[place], n_second[place], n_documents)
    return result
