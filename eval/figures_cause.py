"""Figures of single items, of the languages in the layers, and of the interventions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from eval.chart_style import BEHAVIOUR_COLORS, Palette
from eval.charts import (
    Axis,
    BarChart,
    BarPanel,
    MatrixChart,
    MatrixPanel,
    Panel,
    Series,
    Stack,
    XYChart,
)
from eval.report_data import RunKey, records
from eval.report_text import hover, interval, percent, plural, visible

Record = Mapping[str, Any]
CONDITIONS = {
    "pivots": "the pair's pivots",
    "random": "random directions",
    "other": "another pair's pivots",
}
CELL_CHARACTERS = 9
MAX_LAYERS = 16


def heatmap_figure(rows: pd.DataFrame, behaviour: str) -> MatrixChart | None:
    """One item: the most probable token of each layer at each of the prompt's last positions.

    The last block is on top. Of deep models every second (third, ...) layer, with the last one.
    """
    if rows.empty:
        return None
    first = rows.iloc[0]
    positions = sorted(rows["position"].unique())
    layers = sorted(rows["layer"].unique(), reverse=True)
    layers = layers[:: math.ceil(len(layers) / MAX_LAYERS)]
    cells = {(int(row["layer"]), int(row["position"])): row for row in records(rows)}
    grid = [[cells[int(layer), int(place)] for place in positions] for layer in layers]
    return MatrixChart(
        name=f"heatmap-{behaviour}",
        alt=f"Most probable token by layer and position, an item with {behaviour} behaviour",
        rows=tuple(str(layer) for layer in layers),
        columns=tuple(_shown(cell["token"]) for cell in grid[0]),
        row_label="layer",
        column_label="token of the prompt; the last one predicts the answer",
        panels=(
            MatrixPanel(
                f"{first['source']} \u2192 {first['target']}: {behaviour}",
                [[float(cell["top_prob"]) for cell in row] for row in grid],
                [[visible(_shown(c["top_token"]), CELL_CHARACTERS) for c in r] for r in grid],
                [[_cell_hover(cell) for cell in row] for row in grid],
            ),
        ),
        limits=(0.0, 1.0),
        beside=1,
    )


def _shown(token: Any) -> str:
    """A token without the space before it; white space by itself as signs that can be seen."""
    text = str(token)
    return text.strip() or text.replace("\n", "\u21b5").replace(" ", "\u2423")


def _cell_hover(cell: Record) -> str:
    return hover(
        ("", f"{_shown(cell['token'])}, layer {cell['layer']}"),
        ("most probable", _shown(cell["top_token"])),
        ("probability", percent(cell["top_prob"])),
        ("of the answer", percent(cell["p_answer"])),
    )


def languages_figure(
    summaries: Mapping[RunKey, Record], kind: str, languages: Iterable[str], palette: Palette
) -> XYChart | None:
    """Mass on each language over the layers, one panel a model.

    `kind` word: the concept's word in a language that is neither source nor target (the latent
    language of Wendler et al., 2024); vocabulary: all tokens of a language.
    """
    panels = []
    for (arm, seed), summary in summaries.items():
        curves = summary["curves"]["all"]
        layers = [float(layer) for layer in curves["layers"]]
        series = []
        for lang in languages:
            curve = curves.get(f"p_{kind}_{lang}")
            if curve is None or all(v is None for v in curve["mean"]):
                continue
            mean, low, high = (
                [math.nan if v is None else v for v in curve[k]] for k in ("mean", "low", "high")
            )
            texts = [
                hover(("", f"{lang}, layer {layer:.0f}"), ("mass", interval(m, lo, hi, 4)))
                for layer, m, lo, hi in zip(layers, mean, low, high, strict=True)
            ]
            known = not any(math.isnan(v) for v in (*low, *high))
            series.append(
                Series(lang, palette.languages[lang], layers, mean,
                       low=low if known else None, high=high if known else None, hover=texts)
            )  # fmt: skip
        if series:
            panels.append(Panel(f"{arm}/{seed}", tuple(series), note=plural(curves["n"], "item")))
    if not panels:
        return None
    names = {"word": "word of a third language", "vocabulary": "a language's tokens"}
    return XYChart(
        name=f"languages-{kind}",
        alt=f"Probability of {names[kind]} over the layers",
        panels=tuple(panels),
        x=Axis("layer", whole=True),
        y=Axis(f"probability of {names[kind]}"),
        columns=2,
        panel_height=1.9,
    )


def ablation_figure(interventions: Mapping[RunKey, Record]) -> BarChart | None:
    """Drop of the answer's probability by class and by what was removed, one panel a model."""
    classes = ("pivot", "direct")
    rows = tuple(f"{c}: {name}" for c in classes for name in CONDITIONS.values())
    panels = []
    for (arm, seed), summary in interventions.items():
        found = summary["ablation"]
        if not found["n"]:
            continue
        stacks = []
        for name in classes:
            own = [found[name]["drop"][condition] for condition in CONDITIONS]
            empty = [None] * len(own)
            shown = [*own, *empty] if name == classes[0] else [*empty, *own]
            stacks.append(
                Stack(
                    name, BEHAVIOUR_COLORS[name],
                    [_value(r) or 0.0 for r in shown],
                    [_drop_hover(row, r, found[name]["n"])
                     for row, r in zip(rows, shown, strict=True)],
                    low=[_value(r, "low") for r in shown],
                    high=[_value(r, "high") for r in shown],
                )
            )  # fmt: skip
        panels.append(BarPanel(f"{arm}/{seed}", tuple(stacks)))
    if not panels:
        return None
    return BarChart(
        name="ablation",
        alt="Drop of the answer's probability when directions are removed",
        rows=rows,
        panels=tuple(panels),
        axis=Axis("drop of P(answer)", limits=_common_limits(panels)),
    )


