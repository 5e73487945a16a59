"""Which tokens' directions are removed, and which are taken for controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eval.ablation import Ablator, ablation_rows, read_traits, removed_tokens
from eval.intervene_settings import InterveneSettings
from eval.items import Item
from eval.lens_parts import find_parts
from eval.models import wrap_model
from eval.patching import choose_donors
from eval.trace_items import TracedItem
from mining.common.task import Concept

VOCAB = 400


def traced(name: str, pivots: set[int], answer: int, skipped: int = 0) -> TracedItem:
    concept = Concept(name, "noun", "k", {"en": "a", "fr": "b"}, {"en": (), "fr": ()})
    source, target = frozenset({2}), frozenset({answer})
    sets = (source, frozenset(pivots), target, frozenset[int](), frozenset[int]())
    return TracedItem(
        Item(concept, "en", "fr"), (4, 5, 6), answer, skipped, source, target, sets
    )  # fmt: skip


@pytest.fixture
def ablator(tiny_model: Any, word_level: Any) -> Ablator:
    words = [f"w{i}" for i in range(VOCAB - 2)]
    model = wrap_model(tiny_model("llama", VOCAB), word_level(words), "tiny")
    parts = find_parts(model, None, None)
    # Beyond the strongest, which are the items' sets, every pair has the pivots 200 to 203.
    pivots = {(f"c{i}", "en", "fr"): [10, 11, 12, 200, 201, 202, 203] for i in range(30)}
    return Ablator(
        model, parts, read_traits(model, parts, None), pivots, InterveneSettings(), seed=0
    )


def test_controls_are_no_pivots_of_the_pair_and_of_all_kinds(ablator: Ablator) -> None:
    rich = traced("rich", set(range(300, 340)), 7)
    items = [(traced(f"c{i}", {10, 11, 12}, 20 + i), "pivot") for i in range(30)]
    drawn: set[int] = set()
    for i, (own, _) in enumerate(items):
        found = removed_tokens(ablator, [items[i], (rich, "direct")], 0)
        assert found["pivots"] == [10, 11, 12]
        for control in ("random", "other"):
            assert len(set(found[control])) == 3
            forbidden = {2, own.answer, 10, 11, 12, 200, 201, 202, 203}
            assert not set(found[control]) & forbidden
        assert set(found["other"]) <= rich.sets[1]
        drawn |= set(found["other"])
    # Not always those with the lowest ids, which are the most frequent tokens.
    assert len(drawn) > 20
    # All items have the same pivots: no other pair's can be had.
    assert "other" not in removed_tokens(ablator, items, 0)


def test_an_answer_is_no_pivot_of_itself(ablator: Ablator) -> None:
    items = [(traced("c0", {10, 7}, 7), "pivot"), (traced("c1", {9}, 9), "pivot")]
    assert removed_tokens(ablator, items, 0)["pivots"] == [10]
    # Of the second nothing would be removed, which would look like pivots that do not matter.
    rows = ablation_rows(ablator, items, [0, 1])
    assert {row["concept"] for row in rows} == {"c0"}
    assert [row["condition"] for row in rows][:2] == ["clean", "pivots"]
    assert np.exp(rows[0]["log_p_answer"]) == pytest.approx(rows[0]["p_answer"])


def test_a_donor_asks_for_another_answer_at_the_same_place() -> None:
    items = [traced("a", set(), 7), traced("b", set(), 7), traced("c", set(), 8, skipped=1)]
    assert choose_donors(items) == [None, None, None]
    assert choose_donors([*items, traced("d", set(), 9)]) == [3, 3, None, 0]
    assert choose_donors(items[:1]) == [None]
