"""What it takes to find an effect with a paired t-test over seeds."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

MAX_SEEDS = 1000
HALVINGS = 60


def power_of(d: float, n: int, alpha: float) -> float:
    """Probability that a two-sided paired t-test of `n` seeds finds an effect of size `d`.

    At level `alpha`, by the noncentral t distribution; `d` is in standard deviations.
    """
    limit = stats.t.ppf(1 - alpha / 2, n - 1)
    shift = abs(d) * math.sqrt(n)
    # The far side is NaN in scipy where it is next to nothing.
    far = np.nan_to_num(stats.nct.cdf(-limit, n - 1, shift))
    return float(stats.nct.sf(limit, n - 1, shift) + far)


def seeds_needed(d: float, power: float, alpha: float) -> int | None:
    """The least number of seeds with which an effect of size `d` is found with `power`.

    None where it takes more than MAX_SEEDS, or `d` is undefined.
    """
    if not math.isfinite(d) or d == 0:
        return None
    return next((n for n in range(2, MAX_SEEDS + 1) if power_of(d, n, alpha) >= power), None)


def smallest_size(n: int, power: float, alpha: float) -> float:
    """The smallest effect, in standard deviations, that `n` seeds find with `power`.

    NaN with fewer than two seeds.
    """
    if n < 2:
        return math.nan
    low, high = 0.0, 1.0
    while power_of(high, n, alpha) < power:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if power_of(middle, n, alpha) < power:
            low = middle
        else:
            high = middle
    return high