def _common_limits(panels: Sequence[BarPanel]) -> tuple[float, float]:
    """Around all bars and intervals, and 0: bars of different models are compared."""
    ends = [0.0]
    for panel in panels:
        for stack in panel.stacks:
            ends += [*stack.values, *(v for _, low, high in stack.intervals() for v in (low, high))]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _drop_hover(row: str, record: Record | None, n: int) -> str:
    if record is None or record["value"] is None:
        return ""
    low, high = (math.nan if record[k] is None else record[k] for k in ("low", "high"))
    return hover(("", row), ("drop", interval(record["value"], low, high)), ("items", n))


def _value(record: Record | None, key: str = "value") -> float | None:
    return None if record is None else record[key]


def patching_figure(interventions: Mapping[RunKey, Record], palette: Palette) -> XYChart | None:
    """How often the answer follows the donor, by the layer whose state was replaced."""
    panels = []
    for name in ("pivot", "direct"):
        series = []
        for (arm, seed), summary in interventions.items():
            rows = summary["patching"].get(name) or []
            found = [row["follows"] for row in rows]
            if not rows or any(record["value"] is None for record in found):
                continue
            layers = [float(row["layer"]) for row in rows]
            values = [[record[key] for record in found] for key in ("value", "low", "high")]
            known = all(v is not None for v in (*values[1], *values[2]))
            texts = [
                hover(("", f"{arm}/{seed}, layer {row['layer']}"),
                      ("follows", percent(row["follows"]["value"])), ("items", row["n"]))
                for row in rows
            ]  # fmt: skip
            series.append(
                Series(f"{arm}/{seed}", palette.arms[arm], layers, values[0],
                       low=values[1] if known else None, high=values[2] if known else None,
                       hover=texts)
            )  # fmt: skip
        if series:
            panels.append(Panel(f"{name} behaviour", tuple(series)))
    if not panels:
        return None
    return XYChart(
        name="patching",
        alt="Share of items whose answer follows the donor, by layer",
        panels=tuple(panels),
        x=Axis("layer whose state is replaced (0: none)", whole=True),
        y=Axis("share that follows the donor", limits=(-0.02, 1.02)),
        columns=2,
        panel_height=2.2,
    )
