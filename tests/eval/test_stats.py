"""Weighted statistics against scipy and scikit-learn, and the bootstrap's coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from eval.stats import (
    Bootstrap,
    mean_over_columns,
    roc_curve,
    undefined,
    weighted_auc,
    weighted_means,
    weighted_midranks,
    weighted_ols,
    weighted_pearson,
    weighted_spearman,
)

ROWS = st.lists(
    st.tuples(
        st.integers(0, 5).map(float),
        st.integers(-3, 3).map(float),
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=4,
    max_size=30,
)


def expand(rows: list[tuple[float, float, bool, int]]) -> tuple[Any, ...]:
    x, y, positive, counts = (np.array(c) for c in zip(*rows, strict=True))
    weights = counts[None, :].astype(float)
    repeated = (np.repeat(c, counts) for c in (x, y, positive))
    return x, y, positive.astype(bool), weights, *repeated


@given(ROWS)
def test_correlations_equal_scipy_on_the_expanded_sample(rows: Any) -> None:
    x, y, _, weights, xs, ys, _ = expand(rows)
    assume(len(xs) >= 3 and np.ptp(xs) > 0 and np.ptp(ys) > 0)
    assert weighted_pearson(x, y, weights)[0] == pytest.approx(scipy.stats.pearsonr(xs, ys)[0])
    rho = scipy.stats.spearmanr(xs, ys)[0]
    assert weighted_spearman(x, y, weights)[0] == pytest.approx(rho)


@given(ROWS)
def test_midranks_equal_scipy_on_the_expanded_sample(rows: Any) -> None:
    x, _, _, weights, xs, *_ = expand(rows)
    assume(len(xs) > 0)
    counts = weights[0].astype(int)
    found = np.repeat(weighted_midranks(x, weights)[0], counts)
    np.testing.assert_allclose(found, scipy.stats.rankdata(xs))


@given(ROWS)
def test_auc_and_roc_equal_scikit_learn(rows: Any) -> None:
    x, _, positive, weights, xs, _, ps = expand(rows)
    assume(len(ps) > 0 and ps.any() and not ps.all())
    auc = weighted_auc(positive, x, weights)[0]
    assert auc == pytest.approx(roc_auc_score(ps, xs))
    fpr, tpr = roc_curve(ps.astype(bool), xs)
    expected = sklearn_roc(ps, xs, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected[0])
    np.testing.assert_allclose(tpr, expected[1])
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc)


@given(ROWS)
def test_least_squares_equals_scikit_learn(rows: Any) -> None:
    x, y, positive, weights, *_ = expand(rows)
    z = positive + x * y
    design = np.column_stack([x, y])
    counts = weights[0].astype(int)
    full = np.repeat(design, counts, axis=0)
    assume(len(full) >= 4 and np.ptp(np.repeat(z, counts)) > 0)
    assume(np.linalg.matrix_rank(np.column_stack([full, np.ones(len(full))])) == 3)
    model = LinearRegression().fit(full, np.repeat(z, counts))
    found = weighted_ols(design, z.astype(float), weights)[0]
    np.testing.assert_allclose(found[:3], [*model.coef_, model.intercept_], atol=1e-8)
    assert found[3] == pytest.approx(model.score(full, np.repeat(z, counts)), abs=1e-8)


def test_least_squares_equals_scipy_linregress() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = 2 * x + rng.normal(size=50)
    line = scipy.stats.linregress(x, y)
    found = weighted_ols(x[:, None], y, np.ones((1, 50)))[0]
    np.testing.assert_allclose(found, [line.slope, line.intercept, line.rvalue**2])


def test_undefined_statistics_are_nan() -> None:
    ones, x = np.ones((1, 4)), np.arange(4.0)
    constant = np.full(4, 0.1)
    assert np.isnan(weighted_pearson(x, constant, ones)[0])
    assert np.isnan(weighted_spearman(constant, x, ones)[0])
    assert np.isnan(weighted_auc(np.ones(4, dtype=bool), x, ones)[0])
    assert np.isnan(weighted_ols(np.column_stack([x, 2 * x]), x, ones)).all()
    assert np.isnan(weighted_ols(constant[:, None], x, ones)).all()
    assert np.isnan(weighted_ols(x[:, None], constant, ones)).all()


def test_means_leave_out_what_is_missing() -> None:
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    weights = np.array([[1.0, 1.0], [2.0, 0.0]])
    found = weighted_means(values, weights)
    np.testing.assert_array_equal(found, [[2.0, 5.0], [1.0, np.nan]])
    np.testing.assert_array_equal(mean_over_columns(found), [[3.5], [1.0]])


def test_bootstrap_is_deterministic_and_draws_clusters_whole() -> None:
    bootstrap = Bootstrap(200, 0.9, seed=3)
    clusters = ["b", "a", "b", "c"]
    weights = np.concatenate(list(bootstrap.weights(clusters)))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), np.full(200, 3.0))
    again = np.concatenate(list(Bootstrap(200, 0.9, seed=3).weights(clusters)))
    np.testing.assert_array_equal(weights, again)
    other = np.concatenate(list(Bootstrap(200, 0.9, seed=4).weights(clusters)))
    assert (weights != other).any()


def test_bootstrap_draws_models_too_and_whole() -> None:
    bootstrap = Bootstrap(400, 0.9, seed=3)
    clusters, models = ["a", "b", "c"] * 2, [5] * 3 + [7] * 3
    alone = np.concatenate(list(bootstrap.weights(clusters)))
    both = np.concatenate(list(bootstrap.weights(clusters, models)))
    # How often each model stands in a sample: two draws of two.
    drawn = np.array([(0, 2), (1, 1), (2, 0)])
    shares = np.repeat(drawn, 3, axis=1)
    found = (both[:, None] == alone[:, None] * shares).all(axis=2)
    assert found.any(axis=1).all()
    np.testing.assert_allclose(found.mean(axis=0), [0.25, 0.5, 0.25], atol=0.1)
    one = np.concatenate(list(bootstrap.weights(clusters, [5] * 6)))
    np.testing.assert_array_equal(one, alone)


def test_an_interval_needs_half_of_the_samples() -> None:
    bootstrap = Bootstrap(100, 0.95, seed=0)
    calls = iter([1.0, np.nan])
    interval = bootstrap.intervals(lambda w: np.full((len(w), 1), next(calls)), ["a", "b"])[0]
    assert (interval.value, interval.low) == (1.0, None)
    assert bootstrap.intervals(lambda w: w, []) == []
    assert undefined(0, "why").record()["reason"] == "why"


@pytest.mark.slow
def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits, wrong, trials = 0, 0, 300
    for trial in range(trials):
        # 40 concepts with 3 directions each that share the concept's own effect.
        effect = rng.normal(size=40)
        values = (effect[:, None] + 0.3 * rng.normal(size=(40, 3))).ravel()
        concepts = [f"c{i}" for i in range(40) for _ in range(3)]
        boot = Bootstrap(300, 0.9, seed=trial)
        interval = boot.intervals(lambda w, v=values: weighted_means(v[:, None], w), concepts)[0]
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 0 <= interval.high
        alone = [str(i) for i in range(120)]
        naive = boot.intervals(lambda w, v=values: weighted_means(v[:, None], w), alone)[0]
        assert naive.low is not None
        assert naive.high is not None
        wrong += naive.low <= 0 <= naive.high
    assert 0.84 <= hits / trials <= 0.95
    # Ignoring the clusters would claim far too much.
    assert wrong / trials < 0.75


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_auc_interval_holds_its_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, size=60).astype(float)
    positive = rng.random(60) < 0.2 + 0.1 * x
    assume(positive.any() and not positive.all())
    bootstrap = Bootstrap(100, 0.95, seed=seed)
    found = bootstrap.intervals(
        lambda w: weighted_auc(positive, x, w)[:, None], [str(i) for i in range(60)]
    )[0]
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
