"""How the behaviour classes depend on the thresholds of the two rules. Pure.

Everything follows from each layer's most probable token: its probability, and whether it belongs to
the source word, the target word or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eval.behaviour import BEHAVIOURS, DIRECT, NONE, PIVOT
from eval.stats import Floats

Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class TopTokens:
    """Of n items: the class by METHOD's rule [n], the winner's probability float64 [n], and for
    each block the top token's probability float64 [n, L] and whether it is of neither word.
    """

    winner: Names
    winning_prob: Floats
    probs: Floats
    foreign: npt.NDArray[np.bool_]


def top_tokens(items: pa.Table, layers: pa.Table) -> TopTokens:
    """From the tables of a trace; layer 0, which never votes, is left out."""
    probs = pc.list_element(layers.column("top_probs"), 0).to_numpy()
    foreign = pc.equal(layers.column("top_word"), "neither").to_numpy()
    voting = layers.column("layer").to_numpy() >= 1
    shape = (items.num_rows, -1)
    return TopTokens(
        winner=np.array(items.column("behaviour_winner").to_pylist(), dtype=str),
        winning_prob=items.column("winning_prob").to_numpy(),
        probs=probs[voting].reshape(shape),
        foreign=foreign[voting].reshape(shape),
    )


def classes_at(top: TopTokens, rule: str, threshold: float) -> Names:
    """Each item's class [n] at a threshold; "" where it is left out.

    any: pivot if a block's top token of neither word reaches the threshold. winner: METHOD's class,
    of those items only whose winning token reaches it.
    """
    if rule == "any":
        reached = (top.foreign & (top.probs >= threshold)).any(axis=1)
        found = np.where(reached, PIVOT, DIRECT)
        return np.where(top.winner == NONE, NONE, found)
    return np.where(top.winning_prob >= threshold, top.winner, "")


def sensitivity(top: TopTokens, thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """Counts and shares of the classes by rule and threshold; `left_out` items have no class."""
    rows = []
    for rule in ("winner", "any"):
        for threshold in (0.0, *thresholds) if rule == "winner" else thresholds:
            found = classes_at(top, rule, threshold)
            counts = {name: int((found == name).sum()) for name in BEHAVIOURS}
            total = sum(counts.values())
            shares = {name: value / max(1, total) for name, value in counts.items()}
            left_out = len(found) - total
            rows.append(
                {"rule": rule, "threshold": threshold, "n": total, "left_out": left_out,
                 "counts": counts, "shares": shares}
            )  # fmt: skip
    return rows
