"""The experiment on real text: cells by joint documents, the trend with tokens, the sentence."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.experiment_stats import Effect, Estimate, effect, estimate
from eval.experiment_text_stats import (
    ALL,
    APART,
    TOGETHER,
    Trend,
    conclude_text,
    find_trend,
    read_text_cells,
)
from mining.common.errors import InputError

UP = [0.10, 0.12, 0.11, 0.13]
FLAT = [0.01, -0.02, 0.02, -0.01]


def cells(gaps: list[float], base: float = 0.1) -> pd.DataFrame:
    rows = [
        {
            "arm": arm, "seed": seed, "cell": ALL, "source_lang": "en", "target_lang": "fr",
            "n": 10, "accuracy": base + (gap if arm == "pivot" else 0.0), "score": 0.0,
        }
        for seed, gap in enumerate(gaps)
        for arm in ("pivot", "random")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def primary(gaps: list[float]) -> Effect:
    return effect(cells(gaps), "pivot", "random", ALL, "accuracy", 0.95, 0.8)


def test_cells_follow_the_documents_that_hold_both_words(tmp_path: Path) -> None:
    words, folder = tmp_path / "words", tmp_path / "evaluate"
    words.mkdir()
    folder.mkdir()
    keys = {"source_lang": "en", "target_lang": "fr"}
    pairs = [{"concept": c, **keys, "pair_doc_freq": n} for c, n in (("a", 0), ("b", 3), ("c", 1))]
    pd.DataFrame(pairs).to_parquet(words / "pairs.parquet")
    items = [
        {"concept": c, **keys, "correct": ok, "score": s, "n_distractors": 9}
        for c, ok, s in (("a", True, 0.4), ("b", False, 0.1), ("c", True, 0.3), ("d", None, None))
    ]
    pd.DataFrame(items).to_parquet(folder / "items.parquet")
    found = read_text_cells({("pivot", 0): folder}, words)
    assert found.items == {ALL: 3, APART: 1, TOGETHER: 2}
    assert found.chance == pytest.approx(0.1)
    by_cell = found.table.set_index("cell")
    assert by_cell["accuracy"].to_dict() == pytest.approx({ALL: 2 / 3, APART: 1.0, TOGETHER: 0.5})
    assert by_cell.loc[TOGETHER, "score"] == pytest.approx(0.2)
    pd.DataFrame(items[3:]).to_parquet(folder / "items.parquet")
    with pytest.raises(InputError, match="min_doc_freq"):
        read_text_cells({("pivot", 0): folder}, words)


def test_the_trend_is_the_rise_a_doubling_and_reaches_what_seeds_would_find() -> None:
    """A rise of 2 points a doubling, from 1 to 5 points over two of them."""
    noise = np.array([-0.01, 0.01, 0.005, -0.005])
    at = {
        tokens: cells([0.01 + 0.02 * k + n * (1 + k / 100) for n in noise])
        for k, tokens in enumerate((1000, 2000, 4000))
    }
    last = effect(at[4000], "pivot", "random", ALL, "accuracy", 0.95, 0.8)
    trend = find_trend(at, last, 0.95, 0.8)
    assert trend is not None
    assert trend.slope.mean == pytest.approx(0.02)
    assert trend.tokens == 4000
    # 4 seeds find an effect of 2.0 or so standard deviations: already reached.
    assert trend.tokens_needed == 4000
    wide = effect(cells([0.05, -0.03, 0.09, 0.01]), "pivot", "random", ALL, "accuracy", 0.95, 0.8)
    later = find_trend(at, wide, 0.95, 0.8)
    assert later is not None
    assert later.tokens_needed is not None
    assert later.tokens_needed > 4000
    assert find_trend({4000: at[4000]}, last, 0.95, 0.8) is None
    falling = dict(zip((1000, 2000, 4000), reversed(list(at.values())), strict=True))
    down = find_trend(falling, last, 0.95, 0.8)
    assert down is not None
    assert down.tokens_needed is None


ABOVE = Estimate(0.3, 0.25, 0.35, 0.02, 4)
CHANCE = Estimate(0.1, 0.08, 0.12, 0.02, 4)


@pytest.mark.parametrize(
    ("gaps", "arms", "verdict", "phrases"),
    [
        (UP, ABOVE, "better", ("raises the accuracy", "Above chance (10%)", "does not show")),
        (FLAT, CHANCE, "open", ("No effect shown", "neither confirmed nor refuted", "4 seeds")),
        (UP, CHANCE, "better", ("raises the accuracy", "do not translate yet")),
        (FLAT, ABOVE, "open", ("No effect shown", "Above chance", "would have been found")),
        ([-g for g in UP], ABOVE, "worse", ("The reverse of the claim",)),
        ([0.3], Estimate(0.3, math.nan, math.nan, math.nan, 1), "open", ("One seed shows",)),
    ],
)
def test_the_sentence_follows_the_numbers(
    gaps: list[float], arms: Estimate, verdict: str, phrases: tuple[str, ...]
) -> None:
    found = conclude_text(primary(gaps), {"pivot": arms, "random": arms}, None, 0.1, 0.95, 0.8)
    assert found[0] == verdict
    for phrase in phrases:
        assert phrase in found[1]


@pytest.mark.parametrize(
    ("slope", "needed", "phrase"),
    [
        (UP, 5_000_000, "about 5,000,000 tokens"),
        (UP, None, "no number of tokens within reach"),
        (FLAT, None, "no clear rise"),
    ],
)
def test_the_tokens_it_would_take_are_named_where_the_difference_rises(
    slope: list[float], needed: int | None, phrase: str
) -> None:
    trend = Trend(estimate(slope, 0.95), 1000, needed)
    _, text = conclude_text(primary(FLAT), {"pivot": CHANCE}, trend, 0.1, 0.95, 0.8)
    assert phrase in text
