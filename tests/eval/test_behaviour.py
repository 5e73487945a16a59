"""The classification rules on hand-made layers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eval.behaviour import classify, classify_any, find_winner

SOURCE, TARGET = frozenset({1, 2}), frozenset({3, 4})


def test_the_strongest_token_wins_and_ties_go_to_the_later_layer() -> None:
    winner = find_winner([7, 8, 9], [0.4, 0.4, 0.1])
    assert (winner.token, winner.layer, winner.probability) == (8, 2, 0.4)


def test_direct_where_the_last_layers_token_wins() -> None:
    assert classify([7, 8, 3], [0.1, 0.2, 0.3], SOURCE, TARGET) == "direct"
    # The token counts, not the layer: it wins at layer 1 and is the last layer's top token too.
    assert classify([3, 8, 3], [0.9, 0.2, 0.3], SOURCE, TARGET) == "direct"


def test_direct_where_the_source_word_wins() -> None:
    assert classify([2, 8, 3], [0.9, 0.2, 0.3], SOURCE, TARGET) == "direct"


def test_pivot_where_another_token_wins() -> None:
    assert classify([7, 8, 3], [0.1, 0.9, 0.3], SOURCE, TARGET) == "pivot"
    # A target token that is not the last layer's top token is no direct behaviour by METHOD.
    assert classify([4, 8, 3], [0.9, 0.2, 0.3], SOURCE, TARGET) == "pivot"


def test_none_where_the_words_share_a_token() -> None:
    assert classify([7, 8, 3], [0.1, 0.9, 0.3], SOURCE, TARGET | {2}) == "none"
    assert classify_any([7], [1.0], SOURCE, TARGET | {2}, 0.1) == "none"


def test_the_alternative_rule_has_a_threshold() -> None:
    assert classify_any([7, 8, 3], [0.05, 0.1, 0.9], SOURCE, TARGET, 0.1) == "pivot"
    assert classify_any([7, 8, 3], [0.05, 0.09, 0.9], SOURCE, TARGET, 0.1) == "direct"
    assert classify_any([1, 4, 3], [0.5, 0.5, 0.9], SOURCE, TARGET, 0.1) == "direct"


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), min_size=1))
def test_every_item_has_one_of_the_classes(layers: list[tuple[int, float]]) -> None:
    tokens, probs = [t for t, _ in layers], [p for _, p in layers]
    assert classify(tokens, probs, SOURCE, TARGET) in ("direct", "pivot")
    winner = find_winner(tokens, probs)
    assert winner.probability == max(probs)
    assert tokens[winner.layer - 1] == winner.token
