"""Describes charts for plotly.js as plain dictionaries (`data`, `layout`), all texts escaped.

Plain, because they go into the page as JSON; `plotly.graph_objects.Figure(spec)` validates one.
Only hover texts are free text; nothing of a corpus ever stands in a template string of plotly.
"""

from __future__ import annotations

import math
from typing import Any

from eval.chart_style import DIVERGING, INK, MUTED, RULE, SEQUENTIAL, cell_is_dark
from eval.charts import (
    Axis,
    BarChart,
    BoxChart,
    Chart,
    DotChart,
    MatrixChart,
    Panel,
    Series,
    XYChart,
    dot_limits,
    whole_ticks,
)
from eval.report_text import plotly_text

Spec = dict[str, Any]
SYMBOLS = {"circle": "circle", "square": "square", "diamond": "diamond", "triangle": "triangle-up"}
FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', "
    "'Noto Sans CJK JP', sans-serif"
)
BOTTOM = 48  # pixels below the panels: numbers and the label
PANEL_GAP = 62
NARROW_COLUMNS = 8  # of a matrix: with more, a cell holds no interval


def describe(chart: Chart) -> Spec:
    """The plotly figure of a chart."""
    if isinstance(chart, XYChart):
        return _xy(chart)
    if isinstance(chart, DotChart):
        return _dots(chart)
    if isinstance(chart, BarChart):
        return _bars(chart)
    if isinstance(chart, BoxChart):
        return _boxes(chart)
    return _matrix(chart)


class _Grid:
    """Places panels in rows and columns, and collects axes, titles and traces."""

    def __init__(
        self, n: int, columns: int, panel_height: float, left: int, gap: float = 0.045
    ) -> None:
        self.n, self.columns = n, max(1, min(columns, n))
        self.rows = math.ceil(n / self.columns)
        self.gap = gap
        self.inner = self.rows * panel_height + (self.rows - 1) * PANEL_GAP
        self.panel_height = panel_height
        self.data: list[Spec] = []
        self.named: set[str] = set()
        self.titled = False
        self.layout: Spec = {
            "margin": {"l": left, "r": 20, "t": 0, "b": BOTTOM},
            "font": {"family": FONT, "size": 12.5, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"bgcolor": "white", "bordercolor": RULE, "align": "left",
                           "font": {"family": FONT, "size": 12.5, "color": INK}},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom",
                       "y": 1 + 24 / self.inner, "itemsizing": "constant"},
            "annotations": [],
            "shapes": [],
        }  # fmt: skip

    def axes(self, i: int) -> tuple[str, str]:
        suffix = "" if i == 0 else str(i + 1)
        return f"x{suffix}", f"y{suffix}"

    def place(self, i: int, title: str, x: Spec, y: Spec) -> None:
        row, column = divmod(i, self.columns)
        width = (1 - self.gap * (self.columns - 1)) / self.columns
        left = column * (width + self.gap)
        top = 1 - row * (self.panel_height + PANEL_GAP) / self.inner
        xname, yname = self.axes(i)
        base = {"gridcolor": "#e9ecf1", "zeroline": False, "linecolor": RULE, "ticks": ""}
        domain = [max(0.0, top - self.panel_height / self.inner), top]
        self.layout["xaxis" + xname[1:]] = {
            **base, **x, "domain": [left, min(1.0, left + width)], "anchor": yname
        }  # fmt: skip
        self.layout["yaxis" + yname[1:]] = {**base, **y, "domain": domain, "anchor": xname}
        if title:
            self.titled = True
            self.text(f"<b>{plotly_text(title)}</b>", left, top, "left", "bottom", shift=3)

    def text(
        self, text: str, x: float, y: float, xanchor: str, yanchor: str, shift: int = 0
    ) -> None:
        self.layout["annotations"].append(
            {"text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": xanchor,
             "yanchor": yanchor, "showarrow": False, "yshift": shift, "font": {"size": 12.5}}
        )  # fmt: skip

    def note(self, i: int, text: str) -> None:
        """Small words above the right end of a panel."""
        if not text:
            return
        self.titled = True
        xname, yname = self.axes(i)
        self.layout["annotations"].append(
            {"text": plotly_text(text, 120), "x": 1, "y": 1, "yshift": 3,
             "xref": f"{xname} domain", "yref": f"{yname} domain", "xanchor": "right",
             "yanchor": "bottom", "showarrow": False, "font": {"size": 11.5, "color": MUTED}}
        )  # fmt: skip

    def add(self, i: int, name: str, trace: Spec, legend: bool = True) -> None:
        xname, yname = self.axes(i)
        first = legend and name not in self.named
        self.named |= {name} if legend else set()
        label = plotly_text(name, 40)
        self.data.append(
            {**trace, "name": label, "legendgroup": label, "showlegend": first,
             "xaxis": xname, "yaxis": yname}
        )  # fmt: skip

    def labels(self, x: str, y: str) -> None:
        """One label for all x axes, and one for all y axes."""
        for text, place in (
            (x, {"x": 0.5, "y": 0, "yshift": 3 - BOTTOM, "yanchor": "bottom"}),
            (y, {"x": 0, "y": 0.5, "xshift": 8 - self.layout["margin"]["l"], "textangle": -90,
                 "xanchor": "center"}),
        ):  # fmt: skip
            if text:
                self.layout["annotations"].append(
                    {"text": plotly_text(text), "xref": "paper", "yref": "paper",
                     "showarrow": False, "font": {"size": 12.5}, **place}
                )  # fmt: skip

    def spec(self, legend: bool = True) -> Spec:
        shown = legend and len(self.named) > 1
        top = (36 if shown else 0) + (28 if self.titled else 10)
        self.layout["showlegend"] = shown
        self.layout["margin"]["t"] = top
        self.layout["height"] = round(self.inner + top + BOTTOM)
        self.layout["legend"]["y"] = 1 + (26 if self.titled else 8) / self.inner
        return {"data": self.data, "layout": self.layout}


