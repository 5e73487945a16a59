"""The `report` stage: one self-contained HTML page about a run, and its figures as PNG and SVG.

    run_report(ReportSettings(), out, ReportInputs(...))

Writes `report.html` (opens from disk, needs no network) and `figures/*.png`, `figures/*.svg`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from eval.chart_style import make_palette, warn_without_cjk_font
from eval.figures_translation import difference_figure
from eval.report_answer import Estimate, Verdict, verdict
from eval.report_cause import cause_section
from eval.report_compare import comparison_blocks
from eval.report_corpus import corpus_section, pivots_section, proportions_section
from eval.report_data import ReportInputs, RunData, read_run
from eval.report_figures import FigureWriter
from eval.report_inside import attribution_section, layers_section
from eval.report_lineage import lineage_section
from eval.report_mixes import mixes_section, uplift
from eval.report_models import (
    difference_text,
    estimate_text,
    training_section,
    translation_section,
)
from eval.report_page import Answer, Card, Page, Section, render
from eval.report_results import Results, compute
from eval.report_sentences import sentences_sections
from eval.report_settings import ReportSettings
from eval.report_text import (
    count,
    listing,
    number,
    percent,
    plural,
    short_count,
    signed,
)
from mining.common.files import write_text
from mining.common.logs import log, progress
from mining.common.stage import begin, settings_dict

__all__ = ["ReportInputs", "run_report"]

MAX_BYTES = 10_000_000
MANY_SEEDS = 5
RICH_DOCUMENTS = 3
LARGE_OVERLAP = 0.5


def run_report(settings: ReportSettings, out: Path, stages: ReportInputs, seed: int = 0) -> None:
    """Write the report of the finished stages to `out`; `seed` draws the resamples of intervals.

    Raises InputError where a stage is not finished. What a run lacks (an arm, a stage without any
    folder, a class of behaviour) the page says in words.
    """
    record = {**settings_dict(settings), "seed": seed}
    run = begin("report", out, record, stages.stage_inputs())
    if run is None:
        return
    warn_without_cjk_font()
    data = read_run(stages, RICH_DOCUMENTS, settings.min_document_tokens)
    results = compute(data, settings, seed)
    figures = FigureWriter(out / "figures")
    page = make_page(data, results, settings, stages, figures, seed)
    html = render(page)
    write_text(out / "report.html", html)
    size = len(html.encode("utf-8"))
    if size > MAX_BYTES:
        log.warning("report: %.1f MB, lower report.max_points to make it smaller", size / 1e6)
    log.info("report: %s", page.answer.word)
    run.finish({"figures": len(figures.names), "verdict": page.answer.tone})


def make_page(
    data: RunData,
    results: Results,
    settings: ReportSettings,
    stages: ReportInputs,
    figures: FigureWriter,
    seed: int,
) -> Page:
    """All parts of the page, its figures written on the way."""
    # A task may have languages that the corpus does not, and the other way round.
    palette = make_palette(data.arms, dict.fromkeys([*data.languages, *data.task.languages]))
    chart = difference_figure(results.differences, settings.baseline, palette)
    caption = (
        f"Dots right of the line score higher than {settings.baseline}; the bars are "
        f"{percent(settings.confidence, 0)} intervals."
    )
    figure = figures.figure(chart, caption) if chart else None
    word, tone, text = _answer(data, results, settings)
    answer = Answer(
        question=f"Does the {settings.candidate} mix beat the {settings.baseline} mix in "
        "word translation, at the same number of training tokens?",
        word=word,
        tone=tone,
        text=text,
        cautions=tuple(_cautions(data, results, settings)),
        figure=figure,
    )
    parts: tuple[Callable[[], Iterable[Section]], ...] = (
        lambda: [corpus_section(data, figures)],
        lambda: [pivots_section(data, settings, figures)],
        lambda: [proportions_section(data, settings, palette, figures)],
        lambda: [mixes_section(data, palette, figures)],
        lambda: [training_section(data, palette, figures)],
        lambda: [
            translation_section(
                data, results, settings, palette, figures, comparison_blocks(data.compared, figures)
            )
        ],
        lambda: sentences_sections(data),
        lambda: [layers_section(data, results, settings, palette, stages.trace, figures)],
        lambda: [cause_section(data, palette, figures)],
        lambda: [attribution_section(data, results, settings, palette, figures)],
        lambda: [lineage_section(data, settings, stages, seed)],
    )
    sections: list[Section] = []
    with progress("report", len(parts), "sections") as ticker:
        for part in parts:
            sections += part()
            ticker.advance()
    frame = data.proportions.by_source
    return Page(
        title=settings.title,
        subtitle=f"{short_count(frame['documents'].sum())} documents in "
        f"{listing(data.languages)}, {plural(len(data.arms), 'arm')}, "
        f"{plural(max(1, len(data.seeds())), 'training seed')}, "
        f"{plural(len(results.directions), 'direction')} of word translation.",
        facts=tuple(_facts(data, results)),
        answer=answer,
        cards=tuple(_cards(data, results, settings)),
        sections=tuple(sections),
        footer="Made by `pivots report`. The page holds everything it needs; the figures are also "
        "beside it in figures/, as PNG and SVG.",
    )


def _answer(
    data: RunData, results: Results, settings: ReportSettings
) -> tuple[str, Verdict, str]:  # word, tone, text
    a, b = settings.candidate, settings.baseline
    found = results.difference(a)
    tone = verdict(found)
    if tone == "unknown":
        missing = [arm for arm in (a, b) if arm not in results.scores]
        why = (
            f"This run has no evaluation of {listing(missing)}."
            if missing
            else "There are too few items with a score in both arms."
        )
        return "Not answered", tone, why
    seeds = sorted(results.seed_differences)
    basis = (
        f"{plural(len(results.directions), 'direction')}, {percent(settings.confidence, 0)} "
        f"interval over {plural(_n_concepts(results), 'concept')}"
        + (f" and {plural(len(seeds), 'seed')}" if len(seeds) > 1 else "")
    )
    scores = (
        f"mean Score {number(results.scores[a].overall.value)} against "
        f"{number(results.scores[b].overall.value)}, a paired difference of "
        f"{difference_text(found)} ({basis})"
    )
    if tone == "better":
        return "Yes, on this run", tone, f"The {a} mix scores higher: {scores}."
    if tone == "worse":
        return "No, the reverse", tone, f"The {a} mix scores lower: {scores}."
    return (
        "Not shown",
        tone,
        f"The two cannot be told apart: {scores}; the interval holds zero.",
    )


def _n_concepts(results: Results) -> int:
    return int(results.items["concept"].nunique())


def _cautions(data: RunData, results: Results, settings: ReportSettings) -> list[str]:
    a, b = settings.candidate, settings.baseline
    notes = []
    seeds = results.seed_differences
    if len(seeds) == 1:
        notes.append(
            "One training seed per arm: the interval covers the choice of words, not the luck of "
            "training. A second seed can move the difference by more than that."
        )
    elif 1 < len(seeds) < MANY_SEEDS:
        listed = ", ".join(f"{signed(v)} (seed {k})" for k, v in sorted(seeds.items()))
        notes.append(
            f"{plural(len(seeds), 'seed')} only, so the interval still understates how much "
            f"training runs vary. By seed: {listed}."
        )
    near = [
        arm
        for arm in (a, b)
        if arm in results.accuracies and _at_chance(results.accuracies[arm].overall, results.chance)
    ]
    if near:
        values = " and ".join(
            f"{percent(results.accuracies[arm].overall.value)} ({arm})" for arm in near
        )
        notes.append(
            f"Accuracy is not clearly above chance: {values} against {percent(results.chance)}. "
            "Models that hardly translate say little about what helps translation."
        )
    levels = uplift(data, a, b)
    if levels is not None:
        notes.append(
            f"The {a} mix is richer in pivots as intended: a mean proportion of "
            f"{percent(levels[0])} against {percent(levels[1])}."
            if levels[0] > levels[1]
            else f"The {a} mix is not richer in pivots than {b}: {percent(levels[0])} against "
            f"{percent(levels[1])}. The comparison does not test the claim."
        )
    overlap = (data.mix.get("overlap") or {}).get(a, {}).get(b)
    if overlap is not None and overlap > LARGE_OVERLAP:
        notes.append(
            f"{percent(overlap, 0)} of the {a} mix stand also in {b}, which makes any effect "
            "smaller."
        )
    return notes


def _at_chance(found: Estimate, chance: float) -> bool:
    return not (math.isfinite(found.low) and found.low > chance)


def _facts(data: RunData, results: Results) -> list[tuple[str, str]]:
    tokenize = data.manifests["tokenize"].counts
    frame = data.proportions.by_source
    vocabulary = data.manifests["tokenizer"].counts.get("vocab_size")
    budgets = sorted({entry["tokens"] for entry in data.mix["arms"].values()})
    facts = [
        (
            "Corpus",
            f"{count(tokenize['documents'])} documents, {count(frame['tokens'].sum())} tokens in "
            f"{listing(data.languages)} from {plural(frame['source'].nunique(), 'source')}",
        )
    ]
    if vocabulary:
        facts.append(("Tokenizer", f"{count(vocabulary)} pieces"))
    pivots = data.manifests["pivots"]
    facts.append(
        (
            "Pivots",
            f"definition \u201c{pivots.settings.get('definition')}\u201d on "
            f"{plural(len(data.items), 'item')}",
        )
    )
    if budgets:
        low, high = count(budgets[0]), count(budgets[-1])
        facts.append(
            ("Arms", f"{listing(data.arms)}; {low if low == high else f'{low} to {high}'} tokens")
        )
    trained = [m.counts for name, m in data.manifests.items() if name.startswith("train/")]
    sizes = sorted({c["parameters"] for c in trained if "parameters" in c})
    if sizes:
        seeds = "seed" if len(data.seeds()) == 1 else "seeds"
        models = f"{plural(len(trained), 'model')} of {short_count(sizes[-1])} parameters"
        facts.append(("Models", f"{models}, {seeds} {listing([str(s) for s in data.seeds()])}"))
    facts.append(
        (
            "Task",
            f"{data.task.name}, version {data.task.version}: "
            f"{plural(len(data.task.concepts), 'concept')}, "
            f"{plural(len(results.directions), 'direction')}, {count(len(results.items))} scored "
            "items in all runs",
        )
    )
    return facts


def _cards(data: RunData, results: Results, settings: ReportSettings) -> list[Card]:
    a, b = settings.candidate, settings.baseline
    frame = data.proportions.by_source
    n_pivots = int(data.items["is_pivot"].astype(bool).sum())
    found = results.difference(a)
    share = f"{percent(settings.confidence, 0)} interval"
    cards = [
        Card(f"Score, {a} minus {b}", signed(found.value), f"{share} {_range(found)}", strong=True),
    ]
    for arm in (a, b):
        if arm in results.accuracies:
            hits = results.accuracies[arm].overall
            score = estimate_text(results.scores[arm].overall)
            detail = f"chance {percent(results.chance)}; Score {score}"
            cards.append(Card(f"Accuracy, {arm}", percent(hits.value), detail))
    aucs = results.aucs.get("both words", {})
    if a in aucs and math.isfinite(aucs[a].overall.value):
        detail = f"{_range(aucs[a].overall, 2)}, direct against pivot"
        cards.append(Card("AUC of co-occurrence", number(aucs[a].overall.value, 2), detail))
    levels = uplift(data, a, b)
    cards += [
        Card("Documents", short_count(frame["documents"].sum()), listing(data.languages)),
        Card("Tokens", short_count(frame["tokens"].sum()), _token_detail(data)),
        Card("Pivots", count(n_pivots), f"of {count(len(data.items))} items"),
    ]
    if levels is not None:
        detail = f"{percent(levels[0])} in {a}, {percent(levels[1])} in {b}"
        ratio = f"\u00d7 {levels[0] / levels[1]:.2f}" if levels[1] > 0 else number(None)
        cards.append(Card("Pivot richness", ratio, detail))
    return cards


def _range(e: Estimate, digits: int = 3) -> str:
    if not math.isfinite(e.low):
        return number(None)
    return f"from {number(e.low, digits)} to {number(e.high, digits)}"


def _token_detail(data: RunData) -> str:
    budgets = [entry["tokens"] for entry in data.mix["arms"].values()]
    return f"{short_count(max(budgets))} in each arm" if budgets else ""
