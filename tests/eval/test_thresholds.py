"""Thresholds of the classification rules, and the depth at which curves peak."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.behaviour import classify, classify_any, find_winner
from eval.peaks import peak_depths, peak_table
from eval.stats import Bootstrap
from eval.thresholds import TopTokens, classes_at, sensitivity

SOURCE, TARGET = frozenset({1, 2}), frozenset({3, 4})
BOOT = Bootstrap(100, 0.95, seed=0)


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from((0.05, 0.1, 0.3, 0.7))), min_size=3,
                 max_size=3),
        min_size=1, max_size=6,
    ),
    st.sampled_from((0.05, 0.1, 0.2, 0.5)),
)  # fmt: skip
def test_classes_at_a_threshold_are_those_of_the_rules(
    items: list[list[tuple[int, float]]], threshold: float
) -> None:
    tokens = [[t for t, _ in layers] for layers in items]
    probs = [[p for _, p in layers] for layers in items]
    pairs = list(zip(tokens, probs, strict=True))
    winners = [find_winner(*pair) for pair in pairs]
    top = TopTokens(
        winner=np.array([classify(*pair, SOURCE, TARGET) for pair in pairs]),
        winning_prob=np.array([w.probability for w in winners]),
        probs=np.array(probs),
        foreign=np.array([[t not in SOURCE | TARGET for t in row] for row in tokens]),
    )
    expected = [classify_any(*pair, SOURCE, TARGET, threshold) for pair in pairs]
    assert classes_at(top, "any", threshold).tolist() == expected
    for found, winner, plain in zip(
        classes_at(top, "winner", threshold), winners, top.winner, strict=True
    ):
        assert found == (plain if winner.probability >= threshold else "")
    rows = sensitivity(top, (0.1, 0.5))
    assert [(row["rule"], row["threshold"]) for row in rows] == [
        ("winner", 0.0), ("winner", 0.1), ("winner", 0.5), ("any", 0.1), ("any", 0.5),
    ]  # fmt: skip
    for row in rows:
        assert row["n"] + row["left_out"] == len(items)
        assert sum(row["counts"].values()) == row["n"]
    assert rows[3]["counts"]["pivot"] >= rows[4]["counts"]["pivot"]


def test_items_whose_words_share_a_token_stay_none() -> None:
    top = TopTokens(np.array(["none"]), np.array([0.9]), np.array([[0.9]]), np.array([[True]]))
    assert classes_at(top, "any", 0.1).tolist() == ["none"]
    assert classes_at(top, "winner", 0.1).tolist() == ["none"]


def test_peaks_are_the_first_of_the_highest() -> None:
    values = np.array([[0.1, 0.5, 0.5], [0.9, 0.1, 0.2], [np.nan, 0.1, 0.2]])
    found = peak_depths(values, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(found, [2, 1, np.nan])


def test_the_order_of_peaks_is_tested() -> None:
    rng = np.random.default_rng(0)
    layers = np.arange(1.0, 9.0)

    def bumps(places: np.ndarray) -> np.ndarray:
        return np.exp(-((layers - places[:, None]) ** 2))

    n = 60
    concepts = [f"c{i // 2}" for i in range(n)]
    early, late = rng.integers(2, 6, n), rng.integers(5, 9, n)
    curves = {"p_source": bumps(early), "p_pivot": bumps(early), "p_target": bumps(late)}
    curves["p_pivot"][:10] = np.nan
    table = peak_table(curves, layers, concepts, BOOT)
    assert table["depth"]["p_source"]["value"] == pytest.approx(early.mean() / 8)
    order = table["order"]["p_pivot before p_target"]
    assert order["n"] == n - 10
    assert order["value"] == pytest.approx((late - early)[10:].mean() / 8)
    assert order["low"] > 0
    assert order["p"] < 0.001
    assert order["first_earlier"] == pytest.approx((late > early)[10:].mean())
    assert order["same_layer"] == pytest.approx((late == early)[10:].mean())
    # Source and pivots peak together.
    assert table["order"]["p_source before p_pivot"]["p"] == 1
    nothing = peak_table({k: v[:0] for k, v in curves.items()}, layers, [], BOOT)
    assert nothing["order"]["p_pivot before p_target"]["p"] is None
    assert nothing["depth"]["p_pivot"]["reason"] == "no item has the curve"
