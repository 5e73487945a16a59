"""Draws charts with matplotlib, object by object: no pyplot, no global figure."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from eval.chart_style import (
    DIVERGING,
    INK,
    MUTED,
    OTHER_COLOR,
    SEQUENTIAL,
    cell_is_dark,
    static_style,
)
from eval.charts import (
    Axis,
    BarChart,
    BoxChart,
    Chart,
    DotChart,
    DotPanel,
    MatrixChart,
    Panel,
    Series,
    XYChart,
    dot_limits,
    whole_ticks,
)
from eval.report_text import tick, visible

WIDTH_INCHES = 8.6
DPI = 160
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}
DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1.2, 1.6))}


def draw(chart: Chart) -> Figure:
    """A matplotlib figure of a chart, on an Agg canvas."""
    with matplotlib.rc_context(static_style()):
        if isinstance(chart, XYChart):
            return _draw_xy(chart)
        if isinstance(chart, DotChart):
            return _draw_dots(chart)
        if isinstance(chart, BarChart):
            return _draw_bars(chart)
        if isinstance(chart, BoxChart):
            return _draw_boxes(chart)
        return _draw_matrix(chart)


def encode(figure: Figure, kind: str) -> bytes:
    """The figure as `png` (160 dots an inch) or `svg`, without dates: same figure, same bytes."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context(static_style()), warnings.catch_warnings():
        # A glyph that no installed font has shows as a box; the stage warns once by itself.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _grid(
    n: int, columns: int, height: float, share_y: bool, extra: float = 0.55
) -> tuple[Figure, list[Axes]]:
    columns = max(1, min(columns, n))
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(WIDTH_INCHES, rows * height + extra), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=share_y)
    flat = list(axes.ravel())
    for spare in flat[n:]:
        spare.remove()
    for i, axis in enumerate(flat[:n]):
        # Shared axes hide their labels inside the grid, also above a place that is left empty.
        axis.xaxis.set_tick_params(labelbottom=i + columns >= n)
    return figure, flat[:n]


