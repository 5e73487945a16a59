"""Attribution against scikit-learn and scipy, and the cases without an answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from eval.attribute import summarise
from eval.attribution import Observations, auc_table, correlation_table, fit_table, roc_points
from eval.stats import Bootstrap
from mining.common.files import dump_json

BOOT = Bootstrap(100, 0.95, seed=0)


def make(n: int = 120, seed: int = 0) -> Observations:
    rng = np.random.default_rng(seed)
    pair = np.log1p(rng.integers(0, 8, n))
    behaviour = np.where(rng.random(n) < 0.2 + 0.3 * pair, "direct", "pivot")
    behaviour[rng.random(n) < 0.1] = "none"
    score = 0.2 * pair + 0.1 * rng.normal(size=n)
    score[:3] = np.nan
    return Observations(
        concept=[f"c{i // 2}" for i in range(n)],
        direction=["en-fr" if i % 2 else "fr-en" for i in range(n)],
        behaviour=behaviour.tolist(),
        score=score,
        log_freq={"pair": pair, "source": rng.random(n), "target": rng.random(n)},
        pivot_contribution=rng.random(n),
    )


def test_auc_by_direction_and_mean() -> None:
    data = make()
    table = auc_table(data, "pair", BOOT)
    kinds, names = np.array(data.behaviour), np.array(data.direction)
    values = []
    for name, record in table["directions"].items():
        rows = (names == name) & (kinds != "none")
        expected = roc_auc_score(kinds[rows] == "direct", data.log_freq["pair"][rows])
        assert record["value"] == pytest.approx(expected)
        assert record["low"] <= expected <= record["high"]
        assert record["n"] == rows.sum() == record["n_direct"] + record["n_pivot"]
        values.append(expected)
    assert table["mean"]["value"] == pytest.approx(np.mean(values))
    points = roc_points(data, "pair")
    assert {row["direction"] for row in points} == {"en-fr", "fr-en"}
    for name, record in table["directions"].items():
        fpr = [row["fpr"] for row in points if row["direction"] == name]
        tpr = [row["tpr"] for row in points if row["direction"] == name]
        assert np.trapezoid(tpr, fpr) == pytest.approx(record["value"])


def test_models_that_disagree_widen_the_interval_of_the_auc() -> None:
    one = make(seed=4)
    # The second model's classes are the first one's turned round.
    turned = {"direct": "pivot", "pivot": "direct", "none": "none"}
    both = Observations(
        concept=[*one.concept] * 2,
        direction=[*one.direction] * 2,
        behaviour=[*one.behaviour, *(turned[name] for name in one.behaviour)],
        score=np.tile(one.score, 2),
        log_freq={name: np.tile(values, 2) for name, values in one.log_freq.items()},
        pivot_contribution=np.tile(one.pivot_contribution, 2),
        model=[0] * len(one) + [1] * len(one),
    )
    alone = auc_table(one, "pair", BOOT)["mean"]
    pooled = auc_table(dataclasses.replace(both, model=None), "pair", BOOT)["mean"]
    found = auc_table(both, "pair", BOOT)["mean"]
    assert found["value"] == pooled["value"] == pytest.approx(0.5)
    assert pooled["high"] - pooled["low"] < 0.05
    # A sample may hold one model only.
    assert found["low"] <= 1 - alone["value"] < alone["value"] <= found["high"]
    part = both.where(np.arange(len(both)) % 3 == 0)
    assert part.model == both.model[::3]


def test_correlations_by_behaviour() -> None:
    data = make()
    table = correlation_table(data, "pair", BOOT)
    kinds, scored = np.array(data.behaviour), np.isfinite(data.score)
    masks = {"all": scored, "classified": scored & (kinds != "none")}
    masks |= {name: scored & (kinds == name) for name in ("direct", "pivot", "none")}
    for name, mask in masks.items():
        x, y = data.log_freq["pair"][mask], data.score[mask]
        assert table[name]["n"] == mask.sum()
        assert table[name]["pearson"]["value"] == pytest.approx(scipy.stats.pearsonr(x, y)[0])
        assert table[name]["spearman"]["value"] == pytest.approx(scipy.stats.spearmanr(x, y)[0])


def test_two_variable_fit() -> None:
    data = make()
    columns = {"direct": data.log_freq["pair"], "pivot_contribution": data.pivot_contribution}
    table = fit_table(data, columns, BOOT)
    rows = np.isfinite(data.score) & (np.array(data.behaviour) != "none")
    design = np.column_stack(list(columns.values()))[rows]
    model = LinearRegression().fit(design, data.score[rows])
    assert table["n"] == rows.sum()
    assert table["direct"]["value"] == pytest.approx(model.coef_[0])
    assert table["pivot_contribution"]["value"] == pytest.approx(model.coef_[1])
    assert table["intercept"]["value"] == pytest.approx(model.intercept_)
    assert table["r2"]["value"] == pytest.approx(model.score(design, data.score[rows]))
    assert table["direct"]["low"] <= table["direct"]["value"] <= table["direct"]["high"]
    assert table["direct"]["value"] == pytest.approx(0.2, abs=0.05)


def test_a_single_class_gives_null_and_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pivots")
    data = make()
    only = Observations(
        concept=data.concept,
        direction=data.direction,
        behaviour=["pivot"] * len(data),
        score=data.score,
        log_freq={**data.log_freq, "pair": np.zeros(len(data))},
        pivot_contribution=data.pivot_contribution,
    )
    summary = summarise(only, (1, 3), BOOT)
    assert "attribute: 7/7 statistics" in caplog.text
    mean = summary["auc"]["pair"]["mean"]
    assert mean["value"] is None
    assert "only one of the two behaviours" in mean["reason"]
    assert summary["auc"]["pair"]["directions"]["en-fr"]["reason"]
    assert "same for all" in summary["correlation"]["pair"]["all"]["pearson"]["reason"]
    assert "fewer than 3" in summary["correlation"]["source"]["direct"]["pearson"]["reason"]
    assert "constant" in summary["fit"]["direct"]["reason"]
    assert roc_points(only, "pair") == []
    assert "NaN" not in dump_json(summary)


def test_nothing_classified_gives_null_everywhere() -> None:
    data = make(6)
    nothing = Observations(
        concept=data.concept,
        direction=data.direction,
        behaviour=["none"] * 6,
        score=np.full(6, np.nan),
        log_freq=data.log_freq,
        pivot_contribution=data.pivot_contribution,
    )
    summary = summarise(nothing, (1,), BOOT)
    assert summary["auc"]["source"]["mean"]["reason"]
    assert "fewer than 4" in summary["fit"]["r2"]["reason"]
    dump_json(summary)
