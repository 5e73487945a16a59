"""Figures of the training runs."""

from __future__ import annotations

import pandas as pd

from eval.chart_style import Palette
from eval.charts import Axis, Dash, Panel, Series, XYChart
from eval.report_text import hover, number, short_count

MAX_CURVE_POINTS = 240
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")


def train_loss_figure(metrics: pd.DataFrame, arms: list[str], palette: Palette) -> XYChart | None:
    """Training loss over the tokens seen, one line an arm and seed."""
    frame = metrics[(metrics["kind"] == "train") & metrics["loss"].notna()]
    if frame.empty:
        return None
    panel = Panel("", tuple(_lines(frame, arms, palette, smooth=True)))
    return XYChart(
        name="train-loss",
        alt="Training loss by arm",
        panels=(panel,),
        x=_x_axis(frame),
        y=Axis("training loss (nats per token)"),
        columns=1,
        panel_height=2.9,
    )


def validation_figure(
    metrics: pd.DataFrame, arms: list[str], languages: list[str], palette: Palette
) -> XYChart | None:
    """Validation loss over the tokens seen, one panel a language."""
    frame = metrics[(metrics["kind"] == "validation") & metrics["loss"].notna()]
    present = set(frame["lang"].dropna())
    shown = [lang for lang in languages if lang in present] + sorted(present - set(languages))
    if not shown:
        return None
    panels = [
        Panel(lang, tuple(_lines(frame[frame["lang"] == lang], arms, palette, smooth=False)))
        for lang in shown
    ]
    return XYChart(
        name="validation-loss",
        alt="Validation loss by language and arm",
        panels=tuple(panels),
        x=_x_axis(frame),
        y=Axis("validation loss (nats per token)"),
        columns=2,
        panel_height=2.1,
        share_y=False,
    )


def _x_axis(frame: pd.DataFrame) -> Axis:
    return Axis("tokens seen" if frame["tokens"].notna().all() else "step")


def _lines(frame: pd.DataFrame, arms: list[str], palette: Palette, smooth: bool) -> list[Series]:
    x_name = "tokens" if frame["tokens"].notna().all() else "step"
    seeds = sorted(frame["seed"].unique())
    lines = []
    for arm in arms:
        for k, seed in enumerate(seeds):
            run = frame[(frame["arm"] == arm) & (frame["seed"] == seed)]
            run = run.sort_values("step", kind="stable")
            if run.empty:
                continue
            loss = run["loss"].astype(float)
            if smooth:
                # Means of equal stretches: a curve that can be read, and a page of bounded size.
                stretch = max(1, -(-len(run) // MAX_CURVE_POINTS))
                groups = pd.Series(range(len(run)), index=run.index) // stretch
                loss = loss.groupby(groups).mean()
                run = run.groupby(groups).last()
            rows = zip(run[x_name], run["step"], loss, strict=True)
            texts = [
                hover(
                    ("", f"{arm}, seed {seed}"),
                    ("loss", number(value)),
                    ("step", f"{int(step):,}"),
                    (x_name, short_count(x)),
                )
                for x, step, value in rows
            ]
            lines.append(
                Series(
                    name=arm,
                    color=palette.arms[arm],
                    x=run[x_name].astype(float).tolist(),
                    y=loss.tolist(),
                    dash=DASHES[k % len(DASHES)],
                    width=1.6 if k == 0 else 1.1,
                    hover=texts,
                )
            )
    return lines
