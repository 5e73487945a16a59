"""The figures of single items and of the interventions."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest

from eval.chart_style import make_palette
from eval.charts import Axis, BarChart, BarPanel, MatrixChart, Stack
from eval.charts_interactive import describe
from eval.charts_static import draw
from eval.figures_cause import ablation_figure, heatmap_figure, languages_figure

RECORD = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 5}


def heatmap_rows(n_layers: int, tokens: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"source": "eau", "target": "水", "behaviour": "pivot", "layer": layer,
             "position": k + 1 - len(tokens), "token": token, "top_token": f" t{layer}",
             "top_prob": layer / n_layers, "p_answer": 0.1}
            for layer in range(1, n_layers + 1)
            for k, token in enumerate(tokens)
        ]
    )  # fmt: skip


def test_heatmap_has_the_last_layer_on_top_and_shows_white_space() -> None:
    chart = heatmap_figure(heatmap_rows(3, (" eau", "\n", " ", "水")), "pivot")
    assert isinstance(chart, MatrixChart)
    assert chart.rows == ("3", "2", "1")
    assert chart.columns == ("eau", "↵", "␣", "水")
    assert chart.panels[0].text[0] == ["t3"] * 4
    assert chart.panels[0].values[2] == [pytest.approx(1 / 3)] * 4
    assert heatmap_figure(heatmap_rows(3, ("a",))[:0], "pivot") is None


def test_deep_models_show_some_layers_and_the_last() -> None:
    chart = heatmap_figure(heatmap_rows(40, ("a", "b")), "pivot")
    assert chart is not None
    assert len(chart.rows) <= 16
    assert chart.rows[0] == "40"


def test_bars_carry_their_intervals_in_both_renderers() -> None:
    stack = Stack("pivot", "#d1495b", [0.2, 0.0], low=[0.1, None], high=[0.3, None])
    assert stack.intervals() == [(0, 0.1, 0.3)]
    panel = BarPanel("model", (stack,))
    chart = BarChart("bars", "bars", ("a", "b"), (panel,), Axis("drop"))
    lines = draw(chart).axes[0].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[0.1, 0.3]]
    traces = go.Figure(describe(chart)).data
    assert [list(t.x) for t in traces if t.type == "scatter"] == [[0.1, 0.3]]


def ablation(n: int) -> dict:
    conditions = ("pivots", "random", "other")
    entry = {"n": n, "drop": dict.fromkeys(conditions, RECORD)}
    return {"ablation": {"n": n, "pivot": entry, "direct": entry}}


def test_ablation_bars_by_class_on_one_scale() -> None:
    wide = ablation(5)
    wide["ablation"]["pivot"]["drop"]["other"] = {**RECORD, "low": -0.4}
    chart = ablation_figure({("pivot", 0): wide, ("random", 0): ablation(5)})
    assert chart is not None
    assert [row.split(":")[0] for row in chart.rows] == ["pivot"] * 3 + ["direct"] * 3
    assert chart.axis.limits == pytest.approx((-0.435, 0.335))
    first, second = chart.panels[0].stacks
    assert [row for row, _, _ in first.intervals()] == [0, 1, 2]
    assert [row for row, _, _ in second.intervals()] == [3, 4, 5]
    assert ablation_figure({("pivot", 0): {"ablation": {"n": 0}}}) is None


def test_languages_without_items_are_left_out() -> None:
    known = {"mean": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]}
    nothing = {"mean": [None, None], "low": [None, None], "high": [None, None]}
    curves = {"n": 4, "layers": [1, 2], "p_word_en": known, "p_word_fr": nothing}
    palette = make_palette(["pivot"], ["en", "fr"])
    summaries = {("pivot", 0): {"curves": {"all": curves}}}
    chart = languages_figure(summaries, "word", ["en", "fr"], palette)
    assert chart is not None
    assert [series.name for series in chart.panels[0].series] == ["en"]
    assert languages_figure(summaries, "vocabulary", ["en", "fr"], palette) is None
