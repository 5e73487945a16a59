"""What a figure shows, free of any plotting library: drawn by charts_static and charts_interactive.

Colours are hex strings. Series of one name share one entry in the legend. All texts but `hover`
are plain (the renderers escape them); `hover` is made with `report_text.hover`, which escapes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

Dash = Literal["solid", "dash", "dot"]
Marker = Literal["circle", "square", "diamond", "triangle"]
NAN = float("nan")
MAX_WHOLE_TICKS = 9


@dataclass(frozen=True)
class Axis:
    """An axis; `limits` in data units, `whole` for numbers that are counted."""

    label: str
    log: bool = False
    percent: bool = False
    whole: bool = False
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """A line, or points. `low` and `high` draw a band (lines); `labels` name some points."""

    name: str
    color: str
    x: list[float]
    y: list[float]
    mode: Literal["line", "points"] = "line"
    dash: Dash = "solid"
    marker: Marker = "circle"
    width: float = 1.8
    opacity: float = 1.0
    size: float = 5.0
    fill: bool = False
    low: list[float] | None = None
    high: list[float] | None = None
    hover: list[str] | None = None
    labels: dict[int, str] | None = None
    legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One coordinate system of an XYChart; `note` stands small in a corner."""

    title: str
    series: tuple[Series, ...]
    note: str = ""
    diagonal: bool = False


@dataclass(frozen=True)
class XYChart:
    """Panels with the same axes, `columns` beside each other."""

    name: str
    alt: str
    panels: tuple[Panel, ...]
    x: Axis
    y: Axis
    columns: int = 2
    panel_height: float = 2.7
    share_y: bool = True


@dataclass(frozen=True)
class DotSeries:
    """One dot with an interval per row of a DotChart; None or NaN leaves the row empty."""

    name: str
    color: str
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    marker: Marker = "circle"
    hover: list[str] | None = None


@dataclass(frozen=True)
class DotPanel:
    """The series of a DotChart over one value axis, with an optional line of reference.

    The reference's label stands above the panel, where no dot can be.
    """

    title: str
    axis: Axis
    series: tuple[DotSeries, ...]
    reference: float | None = None
    reference_label: str = ""

    def note(self) -> str:
        """What the line of reference means; empty without one."""
        named = self.reference is not None and self.reference_label
        return f"line: {self.reference_label}" if named else ""


@dataclass(frozen=True)
class DotChart:
    """Dots with intervals, one row a thing; panels stand beside each other and share the rows."""

    name: str
    alt: str
    rows: tuple[str, ...]
    panels: tuple[DotPanel, ...]
    row_colors: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Stack:
    """One colour of a BarChart: a value per row; `low` and `high` draw intervals at their places.

    Intervals are for bars that are not stacked on others.
    """

    name: str
    color: str
    values: list[float]
    hover: list[str] | None = None
    low: list[float | None] | None = None
    high: list[float | None] | None = None

    def intervals(self) -> list[tuple[int, float, float]]:
        """(row, low, high) of every row that has an interval."""
        pairs = zip(self.low or [], self.high or [], strict=True)
        return [
            (row, low, high)
            for row, (low, high) in enumerate(pairs)
            if low is not None and high is not None
        ]


@dataclass(frozen=True)
class BarPanel:
    """Stacked horizontal bars."""

    title: str
    stacks: tuple[Stack, ...]


@dataclass(frozen=True)
class BarChart:
    """Panels of stacked horizontal bars that share their rows."""

    name: str
    alt: str
    rows: tuple[str, ...]
    panels: tuple[BarPanel, ...]
    axis: Axis


@dataclass(frozen=True)
class Box:
    """A distribution: the middle line, the box around it and the ends of its whiskers."""

    low: float
    lower: float
    middle: float
    upper: float
    high: float


@dataclass(frozen=True)
class BoxSeries:
    """One box per row of a BoxChart; None leaves the row empty."""

    name: str
    color: str
    boxes: list[Box | None]
    hover: list[str]


@dataclass(frozen=True)
class BoxChart:
    """Horizontal boxes, one row a thing; the series of a row lie below each other."""

    name: str
    alt: str
    rows: tuple[str, ...]
    series: tuple[BoxSeries, ...]
    axis: Axis


@dataclass(frozen=True)
class MatrixPanel:
    """A matrix of values with the text of each cell; NaN leaves a cell empty."""

    title: str
    values: list[list[float]]
    text: list[list[str]]
    hover: list[list[str]]


@dataclass(frozen=True)
class MatrixChart:
    """Matrices of one colour scale, `beside` beside each other.

    `diverging`: the scale has a colour for each side of the middle of `limits`. A cell's text may
    have several lines.
    """

    name: str
    alt: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_label: str
    column_label: str
    panels: tuple[MatrixPanel, ...]
    limits: tuple[float, float]
    beside: int = 2
    diverging: bool = False


def dot_limits(panel: DotPanel) -> tuple[float, float]:
    """The panel's limits, or ones around all intervals and the reference."""
    if panel.axis.limits is not None:
        return panel.axis.limits
    values = [
        value
        for series in panel.series
        for part in (series.values, series.low or [], series.high or [])
        for value in part
        if math.isfinite(value)
    ]
    if panel.reference is not None and math.isfinite(panel.reference):
        values.append(panel.reference)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def whole_ticks(chart: XYChart) -> list[int]:
    """Whole numbers to write along the x axis of a chart that counts there, not too many.

    Multiples of 1, 2 or 5 times a power of ten: a plotting library left to itself divides a short
    axis into halves and rounds them, which writes some numbers twice.
    """
    values = [v for panel in chart.panels for s in panel.series for v in s.x if math.isfinite(v)]
    if not values:
        return []
    low, high = math.ceil(min(values)), math.floor(max(values))
    sizes = (step * 10**power for power in itertools.count() for step in (1, 2, 5))
    step = next(size for size in sizes if high // size - -(-low // size) < MAX_WHOLE_TICKS)
    return list(range(-(-low // step) * step, high + 1, step))


Chart = XYChart | DotChart | BarChart | BoxChart | MatrixChart