def _axis(axis: Axis, titled: bool = False) -> Spec:
    title = {"text": plotly_text(axis.label), "font": {"size": 12.5}, "standoff": 8}
    spec: Spec = {"title": title} if titled else {}
    if axis.log:
        spec |= {"type": "log", "dtick": 1}
    if axis.percent:
        # As many digits as the ticks need: a fixed number writes some of a narrow axis twice.
        spec |= {"tickformat": "~%", "nticks": 6}
    if axis.limits is not None:
        low, high = axis.limits
        spec["range"] = [math.log10(low), math.log10(high)] if axis.log else [low, high]
    return spec


def _clean(values: list[float]) -> list[float | None]:
    # Seven digits are more than a screen shows, and halve the page.
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in values]


def _xy(chart: XYChart) -> Spec:
    height = chart.panel_height * 92
    grid = _Grid(len(chart.panels), chart.columns, height, 64, 0.045 if chart.share_y else 0.09)
    for i, panel in enumerate(chart.panels):
        x, y = _axis(chart.x), _axis(chart.y)
        if chart.x.whole:
            x |= {"tickmode": "array", "tickvals": whole_ticks(chart)}
        if i and chart.share_y:
            y |= {"matches": "y", "showticklabels": i % grid.columns == 0}
        if i:
            x["matches"] = "x"
        grid.place(i, panel.title, x, y)
        _panel(grid, i, panel)
    grid.labels(chart.x.label, chart.y.label)
    return grid.spec()


def _panel(grid: _Grid, i: int, panel: Panel) -> None:
    xname, yname = grid.axes(i)
    if panel.diagonal:
        grid.layout["shapes"].append(
            {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "xref": xname, "yref": yname,
             "layer": "below", "line": {"color": MUTED, "width": 1, "dash": "dot"}}
        )  # fmt: skip
    grid.note(i, panel.note)
    for series in panel.series:
        for trace in _series(series):
            grid.add(i, series.name, trace, series.legend and "fillcolor" not in trace)


