"""The parts of the report that compute: texts, statistics, readers, colours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from eval.attribute import observations
from eval.chart_style import make_palette
from eval.charts import (
    Axis,
    DotChart,
    DotPanel,
    DotSeries,
    Panel,
    Series,
    XYChart,
    dot_limits,
    whole_ticks,
)
from eval.charts_interactive import describe
from eval.charts_static import draw, encode
from eval.figures_mixes import mix_figure
from eval.figures_scores import HISTOGRAM_BARS, proportion_bars, sources_figure
from eval.figures_trace import layers_figure
from eval.report_answer import (
    Estimate,
    auc_by_direction,
    correlation,
    cube,
    directions_of,
    estimate,
    layer_curves,
    paired,
    two_variable_fit,
    usable,
    verdict,
)
from eval.report_data import Proportions, read_proportions, records
from eval.report_lineage import changed_settings
from eval.report_page import Answer, Column, Page, Section, Table, render
from eval.report_text import (
    count,
    interval,
    listing,
    number,
    percent,
    plotly_text,
    script_json,
    short_count,
    signed,
    visible,
)
from eval.stats import Bootstrap
from mining.common.shards import write_table

BOOTSTRAP = Bootstrap(200, 0.95, 0)


@given(st.text())
def test_script_json_cannot_end_its_element_and_says_the_same(text):
    made = str(script_json({"text": text}))
    assert not set("<>&\u2028\u2029") & set(made)
    assert json.loads(made) == {"text": text}


@given(st.text())
def test_plotly_text_has_no_markup_of_strangers(text):
    shown = plotly_text(text, 1000)
    assert "<" not in shown
    assert ">" not in shown
    assert "$" not in shown
    assert not re.search(r"&(?!amp;|lt;|gt;|#36;)", shown)


@given(st.text(max_size=200))
def test_visible_text_is_short_and_printable(text):
    shown = visible(text, 20)
    assert len(shown) <= 20 * 8 + 1
    assert not any(ord(char) < 32 or 0x202A <= ord(char) <= 0x202E for char in shown)


def test_numbers():
    assert number(-0.0004) == "\u22120.00040"
    assert number(-0.0004, scale=0.2) == "0.000"
    assert number(1.24e-6) == "1.2e\u22126"
    assert number(-9.96e-7) == "\u22121.0e\u22126"
    assert number(1e-17) == number(0.0) == signed(-0.0) == "0.000"
    assert signed(1.24e-6) == "+1.2e\u22126"
    assert signed(None) == "\u2013"
    assert interval(2e-6, -1.5e-7, 3e-6) == "2.0e\u22126 [\u22120.1e\u22126, 3.0e\u22126]"
    assert interval(0.2, -0.0004, 0.4) == "0.200 [0.000, 0.400]"
    assert number(-0.5, 1) == "\u22120.5"
    assert number(float("nan")) == number(None) == "\u2013"
    assert signed(0.5, 1) == "+0.5"
    assert signed(-0.5, 1) == "\u22120.5"
    assert percent(0.1234) == "12.3%"
    assert (percent(-0.1234), percent(-0.0001)) == ("\u221212.3%", "0.0%")
    assert count(1234567) == "1,234,567"
    assert short_count(25_200_000) == "25.2 M"
    assert short_count(22_500) == "22,500"
    assert interval(0.5, 0.4, 0.6, 1) == "0.5 [0.4, 0.6]"
    assert listing(["a", "b", "c"]) == "a, b and c"


def make_items(scores: dict[tuple[str, str, str], float], seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame([
        {"concept": c, "source_lang": a, "target_lang": b, "seed": seed, "score": score,
         "source": "x", "target": "y"}
        for (c, a, b), score in scores.items()
    ])  # fmt: skip


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_paired_differences_are_means_of_direction_means(seed):
    rng = np.random.default_rng(seed)
    keys = [(f"c{i}", a, b) for i in range(6) for a, b in (("en", "fr"), ("fr", "en"))]
    keys = [key for key in keys if rng.random() < 0.8] or keys
    first = {key: float(rng.normal()) for key in keys}
    second = {key: float(rng.normal()) for key in keys if rng.random() < 0.9} or first
    pairs = directions_of(make_items(first), ["en", "fr"])
    found = estimate(
        paired(
            cube(make_items(first), "score", pairs),
            cube(make_items(second), "score", pairs),
        ),
        BOOTSTRAP,
    )
    shared = [key for key in first if key in second]
    means = []
    for a, b in pairs:
        values = [first[k] - second[k] for k in shared if k[1:] == (a, b)]
        if values:
            means.append(np.mean(values))
            assert found.directions[(a, b)].value == pytest.approx(means[-1])
            assert found.directions[(a, b)].n == len(values)
    if means:
        assert found.overall.value == pytest.approx(np.mean(means))
        assert found.overall.low <= found.overall.high


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    keys = [(f"c{i}", "en", "fr") for i in range(40)]
    one = {key: float(rng.normal(0, 0.05)) for key in keys}
    apart = pd.concat([
        make_items({k: v + shift for k, v in one.items()}, seed)
        for seed, shift in ((0, -0.5), (1, 0.0), (2, 0.5))
    ])  # fmt: skip
    pairs = directions_of(apart, ["en", "fr"])
    alone = estimate(cube(make_items(one), "score", pairs), BOOTSTRAP).overall
    together = estimate(cube(apart, "score", pairs), BOOTSTRAP).overall
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 5 * (alone.high - alone.low)


def test_verdicts():
    assert verdict(Estimate(0.2, 0.1, 0.3, 5)) == "better"
    assert verdict(Estimate(-0.2, -0.3, -0.1, 5)) == "worse"
    assert verdict(Estimate(0.1, -0.1, 0.3, 5)) == "open"
    assert verdict(Estimate(0.1, float("nan"), float("nan"), 1)) == "unknown"


def test_usable_leaves_out_equal_words_and_unscored_items():
    items = make_items({("a", "en", "fr"): 1.0, ("b", "en", "fr"): np.nan, ("c", "en", "fr"): 2.0})
    items.loc[items["concept"] == "c", "target"] = "x"
    assert list(usable(items)["concept"]) == ["a"]


def test_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    n = 120
    items = pd.DataFrame({
        "concept": [f"c{i % 30}" for i in range(n)],
        "source_lang": ["en" if i % 2 else "fr" for i in range(n)],
        "target_lang": ["fr" if i % 2 else "en" for i in range(n)],
        "behaviour": rng.choice(["direct", "pivot", "none"], n),
        "log_pair": np.log1p(rng.poisson(2, n)), "log_source": 1.0, "log_target": 1.0,
        "score": rng.normal(size=n), "pivot_contribution": rng.normal(size=n),
    })  # fmt: skip
    pairs = directions_of(items, ["en", "fr"])
    found = auc_by_direction(observations(records(items)), "pair", pairs, BOOTSTRAP)
    expected = []
    for pair in pairs:
        part = items[(items["source_lang"] == pair[0]) & (items["behaviour"] != "none")]
        expected.append(roc_auc_score(part["behaviour"] == "direct", part["log_pair"]))
        assert found.directions[pair].value == pytest.approx(expected[-1])
    assert found.overall.value == pytest.approx(np.mean(expected))


def test_correlation_and_fit_set_items_aside_whose_words_share_a_token():
    rng = np.random.default_rng(5)
    n = 90
    items = pd.DataFrame({
        "concept": [f"c{i % 30}" for i in range(n)], "source_lang": "en", "target_lang": "fr",
        "behaviour": rng.choice(["direct", "pivot", "none"], n), "log_pair": rng.random(n),
        "log_source": rng.random(n), "log_target": 1.0, "pivot_contribution": rng.random(n),
        "score": rng.normal(size=n),
    })  # fmt: skip
    items.loc[items["behaviour"] == "none", "score"] = 100 * items["log_pair"]
    data, part = observations(records(items)), items[items["behaviour"] != "none"]
    found = correlation(data, "source", BOOTSTRAP)
    assert found.n == len(part)
    assert found.value == pytest.approx(part["log_source"].corr(part["score"]))
    assert np.isnan(correlation(data, "target", BOOTSTRAP).value)
    design = np.column_stack([part["log_pair"], part["pivot_contribution"], np.ones(len(part))])
    expected = np.linalg.lstsq(design, part["score"].to_numpy(), rcond=None)[0]
    fit = two_variable_fit(data, BOOTSTRAP)
    assert [fit[k].value for k in ("direct", "pivot", "constant")] == pytest.approx(list(expected))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_proportions_do_not_depend_on_the_shards(tmp_path_factory, seed, shards):
    rng = np.random.default_rng(seed)
    n = 60
    tokens = rng.integers(1, 200, n)
    pivots = (tokens * rng.random(n)).astype(int)
    frame = pd.DataFrame({
        "id": [f"d{i}" for i in range(n)], "lang": rng.choice(["en", "ja"], n),
        "source": rng.choice(["a", "b"], n), "n_tokens": tokens, "n_pivots": pivots,
        "proportion": pivots / tokens,
    })  # fmt: skip
    folder = tmp_path_factory.mktemp("score")
    for k, rows in enumerate(np.array_split(np.arange(n), shards)):
        table = pa.Table.from_pandas(frame.iloc[rows], preserve_index=False)
        write_table(folder / "scores" / f"{k:05d}.parquet", table)
    found = read_proportions(folder, 3, 50)
    sums = frame.groupby(["lang", "source"])[["n_tokens", "n_pivots"]].sum()
    for row in found.by_source.itertuples():
        assert (row.tokens, row.pivots) == tuple(sums.loc[(row.lang, row.source)])
    for lang, part in frame.groupby("lang"):
        assert found.histogram[lang].sum() == len(part)
        assert found.quantile(lang, 0.5) == pytest.approx(
            np.quantile(part["proportion"], 0.5, method="inverted_cdf"), abs=0.0001
        )
        order = ["proportion", "n_tokens", "id"]
        long = part[part["n_tokens"] >= 50].sort_values(order, ascending=False)
        assert [row[2] for row in found.richest[lang]] == list(long["id"][:3])


def proportions_of(folder: Path, n_tokens: list[int], n_pivots: list[int]) -> Proportions:
    n = len(n_tokens)
    frame = pd.DataFrame({
        "id": [f"d{i}" for i in range(n)], "lang": "en", "source": "a", "n_tokens": n_tokens,
        "n_pivots": n_pivots, "proportion": np.array(n_pivots) / np.array(n_tokens),
    })  # fmt: skip
    table = pa.Table.from_pandas(frame, preserve_index=False)
    write_table(folder / "scores" / "00000.parquet", table)
    return read_proportions(folder, 3, 50)


def test_the_median_of_documents_without_pivots_is_zero(tmp_path):
    found = proportions_of(tmp_path, [64] * 10, [0] * 6 + [64] * 4)
    assert found.quantile("en", 0.5) == 0.0
    assert found.quantile("en", 0.9) == 1.0
    quarter = proportions_of(tmp_path / "other", [64] * 3, [16] * 3)
    assert quarter.quantile("en", 0.5) == 0.25


def test_boxes_of_the_largest_sources_hold_the_quantiles(tmp_path):
    rng = np.random.default_rng(0)
    n = 2000
    tokens = rng.integers(50, 90, n)
    pivots = (tokens * rng.random(n) ** 2).astype(int)
    names = np.array([f"s{k:02d}" for k in np.minimum(rng.geometric(0.15, n), 16)])
    frame = pd.DataFrame({
        "id": [f"d{i}" for i in range(n)], "lang": np.where(names == "s01", "fr", "en"),
        "source": names, "n_tokens": tokens, "n_pivots": pivots, "proportion": pivots / tokens,
    })  # fmt: skip
    for k, rows in enumerate(np.array_split(np.arange(n), 3)):
        table = pa.Table.from_pandas(frame.iloc[rows], preserve_index=False)
        write_table(tmp_path / "scores" / f"{k:05d}.parquet", table)
    found = read_proportions(tmp_path, 3, 50)
    totals = frame.groupby("source")["n_tokens"].sum().sort_values(ascending=False)
    assert list(found.sources) == list(totals.index[:12])
    chart = sources_figure(found, ["en", "fr"], make_palette([], ["en", "fr"]))
    assert chart is not None
    for series in chart.series:
        for source, box in zip(chart.rows, series.boxes, strict=True):
            part = frame[(frame["source"] == source) & (frame["lang"] == series.name)]
            assert (box is None) == part.empty
            if box is not None:
                expected = np.quantile(
                    part["proportion"], [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf"
                )
                assert list(vars(box).values()) == pytest.approx(expected, abs=0.0001)
    spec = go.Figure(describe(chart)).to_dict()
    medians = [x for trace in spec["data"] if trace["type"] == "box" for x in trace["median"]]
    assert len(medians) == 12
    assert encode(draw(chart), "svg").startswith(b"<?xml")


def test_short_documents_of_one_length_make_no_comb(tmp_path):
    pivots = [k for k in range(20) for _ in range(200 - 10 * k)]
    found = proportions_of(tmp_path, [64] * len(pivots), pivots)
    for top in (0.3, 0.15, 1.0):
        edges, share = proportion_bars(found, "en", top)
        held = share[: np.searchsorted(edges, 19 / 64)]
        assert len(held) <= HISTOGRAM_BARS
        assert (held > 0).all()
        assert (np.diff(held) <= 0).all()
        within = np.array(pivots) / 64 < edges[-1]
        assert share.sum() == pytest.approx(within.mean())
    full = proportions_of(tmp_path / "full", [64] * 4, [64] * 4)
    assert proportion_bars(full, "en", 1.0)[1].sum() == 1.0


def test_colours_are_fixed_by_name():
    whole = make_palette(["original", "random", "pivot"], ["en", "fr"])
    part = make_palette(["pivot", "mine"], ["fr", "xx"])
    assert part.arms["pivot"] == whole.arms["pivot"]
    assert part.languages["fr"] == whole.languages["fr"]
    assert len(set(part.arms.values()) | set(part.languages.values())) == 4


def test_tokens_are_no_formulas_in_static_figures():
    series = Series("a $\\frac{1}$ b", "#000000", [1.0, 2.0], [1.0, 2.0], mode="points",
                    labels={0: "$\\bad{$", 1: "\x00<&>"})  # fmt: skip
    other = Series("漢字", "#111111", [1.0], [2.0], mode="points")
    chart = XYChart("x", "x", (Panel("$y$", (series, other)),), Axis("x"), Axis("y"), columns=1)
    assert encode(draw(chart), "png") == encode(draw(chart), "png")
    svg = encode(draw(chart), "svg")
    assert svg == encode(draw(chart), "svg")
    assert b"<dc:date>" not in svg


def test_dot_limits_hold_intervals_and_reference():
    panel = DotPanel("", Axis("x"), (DotSeries("a", "#000000", [0.2], [0.1], [0.3]),), 0.0)
    low, high = dot_limits(panel)
    assert low < 0.0 < 0.3 < high


def layer_chart(layers: list[float]) -> XYChart:
    series = Series("a", "#000000", layers, [0.1] * len(layers))
    return XYChart("x", "x", (Panel("", (series,)),), Axis("layer", whole=True), Axis("y"))


@pytest.mark.parametrize(
    ("last", "ticks"),
    [(1, [1]), (3, [1, 2, 3]), (12, [2, 4, 6, 8, 10, 12]), (32, [5, 10, 15, 20, 25, 30])],
)
def test_axes_that_count_show_each_whole_number_once(last, ticks):
    chart = layer_chart([float(k) for k in range(1, last + 1)])
    assert whole_ticks(chart) == ticks
    assert describe(chart)["layout"]["xaxis"]["tickvals"] == ticks
    figure = draw(chart)
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    shown = [label.get_text() for label in axes.get_xticklabels()]
    places = axes.get_xticks()
    assert [s for s, x in zip(shown, places, strict=True) if low <= x <= high] == [
        str(tick) for tick in ticks
    ]


def test_a_mix_without_any_pivot_is_drawn_at_zero():
    arms = {
        arm: {"languages": {"en": {"tokens": 10, "mean_proportion": mean}}}
        for arm, mean in (("random", 0.1), ("low-pivot", 0.0), ("pivot", None))
    }
    names = ["random", "low-pivot", "pivot"]
    chart = mix_figure({"arms": arms}, names, make_palette(names, ["en"]))
    values = [series.values[0] for series in chart.panels[0].series]
    assert values[:2] == [0.1, 0.0]
    assert np.isnan(values[2])


def layer_rows(values: np.ndarray) -> pd.DataFrame:
    """Rows of one class: `values` [seed, concept, direction, layer] of p_source."""
    return pd.DataFrame([
        {"seed": seed, "concept": f"c{c}", "target_lang": f"l{k}", "layer": layer + 1,
         "p_source": value, "p_pivot": np.nan, "p_target": 0.2}
        for (seed, c, k, layer), value in np.ndenumerate(values)
    ])  # fmt: skip


def test_curves_are_means_over_concepts_with_intervals_of_the_level():
    rng = np.random.default_rng(0)
    values = rng.random((2, 30, 3, 4))
    values[:, :, 1:] += 0.1 * rng.normal(size=(2, 30, 1, 4))
    found = [layer_curves(layer_rows(values), Bootstrap(400, c, 0)) for c in (0.5, 0.95)]
    assert found[0].layers == [1, 2, 3, 4]
    assert found[0].n == 2 * 30 * 3
    widths = []
    for curves in found:
        source = curves.masses["p_source"]
        assert [e.value for e in source] == pytest.approx(values.mean(axis=(0, 1, 2)))
        assert all(e.low < e.value < e.high for e in source)
        assert all(np.isnan(e.value) for e in curves.masses["p_pivot"])
        widths.append(np.mean([e.high - e.low for e in source]))
    # The quantiles of a normal distribution.
    assert widths[1] / widths[0] == pytest.approx(1.96 / 0.674, rel=0.15)
    apart = values + np.array([-0.5, 0.5])[:, None, None, None]
    (wide, *_) = layer_curves(layer_rows(apart), Bootstrap(400, 0.95, 0)).masses["p_source"]
    assert wide.high - wide.low > 0.9


def test_curves_of_one_concept_have_no_band():
    values = np.array([[[[0.1, 0.2]], [[0.11, 0.21]]]])
    for part, banded in ((values, True), (values[:, :1], False)):
        chart = layers_figure({"random": {"direct": layer_curves(layer_rows(part), BOOTSTRAP)}})
        source = chart.panels[0].series[0]
        assert (source.low is not None) == banded
        assert source.y == pytest.approx([0.105, 0.205] if banded else [0.1, 0.2])
        low, high = chart.y.limits
        assert low == 0
        assert 0.2 < high < 0.3


def test_what_a_line_means_stands_above_its_panel():
    dots = DotSeries("a", "#000000", [0.0, 0.001], [-0.1, 0.0], [0.1, 0.2])
    panel = DotPanel("Score", Axis("x"), (dots,), 0.0, "no preference")
    chart = DotChart("x", "x", ("r", "s"), (panel,))
    assert "line: no preference" in draw(chart).axes[0].get_title(loc="right")
    (note,) = [a for a in describe(chart)["layout"]["annotations"] if "preference" in a["text"]]
    assert (note["y"], note["yanchor"]) == (1, "bottom")


def test_settings_that_differ_from_the_defaults():
    default = {"a": 1, "model": {"x": 1, "y": 2}, "shares": {}}
    found = {"a": 1, "seed": 3, "model": {"x": 1, "y": 5}, "shares": {"fr": 0.5}}
    assert changed_settings(found, default) == {"model": {"y": 5}, "shares": {"fr": 0.5}}
    assert changed_settings(found, None).keys() == {"a", "model", "shares"}


def test_heads_over_columns():
    columns = (Column("a"), Column("b", "num", "g"), Column("c", "num", "g"), Column("d"))
    assert Table("", columns, ()).groups() == [("", 1), ("g", 2), ("", 1)]
    assert Table("", (Column("a"),), ()).groups() == []


def test_sentences_stand_whole_and_long_words_are_cut() -> None:
    sentence, word = "long words " * 100, "w" * 900
    table = Table("caption", (Column("word", "token"),), ((word,),))
    section = Section("one", "Title", sentence, "limits", (table,))
    answer = Answer("question", "Yes", "better", sentence, (), None)
    html = render(Page("title", "subtitle", (), answer, (), (section,), "footer"))
    assert html.count(sentence) == 2
    assert word not in html
    assert word[:100] in html
