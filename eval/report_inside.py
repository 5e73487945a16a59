"""The sections on what happens inside the models: layers, attribution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eval.chart_style import Palette
from eval.charts import MatrixChart
from eval.figures_cause import heatmap_figure, languages_figure
from eval.figures_trace import (
    auc_figure,
    classes_figure,
    layers_figure,
    roc_figure,
    scatter_figure,
)
from eval.report_cause import attribution_tables, peak_table, threshold_table, tuned_note
from eval.report_data import ITEM_KEY, RunData, RunKey, read_item_layers, records
from eval.report_figures import FigureWriter
from eval.report_models import NOT_RUN, estimate_text
from eval.report_page import Block, Cell, Column, Note, Section, Table
from eval.report_results import Results
from eval.report_settings import ReportSettings
from eval.report_text import count, number, percent


def layers_section(
    data: RunData,
    results: Results,
    settings: ReportSettings,
    palette: Palette,
    folders: Mapping[RunKey, Path],
    figures: FigureWriter,
) -> Section:
    """What the lens reads, layer by layer."""
    traces = data.traces
    blocks: list[Block]
    if traces.empty:
        blocks = [Note(NOT_RUN.format("trace"))]
    else:
        present = [b for b in ("direct", "pivot") if (traces["behaviour"] == b).any()]
        missing = [b for b in ("direct", "pivot") if b not in present]
        blocks = []
        if missing:
            text = f"No item shows {' or '.join(missing)} behaviour"
            blocks.append(Note(f"{text}, so the classes cannot be compared.", "warn"))
        if data.layers["p_pivot"].isna().all():
            blocks.append(Note("The trace was made without the pivots of the word pairs."))
        blocks += [
            figures.block(
                layers_figure(results.curves),
                "Summed probability of the tokens of the source word, of the pair's pivots and of "
                f"the target word. Bands are {percent(settings.confidence, 0)} intervals over "
                "concepts and training seeds.",
                "No item was classed as direct or pivot, so there are no curves.",
            ),
            figures.block(
                classes_figure(traces, data.arms, results.directions),
                "Share of each behaviour; \u201cnone\u201d are items whose words share a token.",
                "No item was traced.",
            ),
            *threshold_table(data),
            *peak_table(data),
            *tuned_note(data),
            *_languages(data, palette, figures),
            *_worked_examples(data, settings, folders, figures),
        ]
    return Section(
        id="layers",
        title="Layers",
        reads="The logit lens reads every layer as if it were the last. An item is direct if the "
        "most probable token over all layers is the answer itself or belongs to the source word, "
        "and pivot if it is another one. In pivot behaviour the pivots should rise before the "
        "target does.",
        limits="What the model uses: the lens shows what could be read out of a layer, not what "
        "causes the answer. In small models early layers are mostly noise, and a random token "
        "that wins makes an item count as pivot.",
        blocks=tuple(blocks),
    )


def _languages(data: RunData, palette: Palette, figures: FigureWriter) -> list[Block]:
    captions = {
        "word": "Probability of the concept\u2019s word in a language that is neither the source "
        "nor the target, over the items that have such a language: a detour through it would show "
        "here.",
        "vocabulary": "Probability of all tokens that belong to a language.",
    }
    charts = {
        kind: languages_figure(data.trace_summaries, kind, data.task.languages, palette)
        for kind in captions
    }
    return [
        figures.figure(chart, captions[kind]) for kind, chart in charts.items() if chart is not None
    ]


def _worked_examples(
    data: RunData,
    settings: ReportSettings,
    folders: Mapping[RunKey, Path],
    figures: FigureWriter,
) -> list[Block]:
    keys = sorted(folders, key=lambda key: (key[0] != settings.candidate, key))
    arm, seed = keys[0]
    traces = data.traces[(data.traces["arm"] == arm) & (data.traces["seed"] == seed)]
    blocks: list[Block] = []
    for behaviour in ("direct", "pivot"):
        part = traces[traces["behaviour"] == behaviour]
        if part.empty or "winning_prob" not in part:
            continue
        row = part.sort_values(["winning_prob", *ITEM_KEY], ascending=[False] + [True] * 3).iloc[0]
        layers = read_item_layers(folders[(arm, seed)], {name: row[name] for name in ITEM_KEY})
        rows: list[tuple[Cell, ...]] = []
        for layer in records(layers):
            tokens, probs = list(layer["top_tokens"])[:4], list(layer["top_probs"])[:4]
            top = [f"{t.strip() or t} {percent(p)}" for t, p in zip(tokens, probs, strict=True)]
            masses = [number(layer[name]) for name in ("p_source", "p_pivot", "p_target")]
            rows.append((str(layer["layer"]), top, *masses))
        columns = (
            Column("layer", "num"), Column("most probable tokens", "words"),
            Column("source", "num", "probability"), Column("pivots", "num", "probability"),
            Column("target", "num", "probability"),
        )  # fmt: skip
        heatmap = _heatmap(data, arm, seed, behaviour)
        if heatmap is not None:
            blocks.append(figures.figure(
                heatmap,
                f"The item with {behaviour} behaviour that was decided most clearly (arm {arm}, "
                f"seed {seed}), at the last positions of its prompt: each cell shows the most "
                "probable token, its colour the probability.",
            ))  # fmt: skip
        blocks.append(Table(
            f"One item with {behaviour} behaviour, the one decided most clearly (arm {arm}, seed "
            f"{seed}): {row['source']} \u2192 {row['target']}, {row['source_lang']} to "
            f"{row['target_lang']}.",
            columns, tuple(rows),
        ))  # fmt: skip
    return blocks


def _heatmap(data: RunData, arm: str, seed: int, behaviour: str) -> MatrixChart | None:
    """The first item of the class, which is the one decided most clearly."""
    maps = data.heatmaps
    part = maps[
        (maps["arm"] == arm) & (maps["seed"] == seed) & (maps["behaviour"] == behaviour)
    ]  # fmt: skip
    if part.empty:
        return None
    first = part.iloc[0]
    same = (part[ITEM_KEY] == first[ITEM_KEY]).all(axis=1)
    return heatmap_figure(part[same], behaviour)


def attribution_section(
    data: RunData,
    results: Results,
    settings: ReportSettings,
    palette: Palette,
    figures: FigureWriter,
) -> Section:
    """Behaviour and score against how often the words stand together in the corpus."""
    items = results.attributed
    blocks: list[Block]
    if items.empty:
        blocks = [Note(NOT_RUN.format("attribute"))]
    else:
        never = percent(float((items["log_pair"] == 0).mean()))
        arms = [arm for arm in data.arms if (items["arm"] == arm).any()]
        by_pair = results.aucs["both words"]
        blocks = [
            Note(f"{never} of the items have words that stand together in no document."),
            figures.block(
                scatter_figure(items, data.arms, settings.max_points),
                f"Each dot is an item; {count(settings.max_points)} of them are drawn at most, the "
                "line is fitted to all direct and pivot items.",
                "No item has both a score and a count.",
            ),
            figures.block(
                roc_figure(items, arms, results.directions, by_pair),
                "How well the number of documents with both words tells direct from pivot items.",
                "No direction has items of both behaviours, so there is no ROC.",
            ),
            figures.block(
                auc_figure(results.aucs, palette),
                "The same measure for three counts: if the frequency of one word alone does as "
                "well as that of both together, co-occurrence explains nothing more.",
                "No direction has items of both behaviours, so there is no AUC.",
            ),
            *_attribution_tables(results),
            *attribution_tables(data),
        ]
    return Section(
        id="attribution",
        title="Attribution",
        reads="The claim under test: direct behaviour goes with words that often stand in the same "
        "document, so the AUC of their joint frequency should be above 0.5, and the Score should "
        "rise with it.",
        limits="Cause. Frequent words are also learned better; and a class that rests on the lens "
        "is only as good as the lens (see Layers).",
        blocks=tuple(blocks),
    )


def _attribution_tables(results: Results) -> list[Block]:
    predictors = list(results.aucs)
    columns = [Column("arm"), Column("items", "num")]
    columns += [Column(name, "num", "AUC for direct behaviour") for name in predictors]
    columns += [Column(name, "num", "correlation with Score") for name in predictors]
    rows: list[tuple[Cell, ...]] = []
    for arm, found in results.correlations.items():
        row = [arm, count(max(e.n for e in found.values()))]
        row += [estimate_text(results.aucs[name][arm].overall, 2) for name in predictors]
        row += [estimate_text(found[name], 2) for name in predictors]
        rows.append(tuple(row))
    caption = (
        "Frequencies enter as log(1 + documents). AUC: mean over directions. Correlation: Pearson, "
        "all directions together. Items whose words share a token are set aside. Intervals "
        "resample concepts, and training seeds where there are several."
    )
    tables: list[Block] = [Table(caption, tuple(columns), tuple(rows))]
    if results.fits:
        terms = ("direct", "pivot", "constant", "R2")
        fitted = [
            (arm, *(estimate_text(found[term]) for term in terms))
            for arm, found in results.fits.items()
        ]
        heads = ("direct", "pivot contribution", "constant", "R\u00b2")
        tables.append(Table(
            "Coefficients of Score = direct + pivot contribution + constant. Direct is log(1 + "
            "documents with both words); the pivot contribution sums the paths through the pair's "
            "pivots.",
            (Column("arm"), *(Column(head, "num") for head in heads)), tuple(fitted),
        ))  # fmt: skip
    return tables