def _series(series: Series) -> list[Spec]:
    hover: Spec = {"hoverinfo": "text", "hovertext": series.hover} if series.hover else {}
    x, y = _clean(series.x), _clean(series.y)
    if series.mode == "points":
        marker = {"color": series.color, "size": series.size + 1.5, "opacity": series.opacity,
                  "symbol": SYMBOLS[series.marker], "line": {"width": 0}}  # fmt: skip
        return [{"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker, **hover}]
    traces: list[Spec] = []
    if series.low is not None and series.high is not None:
        red, green, blue = (int(series.color[k : k + 2], 16) for k in (1, 3, 5))
        traces.append(
            {"type": "scatter", "mode": "lines", "x": x + x[::-1],
             "y": _clean(series.high) + _clean(series.low)[::-1], "fill": "toself",
             "fillcolor": f"rgba({red},{green},{blue},0.14)", "line": {"width": 0},
             "hoverinfo": "skip"}
        )  # fmt: skip
    line = {"color": series.color, "width": series.width, "dash": series.dash}
    shape: Spec = {"opacity": series.opacity}
    if not series.hover:
        hover = {"hoverinfo": "skip"} if not series.legend else {"hoverinfo": "x+y+name"}
    traces.append(
        {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, **shape, **hover}
    )
    return traces


def _rows(rows: tuple[str, ...], shown: bool) -> Spec:
    return {"tickmode": "array", "tickvals": list(range(len(rows))), "showgrid": False,
            "ticktext": [plotly_text(row, 32) + " " for row in rows], "showticklabels": shown,
            "range": [len(rows) - 0.5, -0.5], "fixedrange": True}  # fmt: skip


def _left(rows: tuple[str, ...]) -> int:
    # CJK characters are about as wide as they are high.
    widest = max((sum(2 if ord(c) > 0x2E7F else 1 for c in row[:32]) for row in rows), default=4)
    return 28 + round(6.8 * widest)


def _dots(chart: DotChart) -> Spec:
    n_series = max(len(panel.series) for panel in chart.panels)
    height = max(70, len(chart.rows) * (16 + 12 * n_series))
    grid = _Grid(len(chart.panels), len(chart.panels), height, _left(chart.rows))
    for i, panel in enumerate(chart.panels):
        x = {**_axis(panel.axis, True), "range": list(dot_limits(panel))}
        grid.place(i, panel.title, x, _rows(chart.rows, i == 0))
        xname, yname = grid.axes(i)
        if panel.reference is not None:
            grid.layout["shapes"].append(
                {"type": "line", "x0": panel.reference, "x1": panel.reference, "y0": 0, "y1": 1,
                 "xref": xname, "yref": f"{yname} domain", "layer": "below",
                 "line": {"color": MUTED, "width": 1.2}}
            )  # fmt: skip
        grid.note(i, panel.note())
        spread = 0.62 / max(1, len(panel.series))
        for k, series in enumerate(panel.series):
            offset = (k - (len(panel.series) - 1) / 2) * spread
            colors = list(chart.row_colors) if chart.row_colors else series.color
            trace: Spec = {
                "type": "scatter", "mode": "markers", "x": _clean(series.values),
                "y": [round(row + offset, 4) for row in range(len(chart.rows))],
                "marker": {"color": colors, "size": 9, "symbol": SYMBOLS[series.marker]},
                "hoverinfo": "text", "hovertext": series.hover or "",
            }  # fmt: skip
            if series.low and series.high and not chart.row_colors:
                trace["error_x"] = _errors(series.values, series.low, series.high, series.color)
            grid.add(i, series.name, trace)
            if series.low and series.high and chart.row_colors:
                for row, color in enumerate(chart.row_colors):
                    span = [series.low[row], series.high[row]]
                    grid.add(i, series.name, {
                        "type": "scatter", "mode": "lines", "x": _clean(span),
                        "y": [row + offset] * 2, "line": {"color": color, "width": 2},
                        "hoverinfo": "skip",
                    }, False)  # fmt: skip
    return grid.spec(legend=not chart.row_colors)


def _errors(values: list[float], low: list[float], high: list[float], color: str) -> Spec:
    plus = [h - v for v, h in zip(values, high, strict=True)]
    minus = [v - lo for v, lo in zip(values, low, strict=True)]
    return {"type": "data", "symmetric": False, "array": _clean(plus),
            "arrayminus": _clean(minus), "color": color, "thickness": 1.8, "width": 0}  # fmt: skip


def _bars(chart: BarChart) -> Spec:
    height = max(60, 30 * len(chart.rows))
    grid = _Grid(len(chart.panels), len(chart.panels), height, _left(chart.rows))
    for i, panel in enumerate(chart.panels):
        x = _axis(chart.axis)
        if chart.axis.percent and chart.axis.limits == (0.0, 1.0):
            x |= {"tickvals": [0, 0.5, 1] if len(chart.panels) > 2 else [0, 0.25, 0.5, 0.75, 1]}
        grid.place(i, panel.title, x, _rows(chart.rows, i == 0))
        for stack in panel.stacks:
            grid.add(i, stack.name, {
                "type": "bar", "orientation": "h", "x": _clean(stack.values),
                "y": list(range(len(chart.rows))), "hoverinfo": "text",
                "hovertext": stack.hover or "", "width": 0.72,
                "marker": {"color": stack.color, "line": {"color": "white", "width": 1}},
            })  # fmt: skip
            for row, low_end, high_end in stack.intervals():
                grid.add(i, stack.name, {
                    "type": "scatter", "mode": "lines", "x": [low_end, high_end], "y": [row, row],
                    "line": {"color": INK, "width": 1.8}, "hoverinfo": "skip",
                }, False)  # fmt: skip
    grid.layout["barmode"] = "stack"
    grid.labels(chart.axis.label, "")
    return grid.spec()


def _boxes(chart: BoxChart) -> Spec:
    n_series = len(chart.series)
    height = max(70, len(chart.rows) * (16 + 13 * n_series))
    grid = _Grid(1, 1, height, _left(chart.rows))
    grid.place(0, "", _axis(chart.axis, True), _rows(chart.rows, True))
    spread = 0.8 / n_series
    for k, series in enumerate(chart.series):
        offset = (k - (n_series - 1) / 2) * spread
        shown = [(row, box) for row, box in enumerate(series.boxes) if box is not None]
        boxes = [box for _, box in shown]
        places = [round(row + offset, 4) for row, _ in shown]
        red, green, blue = (int(series.color[c : c + 2], 16) for c in (1, 3, 5))
        grid.add(0, series.name, {
            "type": "box", "orientation": "h", "y": places, "width": 0.72 * spread,
            "lowerfence": _clean([box.low for box in boxes]),
            "q1": _clean([box.lower for box in boxes]),
            "median": _clean([box.middle for box in boxes]),
            "q3": _clean([box.upper for box in boxes]),
            "upperfence": _clean([box.high for box in boxes]),
            "line": {"color": series.color, "width": 1.2}, "whiskerwidth": 0,
            "fillcolor": f"rgba({red},{green},{blue},0.4)", "hoverinfo": "skip",
        })  # fmt: skip
        # A box writes its own numbers on hover; ours are on its middle.
        grid.add(0, series.name, {
            "type": "scatter", "mode": "markers", "y": places,
            "x": _clean([box.middle for box in boxes]),
            "marker": {"color": series.color, "size": 5},
            "hoverinfo": "text", "hovertext": [series.hover[row] for row, _ in shown],
        }, False)  # fmt: skip
    return grid.spec()


def _matrix(chart: MatrixChart) -> Spec:
    low, high = chart.limits
    height = min(max(44 * len(chart.rows), 110), 420)
    grid = _Grid(len(chart.panels), chart.beside, height, _left(chart.rows) + 24)
    # Where cells are narrow the first line has to do; the hover text says the rest.
    n_lines = None if grid.columns * len(chart.columns) <= NARROW_COLUMNS else 1
    colors = DIVERGING if chart.diverging else SEQUENTIAL
    stops = [[k / (len(colors) - 1), color] for k, color in enumerate(colors)]
    for i, panel in enumerate(chart.panels):
        x: Spec = {"tickmode": "array", "tickvals": list(range(len(chart.columns))),
                   "ticktext": [plotly_text(name, 16) for name in chart.columns],
                   "showgrid": False, "fixedrange": True}  # fmt: skip
        y = _rows(chart.rows, i % grid.columns == 0)
        grid.place(i, panel.title, x, y)
        xname, yname = grid.axes(i)
        grid.add(i, panel.title, {
            "type": "heatmap", "z": [_clean(row) for row in panel.values],
            "hovertext": panel.hover, "hoverinfo": "text", "colorscale": stops,
            "zmin": low, "zmax": high, "xgap": 2, "ygap": 2, "showscale": i == 0,
            "colorbar": {"thickness": 10, "outlinewidth": 0, "len": 0.9},
        }, False)  # fmt: skip
        for r, row in enumerate(panel.values):
            for c, value in enumerate(row):
                if math.isfinite(value):
                    dark = cell_is_dark((value - low) / ((high - low) or 1.0), chart.diverging)
                    lines = panel.text[r][c].split("\n")[:n_lines]
                    shown = "<br>".join(map(plotly_text, lines))
                    size = 12 if len(lines) == 1 else 10.5
                    grid.layout["annotations"].append(
                        {"text": shown, "x": c, "y": r, "xref": xname,
                         "yref": yname, "showarrow": False,
                         "font": {"size": size, "color": "white" if dark else INK}}
                    )  # fmt: skip
    grid.labels(chart.column_label, chart.row_label)
    return grid.spec()
