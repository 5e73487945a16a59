"""The sections on the models: training, translation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from eval.chart_style import Palette
from eval.figures_training import train_loss_figure, validation_figure
from eval.figures_translation import arms_figure, groups_figure, matrix_figure
from eval.report_answer import Estimate
from eval.report_data import ITEM_KEY, RunData, records
from eval.report_figures import FigureWriter
from eval.report_page import Block, Cell, Column, Note, Section, Table
from eval.report_results import Results
from eval.report_settings import ReportSettings
from eval.report_text import count, interval, largest, number, percent, points, signed

LAST_TRAIN_SHARE = 0.05
NOT_RUN = "This run has no results of the stage `{}`, so there is nothing to show here."


def training_section(data: RunData, palette: Palette, figures: FigureWriter) -> Section:
    """Loss curves and where they end."""
    metrics = data.metrics
    blocks: list[Block]
    if metrics.empty:
        blocks = [Note(NOT_RUN.format("train"))]
    else:
        blocks = [
            figures.block(
                train_loss_figure(metrics, data.arms, palette),
                "Training loss, means of short stretches of steps. Further seeds are dashed.",
                "No training loss was logged.",
            ),
            figures.block(
                validation_figure(metrics, data.arms, data.languages, palette),
                "Loss on the validation documents, which are the same for all arms. The panels "
                "have their own vertical scales.",
                "No validation loss was logged.",
            ),
            _final_table(data),
        ]
    return Section(
        id="training",
        title="Training",
        reads="Lower is better. Compare arms on the validation loss of one language: the training "
        "losses are of different documents, so they say which mix is easier, not which model is "
        "better.",
        limits="Whether a model translates: a mix can lower the loss of every language and leave "
        "the languages unconnected.",
        blocks=tuple(blocks),
    )


def _final_table(data: RunData) -> Table:
    metrics = data.metrics
    validation = metrics[metrics["kind"] == "validation"]
    langs = [lang for lang in data.languages if (validation["lang"] == lang).any()]
    columns = [
        Column("arm"), Column("seed", "num"), Column("steps", "num"), Column("tokens", "num"),
        Column("training loss", "num"), *(Column(lang, "num", "validation loss") for lang in langs),
    ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for arm in data.arms:
        for seed in sorted(metrics.loc[metrics["arm"] == arm, "seed"].unique()):
            run = metrics[(metrics["arm"] == arm) & (metrics["seed"] == seed)]
            run = run.sort_values("step", kind="stable")
            train = run[run["kind"] == "train"]
            tail = train.tail(max(1, round(len(train) * LAST_TRAIN_SHARE)))
            last = run[run["kind"] == "validation"].drop_duplicates("lang", keep="last")
            losses = last.set_index("lang")["loss"]
            rows.append((
                arm, str(int(seed)), count(run["step"].max()), count(run["tokens"].max()),
                number(tail["loss"].mean() if len(tail) else None),
                *(number(losses.get(lang)) for lang in langs),
            ))  # fmt: skip
    caption = "Where the runs end (training loss: mean of the last twentieth of the steps)."
    return Table(caption, tuple(columns), tuple(rows))


def translation_section(
    data: RunData,
    results: Results,
    settings: ReportSettings,
    palette: Palette,
    figures: FigureWriter,
    compared: Sequence[Block],
) -> Section:
    """Score and accuracy of the arms, by direction and concept group, with examples.

    `compared` are the blocks that set models side by side.
    """
    blocks: list[Block]
    if not results.scores:
        blocks = [Note(NOT_RUN.format("evaluate"))]
    else:
        blocks = [
            figures.block(
                arms_figure(results.scores, results.accuracies, results.chance, palette),
                "Means over all directions with intervals over concepts"
                f"{_and_seeds(data)}. Score is above 0 if the right source word makes the target "
                "more likely than wrong ones do.",
                "Nothing was scored.",
            ),
            _arms_table(results, settings),
            *_seed_table(results),
            *compared,
            figures.block(
                matrix_figure(results.scores, results.accuracies, data.languages),
                "Mean Score by direction, rows are the source languages. Hover for intervals.",
                "No direction was scored.",
            ),
            _direction_table(results, settings),
            figures.block(
                groups_figure(results.groups, palette),
                "Mean Score by the task's groups of concepts.",
                "The task names no groups of concepts.",
            ),
            *_examples(data, results, settings),
        ]
    return Section(
        id="translation",
        title="Translation",
        reads="For each concept and direction the model gives the target word's probability after "
        "the right source word and after wrong ones. Score is the difference, accuracy how often "
        "the right one is on top. Intervals that do not overlap differ; of overlapping ones judge "
        "by the paired difference.",
        limits="Sentence translation, or words outside the task. "
        f"{count(results.n_unscored)} items without a score, or with the same word in both "
        "languages, are left out.",
        blocks=tuple(blocks),
    )


def _and_seeds(data: RunData) -> str:
    n = len(data.seeds())
    return f" and {n} training seeds" if n > 1 else ""


def estimate_text(e: Estimate, digits: int = 3) -> str:
    """An estimate as `value [low, high]`."""
    return interval(e.value, e.low, e.high, digits)


def difference_text(e: Estimate) -> str:
    """A difference as `+value [low, high]`."""
    if not math.isfinite(e.value):
        return number(None)
    scale = largest(e.value, e.low, e.high)
    value, low, high = (signed(v, scale=scale) for v in (e.value, e.low, e.high))
    return f"{value} [{low}, {high}]"


def points_text(e: Estimate) -> str:
    """A difference of shares as `+value [low, high]` in percentage points."""
    if not math.isfinite(e.value):
        return number(None)
    return f"{points(e.value)} [{points(e.low)}, {points(e.high)}]"


def _share_text(e: Estimate) -> str:
    if not math.isfinite(e.value):
        return number(None)
    return f"{percent(e.value)} [{percent(e.low)}, {percent(e.high)}]"


def _arms_table(results: Results, settings: ReportSettings) -> Table:
    columns = (
        Column("arm"), Column("Score", "num"), Column("accuracy", "num"),
        Column("mean reciprocal rank", "num"), Column("items", "num"),
        Column("Score", "num", f"minus {settings.baseline}, paired"),
        Column("accuracy, points", "num", f"minus {settings.baseline}, paired"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for arm, score in results.scores.items():
        paired = results.differences.get(arm)
        hits = results.accuracy_differences.get(arm)
        rows.append((
            arm, estimate_text(score.overall), _share_text(results.accuracies[arm].overall),
            estimate_text(results.reciprocal_ranks[arm].overall), count(score.overall.n),
            difference_text(paired.overall) if paired else number(None),
            points_text(hits.overall) if hits else number(None),
        ))  # fmt: skip
    caption = (
        f"The arms with {percent(settings.confidence, 0)} intervals; differences are paired by "
        f"item and seed. A blind choice has an accuracy of {percent(results.chance)}."
    )
    return Table(caption, columns, tuple(rows))


def _seed_table(results: Results) -> list[Block]:
    seeds = sorted({seed for found in results.seed_scores.values() for seed in found})
    if len(seeds) < 2:
        return []
    rows = [
        (arm, *(number(found.get(seed)) for seed in seeds))
        for arm, found in results.seed_scores.items()
    ]
    columns = (Column("arm"), *(Column(f"seed {seed}", "num", "mean Score") for seed in seeds))
    return [Table("Each training seed by itself.", columns, tuple(rows))]


def _direction_table(results: Results, settings: ReportSettings) -> Table:
    candidate = results.differences.get(settings.candidate)
    columns = [Column("direction"), Column("items", "num")]
    columns += [Column(arm, "num", "Score") for arm in results.scores]
    if candidate:
        columns.append(Column(f"{settings.candidate} minus {settings.baseline}", "num", "paired"))
    rows: list[tuple[Cell, ...]] = []
    for pair in results.directions:
        found = [comparison.directions[pair] for comparison in results.scores.values()]
        row = [f"{pair[0]} \u2192 {pair[1]}", count(max(e.n for e in found))]
        row += [estimate_text(e) for e in found]
        if candidate:
            row.append(difference_text(candidate.directions[pair]))
        rows.append(tuple(row))
    return Table("Score by direction, with intervals.", tuple(columns), tuple(rows))


def _examples(data: RunData, results: Results, settings: ReportSettings) -> list[Block]:
    arms = list(results.scores)
    arm = settings.candidate if settings.candidate in arms else arms[0]
    items = results.items[results.items["arm"] == arm]
    items = items[items["seed"] == items["seed"].min()]
    order = ["score", *ITEM_KEY]
    right = items[items["correct"].astype(bool)].sort_values(order, ascending=[False] + [True] * 3)
    wrong = items[~items["correct"].astype(bool)].sort_values(order)
    blocks: list[Block] = []
    for part, what in ((right, "right"), (wrong, "wrong")):
        shown = part.drop_duplicates("concept").head(settings.examples)
        if shown.empty:
            if settings.examples:
                blocks.append(Note(f"The model of {arm} got no item {what}."))
            continue
        extreme = "highest" if what == "right" else "lowest"
        caption = (
            f"Examples that the model of {arm} got {what}: the {extreme} Scores, one a concept. "
            "They were picked for being extreme and stand for nothing else."
        )
        blocks.append(_example_table(caption, _with_counts(shown, data.word_pairs)))
    return blocks


def _with_counts(shown: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    return shown.merge(pairs[[*ITEM_KEY, "pair_doc_freq"]], on=ITEM_KEY, how="left")


def _example_table(caption: str, shown: pd.DataFrame) -> Table:
    columns = (
        Column("direction"), Column("source", "token"), Column("target", "token"),
        Column("Score", "num"), Column("probability", "num"), Column("rank", "num"),
        Column("documents with both", "num"),
    )  # fmt: skip
    rows = [
        (
            f"{row['source_lang']} \u2192 {row['target_lang']}", str(row["source"]),
            str(row["target"]), number(row["score"]), number(row["p_gold"]),
            count(row["rank"]), count(row["pair_doc_freq"]),
        )
        for row in records(shown)
    ]  # fmt: skip
    return Table(caption, columns, tuple(rows))
