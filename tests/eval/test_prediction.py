"""Partial correlations, calibration, prediction across directions, against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from eval.attribution import Observations
from eval.prediction import calibration_table, held_out_table, partial_table, weighted_partial
from eval.stats import Bootstrap

BOOT = Bootstrap(100, 0.95, seed=0)
DIRECTIONS = ("en-fr", "fr-en", "en-zh")


def make(n: int = 150, seed: int = 0, effect: float = 0.2) -> Observations:
    """Source frequency drives both pair frequency and score; `effect` is the pair's own."""
    rng = np.random.default_rng(seed)
    source, target = rng.normal(4, 1, (2, n))
    pair = np.log1p(
        np.maximum(0, np.rint(np.expm1(np.maximum(0, source - 2 + rng.normal(size=n)))))
    )
    score = 0.3 * source + effect * pair + 0.2 * rng.normal(size=n)
    score[:4] = np.nan
    behaviour = np.where(rng.random(n) < 0.2 + 0.15 * pair, "direct", "pivot")
    behaviour[-5:] = "none"
    return Observations(
        concept=[f"c{i // 3}" for i in range(n)],
        direction=[DIRECTIONS[i % 3] for i in range(n)],
        behaviour=behaviour.tolist(),
        score=score,
        log_freq={"pair": pair, "source": source, "target": target},
        pivot_contribution=rng.random(n),
    )


def residual_correlation(x: np.ndarray, y: np.ndarray, controls: np.ndarray) -> float:
    """The textbook's way: correlate what the controls leave of both."""
    left = [v - LinearRegression().fit(controls, v).predict(controls) for v in (x, y)]
    return float(scipy.stats.pearsonr(*left)[0])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_partial_is_the_correlation_of_residuals(seed: int, n_controls: int) -> None:
    rng = np.random.default_rng(seed)
    columns = list((rng.normal(size=(8, 8)) @ rng.normal(size=(8, 40)))[: 2 + n_controls])
    counts = rng.integers(0, 3, 40)
    if (counts > 0).sum() <= 8:
        return
    rows = np.repeat(np.arange(40), counts)
    found = weighted_partial(columns, np.stack([np.ones(40), counts]))
    for value, chosen in zip(found, (np.arange(40), rows), strict=True):
        x, y, *rest = (column[chosen] for column in columns)
        assert value == pytest.approx(residual_correlation(x, y, np.column_stack(rest)), abs=1e-8)


def test_partial_table_controls_for_the_words_own_frequencies() -> None:
    for effect, expected in ((0.0, False), (0.3, True)):
        data = make(600, effect=effect)
        kept = np.isfinite(data.score) & (np.array(data.behaviour) != "none")
        part = data.where(kept)
        controls = np.column_stack([part.log_freq["source"], part.log_freq["target"]])
        table = partial_table(data, BOOT)["score"]
        value = residual_correlation(part.log_freq["pair"], part.score, controls)
        assert table["pearson"]["value"] == pytest.approx(value)
        ranks = [scipy.stats.rankdata(v) for v in (part.log_freq["pair"], part.score, *controls.T)]
        by_rank = residual_correlation(ranks[0], ranks[1], np.column_stack(ranks[2:]))
        assert table["spearman"]["value"] == pytest.approx(by_rank)
        assert (table["pearson"]["low"] > 0) == expected
        # Without the controls there is a correlation in any case.
        assert scipy.stats.pearsonr(part.log_freq["pair"], part.score)[0] > 0.3


def test_degenerate_columns_have_a_reason() -> None:
    data = make()
    flat = Observations(
        concept=data.concept,
        direction=["en-fr"] * len(data),
        behaviour=data.behaviour,
        score=data.score,
        log_freq={**data.log_freq, "target": data.log_freq["source"]},
        pivot_contribution=data.pivot_contribution,
    )
    table = partial_table(flat, BOOT)
    assert table["score"]["pearson"]["value"] is None
    assert "collinear" in table["score"]["pearson"]["reason"]
    assert "two directions" in held_out_table(flat, flat.log_freq, BOOT)["r2"]["reason"]


def test_calibration_by_band() -> None:
    data = make()
    counts = np.rint(np.expm1(data.log_freq["pair"]))
    kinds = np.array(data.behaviour)
    rows = calibration_table(data, (1, 3, 1000), BOOT)
    assert [(row["from"], row["below"]) for row in rows] == [
        (0, 1), (1, 3), (3, 1000), (1000, None),
    ]  # fmt: skip
    assert sum(row["n"] for row in rows) == (kinds != "none").sum()
    for row in rows[:3]:
        chosen = (counts >= row["from"]) & (counts < row["below"]) & (kinds != "none")
        assert row["n"] == chosen.sum() > 0
        assert row["direct"]["value"] == pytest.approx((kinds[chosen] == "direct").mean())
        assert row["score"]["value"] == pytest.approx(np.nanmean(data.score[chosen]))
        assert row["direct"]["low"] <= row["direct"]["value"] <= row["direct"]["high"]
    assert rows[3]["n"] == 0
    assert rows[3]["direct"]["reason"] == "no item in the band"


def test_a_direction_is_predicted_by_a_fit_to_the_others() -> None:
    data = make()
    columns = {**data.log_freq, "pivots": data.pivot_contribution}
    table = held_out_table(data, columns, BOOT)
    rows = np.isfinite(data.score) & (np.array(data.behaviour) != "none")
    design = np.column_stack(list(columns.values()))
    names = np.array(data.direction)
    found = []
    for name in DIRECTIONS:
        train, test = rows & (names != name), rows & (names == name)
        model = LinearRegression().fit(design[train], data.score[train])
        predicted = model.predict(design[test])
        base = ((data.score[test] - data.score[train].mean()) ** 2).sum()
        r2 = 1 - ((data.score[test] - predicted) ** 2).sum() / base
        record = table["directions"][name]
        assert record["n"] == test.sum()
        assert record["r2"]["value"] == pytest.approx(r2)
        assert r2 >= r2_score(data.score[test], predicted)
        r = scipy.stats.pearsonr(predicted, data.score[test])[0]
        assert record["pearson"]["value"] == pytest.approx(r)
        assert record["r2"]["low"] <= r2 <= record["r2"]["high"]
        found.append(r2)
    assert table["r2"]["value"] == pytest.approx(np.mean(found))
    assert table["columns"] == ["pair", "source", "target", "pivots"]


def test_nothing_to_predict_from_noise() -> None:
    rng = np.random.default_rng(1)
    data = make(300)
    noise = {"noise": rng.normal(size=300)}
    table = held_out_table(data, noise, BOOT)
    assert table["r2"]["low"] <= 0.02
    assert table["r2"]["value"] < 0.05