def _legend(figure: Figure, entries: dict[str, Any]) -> None:
    if len(entries) < 2:
        return
    names = [visible(name, 40) for name in entries]
    figure.legend(
        list(entries.values()),
        names,
        loc="outside upper left",
        ncols=6 if max(map(len, names)) < 16 else 4 if max(map(len, names)) < 26 else 3,
        handlelength=1.6,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _scale(axes: Axes, axis: Axis, which: str, crowded: bool = False) -> None:
    target = axes.xaxis if which == "x" else axes.yaxis
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        target.set_minor_formatter(NullFormatter())
    else:
        steps = [1, 5, 10] if crowded else [1, 2, 2.5, 5, 10]
        target.set_major_locator(MaxNLocator(2 if crowded else 5, steps=steps))
    if axis.percent:
        target.set_major_formatter(PercentFormatter(1.0, decimals=None))
    elif axis.log or which == "x":
        target.set_major_formatter(FuncFormatter(lambda v, _: tick(round(v, 10))))
    if axis.limits is not None:
        (axes.set_xlim if which == "x" else axes.set_ylim)(*axis.limits)


def _draw_xy(chart: XYChart) -> Figure:
    figure, axes = _grid(len(chart.panels), chart.columns, chart.panel_height, chart.share_y)
    entries: dict[str, Any] = {}
    for ax, panel in zip(axes, chart.panels, strict=True):
        _scale(ax, chart.x, "x")
        _scale(ax, chart.y, "y")
        if chart.x.whole:
            ax.xaxis.set_major_locator(FixedLocator(whole_ticks(chart)))
        _draw_panel(ax, panel, entries)
    figure.supxlabel(chart.x.label, fontsize=9, color=INK)
    figure.supylabel(chart.y.label, fontsize=9, color=INK)
    _legend(figure, entries)
    return figure


def _draw_panel(ax: Axes, panel: Panel, entries: dict[str, Any]) -> None:
    ax.set_title(visible(panel.title))
    if panel.diagonal:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    for series in panel.series:
        handle = _draw_series(ax, series)
        if series.legend:
            entries.setdefault(series.name, handle)
    _note(ax, panel.note)


def _note(ax: Axes, text: str) -> None:
    """Small words above the right end of a panel."""
    if text:
        shown = visible(text, 120)
        ax.set_title(shown, loc="right", fontsize=8, fontweight="normal", color=MUTED)


def _draw_series(ax: Axes, series: Series) -> Any:
    if series.mode == "points":
        ax.scatter(
            series.x, series.y, s=series.size**2, color=series.color, alpha=series.opacity,
            marker=MARKERS[series.marker], linewidths=0,
        )  # fmt: skip
        _label_points(ax, series)
        marker = MARKERS[series.marker]
        return Line2D([], [], color=series.color, marker=marker, linestyle="", markersize=5)
    if series.low is not None and series.high is not None:
        ax.fill_between(
            series.x, series.low, series.high, color=series.color, alpha=0.14, linewidth=0
        )
    if series.fill:
        ax.fill_between(series.x, 0, series.y, color=series.color, alpha=0.18, linewidth=0)
    (line,) = ax.plot(
        series.x, series.y, color=series.color, linewidth=series.width, alpha=series.opacity,
        linestyle=DASHES[series.dash],
    )  # fmt: skip
    return line


def _label_points(ax: Axes, series: Series) -> None:
    """Name points in their order, leaving out names that would stand on one another."""
    ax.autoscale_view()
    taken: list[tuple[float, float, float]] = []
    for i, text in sorted((series.labels or {}).items()):
        shown = visible(text, 20)
        x, y = ax.transData.transform((series.x[i], series.y[i]))
        # About how wide the text is, in pixels of the figure's own resolution.
        width = sum(9.0 if ord(char) > 0x2E7F else 5.2 for char in shown) + 8
        if any(
            x < right and x + width > left and abs(y - line) < 11 for left, right, line in taken
        ):
            continue
        taken.append((x, x + width, y))
        ax.annotate(shown, (series.x[i], series.y[i]), xytext=(4, -2.5), fontsize=7.5,
                    textcoords="offset points", color=INK)  # fmt: skip


def _draw_dots(chart: DotChart) -> Figure:
    n_series = max(len(panel.series) for panel in chart.panels)
    height = max(1.5, len(chart.rows) * (0.16 + 0.12 * n_series) + 0.75)
    figure = Figure(figsize=(WIDTH_INCHES, height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    columns = len(chart.panels)
    axes = figure.subplots(1, columns, squeeze=False, sharey=True).ravel()
    entries: dict[str, Any] = {}
    for ax, panel in zip(axes, chart.panels, strict=True):
        _draw_dot_panel(ax, chart, panel, entries)
    axes[0].set_yticks(range(len(chart.rows)), [visible(row, 32) for row in chart.rows])
    axes[0].set_ylim(len(chart.rows) - 0.5, -0.5)
    if not chart.row_colors:
        _legend(figure, entries)
    return figure


def _draw_dot_panel(ax: Axes, chart: DotChart, panel: DotPanel, entries: dict[str, Any]) -> None:
    ax.set_title(visible(panel.title))
    _note(ax, panel.note())
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    if panel.reference is not None:
        ax.axvline(panel.reference, color=MUTED, linewidth=1.0, zorder=1)
    _scale(ax, panel.axis, "x")
    ax.set_xlim(*dot_limits(panel))
    ax.set_xlabel(panel.axis.label)
    spread = 0.62 / max(1, len(panel.series))
    for k, series in enumerate(panel.series):
        offset = (k - (len(panel.series) - 1) / 2) * spread
        for row, value in enumerate(series.values):
            if math.isnan(value):
                continue
            color = chart.row_colors[row] if chart.row_colors else series.color
            y = row + offset
            if series.low and series.high and not math.isnan(series.low[row]):
                ax.plot([series.low[row], series.high[row]], [y, y], color=color, linewidth=1.6)
            ax.plot([value], [y], MARKERS[series.marker], color=color, markersize=5.5)
        entries.setdefault(
            series.name,
            Line2D([], [], color=series.color, marker=MARKERS[series.marker], linewidth=1.6),
        )


def _draw_bars(chart: BarChart) -> Figure:
    height = max(1.3, 0.3 * len(chart.rows) + 0.8)
    figure = Figure(figsize=(WIDTH_INCHES, height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(chart.panels), squeeze=False, sharey=True).ravel()
    entries: dict[str, Any] = {}
    for ax, panel in zip(axes, chart.panels, strict=True):
        ax.set_title(visible(panel.title))
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        left = [0.0] * len(chart.rows)
        for stack in panel.stacks:
            ax.barh(range(len(chart.rows)), stack.values, left=left, height=0.72,
                    color=stack.color, edgecolor="white", linewidth=0.6)  # fmt: skip
            for row, low, high in stack.intervals():
                ax.plot([low, high], [row, row], color=INK, linewidth=1.4, solid_capstyle="butt")
            left = [a + b for a, b in zip(left, stack.values, strict=True)]
            entries.setdefault(stack.name, Patch(color=stack.color))
        _scale(ax, chart.axis, "x", crowded=len(chart.panels) > 2)
    axes[0].set_yticks(range(len(chart.rows)), [visible(row, 32) for row in chart.rows])
    axes[0].set_ylim(len(chart.rows) - 0.5, -0.5)
    figure.supxlabel(chart.axis.label, fontsize=9, color=INK)
    _legend(figure, entries)
    return figure


def _draw_boxes(chart: BoxChart) -> Figure:
    height = max(1.5, len(chart.rows) * (0.16 + 0.13 * len(chart.series)) + 0.75)
    figure = Figure(figsize=(WIDTH_INCHES, height + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.use_sticky_edges = False  # a median of 0 is not to stand on the axis
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    spread = 0.8 / len(chart.series)
    entries: dict[str, Any] = {}
    for k, series in enumerate(chart.series):
        offset = (k - (len(chart.series) - 1) / 2) * spread
        for row, box in enumerate(series.boxes):
            if box is None:
                continue
            y = row + offset
            ax.plot([box.low, box.high], [y, y], color=series.color, linewidth=1.0)
            ax.barh(y, box.upper - box.lower, left=box.lower, height=0.72 * spread,
                    color=series.color, alpha=0.45, linewidth=0)  # fmt: skip
            half = 0.36 * spread
            ax.plot([box.middle] * 2, [y - half, y + half], color=series.color, linewidth=2.0)
        entries.setdefault(series.name, Patch(color=series.color, alpha=0.7))
    _scale(ax, chart.axis, "x")
    ax.set_xlabel(chart.axis.label)
    ax.set_yticks(range(len(chart.rows)), [visible(row, 32) for row in chart.rows])
    ax.set_ylim(len(chart.rows) - 0.5, -0.5)
    _legend(figure, entries)
    return figure


def _cell_font(cells: list[str], width: float) -> float:
    """Points in which the longest line fits into a cell of `width` inches, at most 8.5."""
    # Chinese and Japanese characters are about twice as wide.
    longest = max(
        (sum(2 if ord(c) > 0x2E7F else 1 for c in line) for t in cells for line in t.split("\n")),
        default=0,
    )
    # A character is about 0.65 of the font's size wide; axes and colour bar take a tenth.
    return min(8.5, 0.9 * width * 72 / (0.65 * max(1, longest)))


def _draw_matrix(chart: MatrixChart) -> Figure:
    columns = min(chart.beside, len(chart.panels))
    side = WIDTH_INCHES / max(columns, 2) * len(chart.rows) / max(len(chart.columns), 1)
    cells = [text for panel in chart.panels for row in panel.text for text in row]
    n_lines = 1 + max(text.count("\n") for text in cells)
    least = max(1.6, 0.16 * n_lines * len(chart.rows))
    height = max(min(0.5 * side, 4.4), least)
    figure, axes = _grid(len(chart.panels), columns, height, True, 0.4)
    size = _cell_font(cells, WIDTH_INCHES / columns / len(chart.columns))
    stops = DIVERGING if chart.diverging else SEQUENTIAL
    plain = LinearSegmentedColormap.from_list("pivots", list(stops))
    colors = plain.with_extremes(bad=(*to_rgb(OTHER_COLOR), 0.25))
    scale = Normalize(*chart.limits)
    image = None
    for ax, panel in zip(axes, chart.panels, strict=True):
        ax.set_title(visible(panel.title))
        image = ax.imshow(panel.values, cmap=colors, norm=scale, aspect="auto")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_xticks(range(len(chart.columns)), [visible(name, 16) for name in chart.columns])
        ax.set_yticks(range(len(chart.rows)), [visible(name, 16) for name in chart.rows])
        for i, row in enumerate(panel.values):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    dark = cell_is_dark(float(scale(value)), chart.diverging)
                    ax.text(j, i, panel.text[i][j], ha="center", va="center", fontsize=size,
                            color="white" if dark else INK)  # fmt: skip
    figure.supxlabel(chart.column_label, fontsize=9, color=INK)
    figure.supylabel(chart.row_label, fontsize=9, color=INK)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24, pad=0.015)
        bar.outline.set_visible(False)
    return figure
