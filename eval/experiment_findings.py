"""What is found by an experiment over the seeds of a generated world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.experiment_stats import Effect, Estimate, Verdict

PRIMARY = "p1c0"
CONTROL = "p0c0"
# (arm, reference): the first two are the primary endpoints.
CONTRASTS = (
    ("pivot", "random"),
    ("pivot", "broken-pivot"),
    ("oracle", "random"),
    ("oracle", "pivot"),
    ("broken-pivot", "random"),
    ("low-pivot", "random"),
    ("pivot", "random-twice"),
    ("random-twice", "random"),
)
PRIMARY_ARMS = ("random", "pivot", "broken-pivot")
CHANCE = 0.1
MEANINGS = {
    "p1c0": "held out: a pivot stands beside the word in every language, the words never together",
    "p0c0": "held out: neither (negative control)",
    "p1c1": "held out: a pivot, and documents that hold both words",
    "p0c1": "held out: documents that hold both words, no pivot",
    "train": "translated in the lists of every arm",
}


@dataclass(frozen=True)
class Doses:
    """What came of settings that were varied, one at a time, with the primary arms.

    `effects`: a row a dose and primary contrast: key, value (NaN where the setting is null), base
    (whether it is the experiment's own value), planted_share and pivot_rate (planted and mined
    pivots among the tokens of the pivot arm's documents, mean over seeds), and the fields of an
    Effect. `runs`: the same by seed: key, value, base, seed, planted_share, pivot_rate, reference,
    difference.
    """

    effects: pd.DataFrame
    runs: pd.DataFrame


@dataclass(frozen=True)
class Findings:
    """All that the page says.

    `estimates` by (measure, arm, cell); `primary`: the effects that the conclusion rests on;
    `runs`: seed -> folder of its chain.
    """

    arms: tuple[str, ...]
    cell_order: tuple[str, ...]
    runs: Mapping[int, Path]
    cells: pd.DataFrame
    estimates: Mapping[tuple[str, str, str], Estimate]
    effects: Sequence[Effect]
    primary: Sequence[Effect]
    verdict: Verdict
    conclusion: str
    layers: pd.DataFrame
    mining: pd.DataFrame
    ablations: pd.DataFrame
    doses: Doses
