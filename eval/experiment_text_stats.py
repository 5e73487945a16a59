"""The numbers of the experiment on real text: cells, the trend with tokens, and the sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.experiment_power import MAX_SEEDS, smallest_size
from eval.experiment_stats import (
    Effect,
    Estimate,
    Verdict,
    differences,
    estimate,
    in_points,
    why_open,
)
from eval.experiment_tables import Estimates
from mining.common.errors import InputError
from mining.common.shards import read_columns

ALL, APART, TOGETHER = "all", "apart", "together"
MEANINGS = {
    ALL: "all items that are asked",
    APART: "no document of the corpus holds both words",
    TOGETHER: "some document of the corpus holds both words",
}
KEYS = ["concept", "source_lang", "target_lang"]
# Beyond this many tokens a number of them says nothing.
MAX_TOKENS = 1e15


@dataclass(frozen=True)
class Trend:
    """How an effect moves with the tokens a model has seen.

    `slope` is its change for each doubling of the tokens (least squares within a seed, its interval
    over seeds), `tokens` what the final models have seen, `tokens_needed` where the line reaches an
    effect that these seeds would find with the set power; None where the slope is not above zero
    with confidence, or the number is beyond MAX_TOKENS.
    """

    slope: Estimate
    tokens: int
    tokens_needed: int | None


@dataclass(frozen=True)
class TextCells:
    """What the evaluations say, by cell.

    `table` has the columns of eval.experiment_stats.read_cells, its cells are MEANINGS; `items`:
    cell -> items of it; `chance`: accuracy of blind choice.
    """

    table: pd.DataFrame
    items: Mapping[str, int]
    chance: float


@dataclass(frozen=True)
class TextFindings:
    """All that the page says.

    `estimates` by (measure, arm, cell); `at`: tokens seen -> the primary effect by seed;
    `training` and `mixes`: counts of a train stage, and arms.json of a mix, of the first seed;
    `n_documents`: of the corpus; `asked`: the settings that chose the items.
    """

    arms: tuple[str, ...]
    runs: Mapping[int, Path]
    cells: TextCells
    estimates: Estimates
    effects: Sequence[Effect]
    primary: Effect
    verdict: Verdict
    conclusion: str
    trend: Trend | None
    at: Mapping[int, Mapping[int, float]]
    training: Mapping[str, Any]
    mixes: Mapping[str, Any]
    n_documents: int
    asked: Mapping[str, Any]


def read_text_cells(folders: Mapping[tuple[str, int], Path], words: Path) -> TextCells:
    """Accuracy and Score by arm, seed, cell and direction, from `evaluate` folders of real text.

    The cells follow the joint document frequencies of the `words` folder. Raises InputError where
    no item has been scored.
    """
    pairs = read_columns(words / "pairs.parquet", columns=[*KEYS, "pair_doc_freq"]).to_pandas()
    frames: list[pd.DataFrame] = []
    sizes: dict[str, int] = {}
    chance = math.nan
    for (arm, seed), folder in folders.items():
        columns = [*KEYS, "correct", "score", "n_distractors"]
        items = read_columns(folder / "items.parquet", columns=columns).to_pandas()
        items = items[items["correct"].notna()].astype({"correct": float})
        if items.empty:
            raise InputError(f"{folder}: no item with an answer; lower evaluate.min_doc_freq")
        chance = float((1 / (1 + items["n_distractors"])).mean())
        items = items.merge(pairs, on=KEYS, how="left", validate="one_to_one")
        together = items["pair_doc_freq"].fillna(0) > 0
        for cell, part in ((ALL, items), (APART, items[~together]), (TOGETHER, items[together])):
            sizes[cell] = len(part)
            found = part.groupby(["source_lang", "target_lang"], as_index=False).agg(
                n=("correct", "size"), accuracy=("correct", "mean"), score=("score", "mean")
            )
            found.insert(0, "arm", arm)
            found.insert(1, "seed", seed)
            found.insert(2, "cell", cell)
            frames.append(found)
    return TextCells(pd.concat(frames, ignore_index=True), sizes, chance)


def find_trend(
    cells_at: Mapping[int, pd.DataFrame], primary: Effect, confidence: float, power: float
) -> Trend | None:
    """The primary effect's trend over checkpoints; None with fewer than two, or two seeds.

    `cells_at`: tokens seen -> cells, the final models last.
    """
    by_tokens = {
        tokens: differences(cells, primary.arm, primary.reference, ALL, primary.measure)
        for tokens, cells in cells_at.items()
    }
    last = list(by_tokens)[-1]
    seeds = sorted(set.intersection(*(set(found) for found in by_tokens.values())))
    if len(by_tokens) < 2 or len(seeds) < 2:
        return None
    doublings = np.log2(list(by_tokens))
    slopes = [
        float(np.polyfit(doublings, [found[seed] for found in by_tokens.values()], 1)[0])
        for seed in seeds
    ]
    slope = estimate(slopes, confidence)
    found = primary.estimate
    wanted = smallest_size(found.n, power, 1 - confidence) * found.sd
    needed = None
    if slope.low > 0 and slope.sd > 0 and found.sd > 0:
        doubled = max(0.0, (wanted - found.mean) / slope.mean)
        if math.log2(last) + doubled < math.log2(MAX_TOKENS):
            needed = round(last * 2**doubled)
    return Trend(slope, last, needed)


def conclude_text(
    primary: Effect,
    arms: Mapping[str, Estimate],
    trend: Trend | None,
    chance: float,
    confidence: float,
    power: float,
) -> tuple[Verdict, str]:
    """The verdict, and what the run shows and does not show, from the numbers.

    `arms`: the accuracy of each arm over the seeds, on all items.
    """
    found = primary.estimate
    gain = in_points(found)
    name, other = primary.arm, primary.reference
    verdict: Verdict = "open" if found.n < 2 else primary.verdict()
    if found.n < 2:
        text = f"One seed shows nothing yet: the {name} mix differs from {other} by {gain}."
    elif verdict == "better":
        text = (
            f"On this corpus, at equal tokens per language, the {name} mix raises the accuracy "
            f"among ten by {gain} over {other}."
        )
    elif verdict == "worse":
        text = (
            f"The reverse of the claim: on this corpus, at equal tokens per language, the {name} "
            f"mix translates worse than {other}: a difference of {gain}."
        )
    else:
        text = (
            f"No effect shown: on this corpus, at equal tokens per language, the {name} mix "
            f"differs from {other} by {gain}, {why_open(found)}."
        )
    sentences = [text, _above_chance(arms, chance, verdict)]
    if found.n >= 2 and verdict == "open":
        if found.sd > 0:  # of seeds that are all alike nothing is known
            sentences.append(_power(primary, confidence, power))
        sentences.append(_trend(trend, found.n))
    sentences.append(
        "It does not show what other corpora, other concepts, larger models or more tokens would "
        "do, and real text has no control with broken pivots, so that the tie between languages "
        "would do it cannot be shown here."
    )
    return verdict, " ".join(sentence for sentence in sentences if sentence)


def _above_chance(arms: Mapping[str, Estimate], chance: float, verdict: Verdict) -> str:
    known = {arm: e for arm, e in arms.items() if e.n >= 2}
    if not known:
        return ""
    above = [arm for arm, e in known.items() if e.low > chance]
    if not above:
        text = f"No arm is above chance ({chance:.0%}) with confidence"
        if verdict != "open":
            return text + ": a difference between models that do not translate yet."
        return text + (
            ", so that models of this size cannot decide the question: it is neither confirmed nor "
            "refuted."
        )
    return f"Above chance ({chance:.0%}) with confidence: {', '.join(above)}."


def _power(primary: Effect, confidence: float, power: float) -> str:
    e = primary.estimate
    least = smallest_size(e.n, power, 1 - confidence) * e.sd
    text = (
        f"With {e.n} seeds an effect of {100 * least:.1f} points or more would have been found "
        f"with a probability of {power:.0%}; "
    )
    if primary.seeds_needed is None:
        return text + f"one of the size seen takes more than {MAX_SEEDS} seeds, if it is one."
    return text + f"one of the size seen takes about {primary.seeds_needed} seeds."


def _trend(trend: Trend | None, n: int) -> str:
    if trend is None:
        return ""
    e = trend.slope
    change = f"{100 * e.mean:+.2f} points [{100 * e.low:.2f}, {100 * e.high:.2f}]"
    text = f"Each doubling of the tokens seen changes the difference by {change}"
    if e.low <= 0 or e.sd == 0:
        return text + ": no clear rise, so that no number of tokens can be named that would do."
    if trend.tokens_needed is None:
        return text + ": on that line no number of tokens within reach would do."
    return (
        text + f": on that line about {trend.tokens_needed:,} tokens a model would do with {n} "
        "seeds."
    )
