"""Turns charts into blocks of the page, and into the files of the figures folder."""

from __future__ import annotations

from pathlib import Path

from eval.charts import Chart
from eval.charts_interactive import describe
from eval.charts_static import draw, encode
from eval.report_page import FigureBlock, Note
from mining.common.files import write_bytes


class FigureWriter:
    """Draws each chart once: PNG and SVG into `folder`, the PNG and plotly's form for the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def block(self, chart: Chart | None, caption: str, missing: str) -> FigureBlock | Note:
        """The figure's block, or where there is nothing to draw a note with `missing`."""
        if chart is None:
            return Note(missing)
        return self.figure(chart, caption)

    def figure(self, chart: Chart, caption: str) -> FigureBlock:
        """Draw and write a chart."""
        if chart.name in self.names:
            raise ValueError(f"two figures have the name {chart.name}")
        self.names.append(chart.name)
        drawn = draw(chart)
        image = encode(drawn, "png")
        write_bytes(self.folder / f"{chart.name}.png", image)
        write_bytes(self.folder / f"{chart.name}.svg", encode(drawn, "svg"))
        return FigureBlock(chart.name, chart.alt, caption, image, describe(chart))
