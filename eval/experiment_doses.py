"""Dose and response: the primary effects against a setting, and against the pivots in the mix."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from eval.charts import Axis, Panel, Series, XYChart
from eval.experiment_findings import CONTRASTS, PRIMARY, PRIMARY_ARMS, Doses, Findings
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import (
    Estimate,
    SeedRun,
    differences,
    effect,
    estimate,
    in_points,
    read_cells,
)
from eval.experiment_tables import shown
from eval.report_figures import FigureWriter
from eval.report_page import Block, Cell, Column, Note, Section, Table
from eval.report_text import NONE, hover, percent, points
from mining.common.files import read_json

Varied = Mapping[tuple[str, float], Sequence[SeedRun]]

COLORS = {"random": "#0072b2", "broken-pivot": "#cc79a7"}
KEY_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e0a100", "#56b4e9")
# What the pivot arm's documents hold; the names of columns.
RATES = {
    "pivot_rate": "mined pivots among the tokens of the pivot arm's documents",
    "planted_share": "planted pivots among the tokens of the pivot arm's documents",
}
SHORT = {"pivot_rate": "mined pivots, of tokens", "planted_share": "planted pivots, of tokens"}
COLUMNS = (
    "key", "value", "base", *RATES, "arm", "reference", "cell", "measure", "difference", "low",
    "high", "sd", "n_seeds", "n_positive", "d", "p", "seeds_needed",
)  # fmt: skip
RUN_COLUMNS = ("key", "value", "base", "seed", *RATES, "reference", "difference")


def find_doses(settings: ExperimentSettings, varied: Varied, base: Sequence[SeedRun]) -> Doses:
    """The primary effects at every dose; `varied` as in eval.experiment.run_experiment."""
    effects, by_run = [], []
    for (key, value), runs in varied.items():
        at: dict[str, Any] = {"key": key, "value": value, "base": list(runs) == list(base)}
        cells = read_cells(
            {k: path for run in runs for k, path in run.folders("evaluate", PRIMARY_ARMS).items()}
        )
        rates = pd.DataFrame([{"seed": run.seed, **_rates(run)} for run in runs])
        for arm, reference in CONTRASTS[:2]:
            gaps = differences(cells, arm, reference, PRIMARY, "accuracy")
            found = effect(
                cells, arm, reference, PRIMARY, "accuracy", settings.confidence, settings.power
            )
            means = {name: float(rates[name].mean()) for name in RATES}
            effects.append({**at, **means, **found.record()})
            by_run += [
                {**at, **row, "reference": reference, "difference": gaps[row["seed"]]}
                for row in rates.to_dict("records")
                if row["seed"] in gaps
            ]
    return Doses(
        pd.DataFrame(effects, columns=list(COLUMNS)),
        pd.DataFrame(by_run, columns=list(RUN_COLUMNS)),
    )


def _rates(run: SeedRun) -> dict[str, float]:
    arm = read_json(run.root / "mix" / "arms.json")["arms"]["pivot"]
    languages = arm["languages"].values()
    mined = sum(part["tokens"] * part["mean_proportion"] for part in languages)
    tokens = sum(part["tokens"] for part in languages)
    return {"pivot_rate": mined / tokens, "planted_share": arm["planted_share"]}


def dose_sections(
    found: Findings, settings: ExperimentSettings, figures: FigureWriter
) -> tuple[Section, ...]:
    """The section on doses; none where nothing was varied."""
    doses = found.doses
    if doses.effects.empty:
        return ()
    share = percent(settings.confidence, 0)
    caption = f"The primary differences in cell {PRIMARY} with {share} intervals over seeds."
    blocks: list[Block] = [figures.figure(chart, caption) for chart in value_figures(doses)]
    blocks += [
        figures.figure(
            chart,
            f"The same against what was selected. Large points: a dose, mean over its seeds; small "
            f"ones: a seed. The {label} change with every setting that is varied.",
        )
        for chart, label in ((rate_figure(doses, name), label) for name, label in RATES.items())
    ]
    blocks += [*_notes(doses, settings), _table(doses)]
    return (
        Section(
            id="doses",
            title="Dose and response",
            reads="One setting varied at a time. If pivots do the work, more of them help more.",
            limits="The fewer the seeds, the wider the bands. A setting changes more than the one "
            "thing that it is named for: a larger budget also takes poorer documents.",
            blocks=tuple(blocks),
        ),
    )


def value_figures(doses: Doses) -> Iterator[XYChart]:
    """The primary effects against the setting's value, one figure a varied setting."""
    known = doses.effects[doses.effects["value"].notna()]
    for key, part in known.groupby("key", sort=False):
        series = []
        for reference, color in COLORS.items():
            line = part[part["reference"] == reference].sort_values("value")
            x, y, low, high = (
                line[name].astype(float).tolist() for name in ("value", "difference", "low", "high")
            )
            name = f"pivot minus {reference}"
            series.append(Series(name, color, x, y, low=low, high=high))
            # The doses themselves: the line between them is no measurement.
            series.append(Series(name, color, x, y, mode="points", legend=False))
        yield XYChart(
            f"dose-{key}",
            f"Differences in accuracy against {key}",
            (Panel("", tuple(series)),),
            Axis(str(key)),
            Axis("difference in accuracy", percent=True),
            columns=1,
            panel_height=3.0,
        )


