"""Statistics over seeds against scipy and simulation; the sentence follows the numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.experiment_power import seeds_needed
from eval.experiment_stats import (
    Effect,
    conclude,
    effect,
    estimate,
    seed_values,
)
from eval.experiment_tables import estimate_cells, seed_table

DIRECTIONS = (("la", "lb"), ("lb", "la"))


def cells(values: dict[tuple[str, str], list[float]], tilt: float = 0.0) -> pd.DataFrame:
    """Accuracies by arm and cell, one a seed, divided over two directions."""
    rows = [
        {
            "arm": arm, "seed": seed, "cell": cell, "source_lang": a, "target_lang": b, "n": 10,
            "accuracy": value + (tilt if a == "la" else -tilt), "score": value / 10,
        }
        for (arm, cell), found in values.items()
        for seed, value in enumerate(found)
        for a, b in DIRECTIONS
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_values_are_means_over_the_directions() -> None:
    found = seed_values(cells({("pivot", "p1c0"): [0.2, 0.4]}, tilt=0.1), "accuracy")
    assert found["pivot", "p1c0"] == pytest.approx({0: 0.2, 1: 0.4})


def test_interval_and_p_are_those_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 0.1, 8), rng.normal(0.3, 0.1, 8)
    table = cells({("pivot", "p1c0"): list(a), ("random", "p1c0"): list(b)})
    found = effect(table, "pivot", "random", "p1c0", "accuracy", 0.95, 0.8)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.estimate.low == pytest.approx(interval.low)
    assert found.estimate.high == pytest.approx(interval.high)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.d == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    assert found.n_positive == int((a > b).sum())


def test_one_seed_has_no_interval() -> None:
    found = estimate([0.3], 0.95)
    assert found.mean == 0.3
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0])
def test_seeds_needed_reach_the_power_and_one_fewer_does_not(d: float) -> None:
    needed = seeds_needed(d, 0.8, 0.05)
    assert needed is not None
    rng = np.random.default_rng(1)

    def power(n: int) -> float:
        draws = rng.normal(d, 1.0, size=(40_000, n))
        t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(n))
        return float((np.abs(t) > stats.t.ppf(0.975, n - 1)).mean())

    assert power(needed) > 0.79
    assert power(needed - 1) < 0.81


def test_seeds_needed_without_an_effect() -> None:
    assert seeds_needed(0.0, 0.8, 0.05) is None
    assert seeds_needed(math.nan, 0.8, 0.05) is None
    assert seeds_needed(0.01, 0.8, 0.05) is None


def made(arm: str, reference: str, gaps: list[float]) -> Effect:
    base = [0.1] * len(gaps)
    table = cells(
        {(arm, "p1c0"): [b + g for b, g in zip(base, gaps, strict=True)], (reference, "p1c0"): base}
    )
    return effect(table, arm, reference, "p1c0", "accuracy", 0.95, 0.8)


UP = [0.20, 0.25, 0.22, 0.27, 0.18, 0.21]
FLAT = [0.03, -0.04, 0.02, -0.01, 0.01, -0.02]
DOWN = [-value for value in UP]


@pytest.mark.parametrize(
    ("over_random", "over_broken", "verdict", "phrase"),
    [
        (UP, UP, "better", "the tie does the work"),
        (UP, FLAT, "open", "that the tie does the work is not shown"),
        (UP, None, "open", "no control with broken pivots was run"),
        (FLAT, FLAT, "open", "No effect shown"),
        (DOWN, FLAT, "worse", "The reverse of the claim"),
        ([0.3], [0.3], "open", "One seed shows nothing yet"),
        ([0.25] * 3, [0.25] * 3, "open", "alike in all seeds"),
    ],
)
def test_the_sentence_follows_the_numbers(
    over_random: list[float], over_broken: list[float] | None, verdict: str, phrase: str
) -> None:
    broken = None if over_broken is None else made("pivot", "broken-pivot", over_broken)
    found = conclude(made("pivot", "random", over_random), broken, None)
    assert found[0] == verdict
    assert phrase in found[1]


def test_a_gain_without_pivots_is_said() -> None:
    up = made("pivot", "random", UP)
    _, text = conclude(up, made("pivot", "broken-pivot", UP), up)
    assert "words without pivots gain too" in text
    _, text = conclude(up, made("pivot", "broken-pivot", UP), made("pivot", "random", FLAT))
    assert "words without pivots" not in text


def test_an_arm_that_lacks_a_cell_or_a_seed_is_left_out_of_it() -> None:
    """Pairs are formed of the seeds that both have; what is left of none is undefined."""
    table = cells(
        {
            ("pivot", "p1c0"): [0.4, 0.5, 0.6], ("random", "p1c0"): [0.1, 0.1],
            ("pivot", "p0c0"): [0.1, 0.1, 0.1],
        }
    )  # fmt: skip
    found = effect(table, "pivot", "random", "p1c0", "accuracy", 0.95, 0.8)
    assert found.estimate.n == 2
    assert found.estimate.mean == pytest.approx(0.35)
    none = effect(table, "pivot", "random", "p0c0", "accuracy", 0.95, 0.8)
    assert none.estimate.n == 0
    assert math.isnan(none.estimate.mean)
    assert none.record()["difference"] is None
    assert conclude(none, None, None)[1].startswith("Nothing to compare")
    arms = ["pivot", "random"]
    estimates = estimate_cells(table, ["accuracy"], arms, ["p1c0", "p0c0"], 0.95)
    assert estimates["accuracy", "random", "p0c0"].n == 0
    rows = seed_table(seed_values(table, "accuracy"), [0, 1, 2], arms, [found]).rows
    assert [row[2] for row in rows] == ["10.0%", "10.0%", "–"]
    assert [row[3] == "–" for row in rows] == [False, False, True]


def test_twice_the_budget_is_said() -> None:
    up, flat = made("pivot", "random", UP), made("pivot", "random-twice", FLAT)
    broken = made("pivot", "broken-pivot", UP)
    assert (
        "the tie does 100% of it, the broken mix gains" in conclude(up, broken, None, None, up)[1]
    )
    assert "the tie does the work, not" in conclude(up, broken, None, None, flat)[1]
    assert "twice the budget stays below it" in conclude(up, broken, None, up)[1]
    assert "twice the budget is not shown to be below" in conclude(up, broken, None, flat)[1]


def test_rounding_is_no_effect() -> None:
    table = cells({("pivot", "p1c0"): [0.4] * 3, ("random", "p1c0"): [0.4] * 3})
    table.loc[table["arm"] == "random", "accuracy"] = [0.1, 0.7] * 3
    found = effect(table, "pivot", "random", "p1c0", "accuracy", 0.95, 0.8)
    assert (found.estimate.mean, found.estimate.sd) == (0.0, 0.0)
    assert found.verdict() == "open"
    assert math.isnan(found.d)


@pytest.mark.parametrize("d", [30.0, 40.0, 50.0])
def test_very_large_effects_take_few_seeds(d: float) -> None:
    assert seeds_needed(d, 0.8, 0.05) in (2, 3)
