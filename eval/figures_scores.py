"""Figures of the documents' pivot proportions, by language and by source."""

from __future__ import annotations

import math

import numpy as np

from eval.chart_style import Palette
from eval.charts import Axis, Box, BoxChart, BoxSeries, Panel, Series, XYChart
from eval.report_data import PROPORTION_STEPS, Proportions, histogram_quantile
from eval.report_text import count, hover, percent
from eval.stats import Floats

HISTOGRAM_BARS = 24
BOX = (0.05, 0.25, 0.5, 0.75, 0.95)


def proportions_figure(found: Proportions, languages: list[str], palette: Palette) -> XYChart:
    """Distribution of the documents' pivot proportions, one panel a language."""
    highest = max(found.quantile(lang, 0.998) for lang in languages)
    top = min(1.0, max(math.ceil(highest * 20) / 20, 0.05))
    panels = []
    for lang in languages:
        edges, share = proportion_bars(found, lang, top)
        x = np.repeat(edges, 2)[1:-1]
        y = np.repeat(share, 2)
        texts = [
            hover(
                ("", lang),
                ("proportion", f"{percent(a)} to {percent(b)}"),
                ("documents", percent(s)),
            )
            for a, b, s in zip(edges[:-1], edges[1:], share, strict=True)
        ]
        texts = [text for text in texts for _ in range(2)]
        color = palette.languages[lang]
        median = found.quantile(lang, 0.5)
        panels.append(
            Panel(
                title=lang,
                series=(
                    Series(lang, color, x.tolist(), y.tolist(), hover=texts, fill=True,
                           legend=False),
                    Series("median", color, [median, median], [0, float(share.max())],
                           dash="dash", width=1.2, legend=False),
                ),
                note=f"{count(found.histogram[lang].sum())} documents, median {percent(median)}",
            )
        )  # fmt: skip
    return XYChart(
        name="proportions",
        alt="Distribution of the pivot proportion of the documents, by language",
        panels=tuple(panels),
        x=Axis("pivot proportion of a document", percent=True, limits=(0, top)),
        y=Axis("share of the documents", percent=True),
        columns=2,
        panel_height=1.75,
        share_y=False,
    )


def proportion_bars(found: Proportions, lang: str, top: float) -> tuple[Floats, Floats]:
    """Edges [n + 1] from 0 to `top` or just above, and the share of the documents per bar [n].

    A document of n tokens has a multiple of 1 / n: bars narrower than that, or of no whole number
    of such steps, would show a comb. So a bar is a whole number of steps of the mean document.
    """
    length = round(found.mean_length(lang))
    width = max(1, math.ceil(top * length / HISTOGRAM_BARS))
    n = max(1, math.ceil(top * length / width - 1e-9))
    edges = np.arange(n + 1) * width
    # Entry k of the histogram ends at k / PROPORTION_STEPS: an edge belongs to the bar above it.
    places = -(-edges * PROPORTION_STEPS // length)
    places[edges >= length] = PROPORTION_STEPS + 1
    counts = found.histogram[lang]
    below = np.concatenate([[0], counts.cumsum()])[places]
    return edges / length, np.diff(below) / max(1, counts.sum())


def sources_figure(found: Proportions, languages: list[str], palette: Palette) -> BoxChart | None:
    """Distribution of the proportions in the largest sources: quartiles, and 5% to 95%."""
    if not found.sources:
        return None
    series = []
    for lang in languages:
        boxes: list[Box | None] = []
        texts = []
        for source in found.sources:
            counts = found.source_histogram.get((lang, source))
            if counts is None:
                boxes.append(None)
                texts.append("")
                continue
            values = [histogram_quantile(counts, share) for share in BOX]
            boxes.append(Box(*values))
            texts.append(
                hover(
                    ("", f"{source}, {lang}"),
                    ("documents", count(counts.sum())),
                    ("median", percent(values[2])),
                    ("middle half", f"{percent(values[1])} to {percent(values[3])}"),
                    ("5th to 95th percentile", f"{percent(values[0])} to {percent(values[4])}"),
                )
            )
        if any(boxes):
            series.append(BoxSeries(lang, palette.languages[lang], boxes, texts))
    return BoxChart(
        name="sources",
        alt="Distribution of the pivot proportion of the documents in the largest sources",
        rows=found.sources,
        series=tuple(series),
        axis=Axis("pivot proportion of a document", percent=True),
    )