def rate_figure(doses: Doses, rate: str) -> XYChart:
    """The primary effects of all doses and seeds against a column of RATES."""
    panels = []
    for reference in COLORS:
        series = []
        for name, color, means, runs in _groups(doses, reference):
            series.append(
                Series(
                    name, color, means[rate].tolist(), means["difference"].astype(float).tolist(),
                    mode="points", size=8.0, hover=[_hover(row) for row in means.to_dict("records")]
                )
            )  # fmt: skip
            series.append(
                Series(
                    name, color, runs[rate].tolist(), runs["difference"].tolist(), mode="points",
                    size=3.5, opacity=0.45, legend=False,
                )
            )  # fmt: skip
        panels.append(Panel(f"pivot minus {reference}", tuple(series)))
    return XYChart(
        f"dose-{rate.replace('_', '-')}",
        f"Differences in accuracy against the {RATES[rate]}",
        tuple(panels),
        Axis(SHORT[rate], percent=True),
        Axis("difference in accuracy", percent=True),
        panel_height=3.2,
    )


def _groups(doses: Doses, reference: str) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """(name, colour, doses, their runs) of each varied setting, and of the base, which is once."""
    effects, runs = (
        table[table["reference"] == reference] for table in (doses.effects, doses.runs)
    )
    keys = list(dict.fromkeys(effects["key"]))
    is_base, run_is_base = effects["base"].astype(bool), runs["base"].astype(bool)
    yield (
        "as set", "#000000", effects[is_base & (effects["key"] == keys[0])],
        runs[run_is_base & (runs["key"] == keys[0])],
    )  # fmt: skip
    for i, key in enumerate(keys):
        yield (
            str(key), KEY_COLORS[i % len(KEY_COLORS)], effects[~is_base & (effects["key"] == key)],
            runs[~run_is_base & (runs["key"] == key)],
        )  # fmt: skip


def _hover(row: Mapping[Hashable, Any]) -> str:
    return hover(
        ("", f"{row['key']} {_value(row['value'])}"),
        ("planted share", percent(row["planted_share"])),
        ("difference", points(row["difference"])),
        ("seeds", row["n_seeds"]),
    )


def _value(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:,.10g}"


def _notes(doses: Doses, settings: ExperimentSettings) -> Iterator[Note]:
    """A sentence a setting: what its largest value does beyond its smallest, paired over seeds."""
    for key, part in doses.runs[doses.runs["value"].notna()].groupby("key", sort=False):
        low, high = part["value"].min(), part["value"].max()
        if low == high:
            continue
        texts = []
        for reference in COLORS:
            own = part[part["reference"] == reference]
            ends = [own[own["value"] == v].set_index("seed")["difference"] for v in (high, low)]
            change = estimate((ends[0] - ends[1]).dropna().to_numpy(), settings.confidence)
            texts.append(f"pivot minus {reference} by {in_points(change)}")
        yield Note(
            f"From {key} {_value(low)} to {_value(high)} the primary differences change: "
            + ", ".join(texts)
            + "."
        )


def _table(doses: Doses) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            row["key"], _value(row["value"]), percent(row["pivot_rate"]),
            percent(row["planted_share"]), f"{row['arm']} minus {row['reference']}",
            shown(
                Estimate(row["difference"], row["low"], row["high"], row["sd"], row["n_seeds"]),
                True,
            ),
        )
        for row in doses.effects.to_dict("records")
    ]  # fmt: skip
    columns = (
        Column("setting"), Column("value", "num"), Column("mined pivots", "num"),
        Column("planted pivots", "num"), Column("arms"), Column("difference in accuracy", "num"),
    )  # fmt: skip
    return Table(
        f"All doses; pivots are shares of the tokens of the pivot arm's documents. {NONE}: the "
        "setting is null.",
        columns,
        tuple(rows),
        tall=len(rows) > 24,
    )
