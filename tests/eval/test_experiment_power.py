"""Power of the paired t-test: seeds, sizes and simulation agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eval.experiment_power import power_of, seeds_needed, smallest_size


@pytest.mark.parametrize("n", [2, 3, 4, 8, 30])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_size_has_the_power_and_takes_that_many_seeds(n: int, power: float) -> None:
    size = smallest_size(n, power, 0.05)
    assert power_of(size, n, 0.05) == pytest.approx(power, abs=1e-6)
    assert seeds_needed(size, power, 0.05) == n
    assert seeds_needed(0.99 * size, power, 0.05) > n  # type: ignore[operator]


def test_power_is_that_of_simulated_experiments() -> None:
    rng = np.random.default_rng(0)
    n, size = 4, smallest_size(4, 0.8, 0.05)
    draws = rng.normal(size, 1.0, size=(40_000, n))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(n))
    assert (np.abs(t) > stats.t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.01)


def test_one_seed_finds_nothing() -> None:
    assert math.isnan(smallest_size(1, 0.8, 0.05))
