"""Paired comparison against scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from eval.paired import contributions, difference, holm, sign_flip_p_values
from eval.stats import Bootstrap


def grids(n: int, seed: int = 0, gap: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Two models' values [n, 3] with some items missing in either."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0, 1, (n, 1))
    a, b = (ease + rng.normal(shift, 0.5, (n, 3)) for shift in (gap, 0.0))
    a[1, 0] = b[2, 1] = np.nan
    return a, b


def scipy_p(a: np.ndarray, b: np.ndarray, resamples: float) -> float:
    """The same test by scipy: exchanges the rows of whole concepts between the models."""
    gap = a - b

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        # scipy exchanges indices, since a concept has several values.
        i, j = x.astype(int), y.astype(int)
        flipped = np.where((i < j)[..., None], gap[np.minimum(i, j)], -gap[np.minimum(i, j)])
        return np.nanmean(flipped, axis=-2).mean(axis=-1)

    n = len(a)
    rows = np.arange(n)
    result = permutation_test(
        (rows, rows + n), statistic, permutation_type="samples", vectorized=True,
        n_resamples=resamples, axis=-1, rng=np.random.default_rng(3),
    )  # fmt: skip
    return float(result.pvalue)


def plain_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nanmean(a - b, axis=0).mean())


def test_difference_and_contributions_are_means_of_common_items() -> None:
    a, b = grids(20)
    found = difference(a, b, Bootstrap(300, 0.9, 1))
    assert found.interval.value == pytest.approx(plain_difference(a, b))
    assert contributions(a, b).sum() == pytest.approx(plain_difference(a, b))
    assert (found.n_items, found.n_concepts) == (58, 20)
    samples = [
        np.nanmean(np.repeat(a - b, w.astype(int), axis=0), axis=0).mean()
        for w in np.concatenate(
            list(Bootstrap(300, 0.9, 1).weights([f"{i:09d}" for i in range(20)]))
        )
    ]
    expected = np.quantile(samples, [0.05, 0.95])
    assert (found.interval.low, found.interval.high) == pytest.approx(expected)


def test_exact_p_values_are_scipys() -> None:
    for seed, gap in ((0, 0.1), (1, 0.5), (2, 0.0)):
        a, b = grids(9, seed, gap)
        p, exact = sign_flip_p_values(contributions(a, b)[:, None], 1000, 0)
        assert exact == [True]
        assert p[0] == pytest.approx(scipy_p(a, b, np.inf))


def test_drawn_p_values_are_near_scipys() -> None:
    a, b = grids(40, 4, 0.12)
    n = 20_000
    p, exact = sign_flip_p_values(contributions(a, b)[:, None], n, 0)
    assert exact == [False]
    expected = scipy_p(a, b, n)
    assert 0.01 < expected < 0.5
    assert p[0] == pytest.approx(expected, abs=6 * np.sqrt(expected / n))
    assert round(p[0] * (n + 1), 6).is_integer()


def test_columns_do_not_depend_on_their_neighbours_and_chance_is_uniform() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(0, 1, (60, 200))
    parts[5:, 0] = 0  # one column is exact
    p, exact = sign_flip_p_values(parts, 999, 7)
    assert exact[0]
    assert not any(exact[1:])
    assert p[1:2] == sign_flip_p_values(parts[:, 1:2], 999, 7)[0]
    assert 0.02 <= (p <= 0.1).mean() <= 0.18
    assert p.min() >= 0.001


def test_no_difference_and_no_items() -> None:
    p, exact = sign_flip_p_values(np.zeros((5, 1)), 100, 0)
    assert (p[0], exact) == (1.0, [True])
    nothing = difference(np.full((3, 2), np.nan), np.zeros((3, 2)), Bootstrap(10, 0.9, 0))
    assert nothing.n_items == 0
    assert nothing.interval.value is None


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_its_definition(values: list[float]) -> None:
    adjusted = holm(np.array(values))
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (len(values) - rank) * values[i])
        assert adjusted[i] == min(1.0, highest)


def test_holm_leaves_out_what_has_no_p_value() -> None:
    found = holm(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(found, [0.02, np.nan, 0.04])
