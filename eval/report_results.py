"""All statistics of a run, computed once for every section that shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eval.attribute import observations
from eval.behaviour import DIRECT, PIVOT
from eval.report_answer import (
    Comparison,
    Directions,
    Estimate,
    LayerCurves,
    auc_by_direction,
    chance,
    correlation,
    cube,
    directions_of,
    estimate,
    layer_curves,
    paired,
    seed_means,
    translated,
    two_variable_fit,
    usable,
)
from eval.report_data import RunData, records
from eval.report_settings import ReportSettings
from eval.stats import Bootstrap
from mining.common.logs import progress

PREDICTORS = {
    "both words": "pair",
    "source word": "source",
    "target word": "target",
}


@dataclass(frozen=True)
class Results:
    """Numbers by arm; `differences` are the arms' scores minus the baseline's, paired by item.

    `curves` are those of the trace by arm and by class (direct, pivot), where it has items.
    """

    directions: Directions
    items: pd.DataFrame
    n_unscored: int
    scores: dict[str, Comparison]
    accuracies: dict[str, Comparison]
    reciprocal_ranks: dict[str, Comparison]
    differences: dict[str, Comparison]
    accuracy_differences: dict[str, Comparison]
    seed_scores: dict[str, dict[int, float]]
    seed_differences: dict[int, float]
    groups: dict[str, dict[str, Comparison]]
    chance: float
    attributed: pd.DataFrame
    aucs: dict[str, dict[str, Comparison]]
    correlations: dict[str, dict[str, Estimate]]
    fits: dict[str, dict[str, Estimate]]
    curves: dict[str, dict[str, LayerCurves]]

    def difference(self, arm: str) -> Estimate:
        """Score of `arm` minus that of the baseline; NaN where one of them was not evaluated."""
        if arm in self.differences:
            return self.differences[arm].overall
        return Estimate(math.nan, math.nan, math.nan, 0)


def compute(data: RunData, settings: ReportSettings, seed: int) -> Results:
    """Scores, differences, AUCs, correlations and fits of every arm."""
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    everything = data.evaluation
    items = usable(everything)
    places = [f for f in (items, data.traces, data.attribution) if len(f)]
    directions = directions_of(pd.concat(places), data.languages) if places else []
    parts = by_arm(items, data.arms)
    arms = list(parts)
    scores = {arm: cube(part, "score", directions) for arm, part in parts.items()}
    hits = {arm: cube(part, "correct", directions) for arm, part in parts.items()}
    ranks = {
        arm: cube(part.assign(reciprocal=1 / part["rank"]), "reciprocal", directions)
        for arm, part in parts.items()
    }
    base = settings.baseline
    others = [arm for arm in arms if arm != base] if base in arms else []
    pairs = {arm: paired(scores[arm], scores[base]) for arm in others}
    attributed = translated(data.attribution)
    observed = {
        arm: observations(records(part), part["seed"].tolist())
        for arm, part in by_arm(attributed, data.arms).items()
    }
    predictors = PREDICTORS if observed else {}
    statistics: dict[str, Callable[[], Any]] = {
        "scores": lambda: {arm: estimate(one, bootstrap) for arm, one in scores.items()},
        "accuracies": lambda: {arm: estimate(one, bootstrap) for arm, one in hits.items()},
        "reciprocal_ranks": lambda: {arm: estimate(one, bootstrap) for arm, one in ranks.items()},
        "differences": lambda: {arm: estimate(one, bootstrap) for arm, one in pairs.items()},
        "accuracy_differences": lambda: {
            arm: estimate(paired(hits[arm], hits[base]), bootstrap) for arm in others
        },
        "groups": lambda: _groups(parts, directions, bootstrap),
        "aucs": lambda: {
            name: {
                arm: auc_by_direction(part, predictor, directions, bootstrap)
                for arm, part in observed.items()
            }
            for name, predictor in predictors.items()
        },
        "correlations": lambda: {
            arm: {
                name: correlation(part, predictor, bootstrap)
                for name, predictor in predictors.items()
            }
            for arm, part in observed.items()
        },
        "fits": lambda: {arm: two_variable_fit(part, bootstrap) for arm, part in observed.items()},
        "curves": lambda: {
            arm: {
                str(behaviour): layer_curves(rows, bootstrap)
                for behaviour, rows in part.groupby("behaviour")
                if behaviour in (DIRECT, PIVOT)
            }
            for arm, part in by_arm(data.layers, data.arms).items()
        },
    }
    found: dict[str, Any] = {}
    with progress("report: intervals", len(statistics), "statistics") as ticker:
        for name, statistic in statistics.items():
            found[name] = statistic()
            ticker.advance()
    return Results(
        directions=directions,
        items=items,
        n_unscored=len(everything) - len(items),
        seed_scores={arm: seed_means(one) for arm, one in scores.items()},
        seed_differences=seed_means(pairs[settings.candidate])
        if settings.candidate in pairs
        else {},
        chance=chance(items),
        attributed=attributed,
        **found,
    )


def _groups(
    parts: dict[str, pd.DataFrame], directions: Directions, bootstrap: Bootstrap
) -> dict[str, dict[str, Comparison]]:
    names = sorted({
        str(name)
        for part in parts.values()
        if "group" in part
        for name in part["group"].dropna().unique()
        if name
    })  # fmt: skip
    return {
        name: {
            arm: estimate(cube(part[part["group"] == name], "score", directions), bootstrap)
            for arm, part in parts.items()
            if (part["group"] == name).any()
        }
        for name in names
    }


def by_arm(items: pd.DataFrame, arms: list[str]) -> dict[str, pd.DataFrame]:
    """The items of each arm that has any."""
    if items.empty:
        return {}
    return {arm: items[items["arm"] == arm] for arm in arms if (items["arm"] == arm).any()}
