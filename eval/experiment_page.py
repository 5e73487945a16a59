"""The page of an experiment over seeds of a generated world."""

from __future__ import annotations

from eval.chart_style import make_palette
from eval.experiment_doses import dose_sections
from eval.experiment_figures import cells_figure, effects_figure, seeds_figure
from eval.experiment_findings import CHANCE, MEANINGS, Findings
from eval.experiment_page_layers import layer_section
from eval.experiment_page_world import mining_section, world_section
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import SeedValues, seed_values
from eval.experiment_tables import bounds, cell_table, direction_table, effect_table, seed_table
from eval.report_figures import FigureWriter
from eval.report_page import Answer, Card, Code, Page, Section
from eval.report_text import count, listing, number, percent, plural, points
from mining.common.manifest import read_manifest

EVERY_RUN = "Accuracy of every run on words that only pivots tie together"
WORDS = {"better": "Yes", "worse": "No, the reverse", "open": "Not shown"}
TIES = "Differences of the arms on words that only pivots tie together"


def make_page(
    settings: ExperimentSettings, found: Findings, figures: FigureWriter, command: str
) -> Page:
    """All parts of the page, its figures written on the way."""
    palette = make_palette(found.arms, ())
    cell = found.primary[0].cell
    share = percent(settings.confidence, 0)
    on_cell = [e for e in found.effects if (e.cell, e.measure) == (cell, "accuracy")]
    answer = Answer(
        question="Does a mix rich in pivots raise word translation at equal budget, and is it the "
        "pivots' tie between languages that does it?",
        word=WORDS[found.verdict],
        tone=found.verdict,
        text=found.conclusion,
        cautions=_cautions(found),
        figure=figures.figure(
            effects_figure(on_cell, TIES),
            f"Cell {cell}: held-out words that only pivots tie together. Bars are {share} "
            "intervals over seeds, paired.",
        ),
    )
    chart = cells_figure(
        {key[1:]: e for key, e in found.estimates.items() if key[0] == "accuracy"},
        found.arms, found.cell_order, palette, CHANCE,
    )  # fmt: skip
    values = seed_values(found.cells, "accuracy")
    meanings = {one: MEANINGS[one] for one in found.cell_order}
    translation = Section(
        id="translation",
        title="Translation",
        reads="A dot is the mean over seeds, its bar the interval. Chance is one in ten. A gain in "
        "p1c0 that is absent in p0c0, and gone in the broken-pivot arm, is the work of the tie.",
        limits="The world is made for the question: it shows that the mechanism can work in small "
        "models, not that it does in a large one on real text.",
        blocks=(
            figures.figure(chart, f"Accuracy by cell and arm, {share} intervals over seeds."),
            figures.figure(
                seeds_figure(values, found.arms, cell, palette, CHANCE, EVERY_RUN),
                f"Every single run in cell {cell}.",
            ),
            cell_table(found.estimates, found.arms, meanings, "accuracy", share),
            cell_table(found.estimates, found.arms, meanings, "score", share),
            direction_table(found.cells, found.arms, cell, settings.confidence, share),
            effect_table(found.effects, found.primary, share),
        ),
    )
    n = len(found.runs)
    world = read_manifest(next(iter(found.runs.values())) / "world", "world").counts
    return Page(
        title=settings.title,
        subtitle=f"{plural(len(found.arms), 'arm')}, {plural(n, 'seed')}; each seed is a world and "
        "a training of its own.",
        facts=(
            (
                "World",
                f"{count(world['documents'])} documents, {plural(world['concepts'], 'concept')}, "
                f"{plural(world['pivots'], 'planted pivot')}, {plural(world['hubs'], 'hub')}",
            ),
            ("Arms", listing(list(found.arms))),
            ("Seeds", listing([str(seed) for seed in found.runs])),
            (
                "Endpoints",
                "fixed before the runs: accuracy among ten in p1c0, pivot minus random and pivot "
                "minus broken-pivot; p0c0 is the negative control; all else is secondary",
            ),
        ),
        answer=answer,
        cards=_cards(found, share),
        sections=(
            world_section(found),
            mining_section(found, settings),
            translation,
            *dose_sections(found, settings, figures),
            layer_section(found, settings),
            _seed_section(found, values, command),
        ),
        footer="Made by `pivots experiment world`. The page holds everything it needs; the numbers "
        "are beside it as Parquet, the figures as PNG and SVG.",
    )


def _cautions(found: Findings) -> tuple[str, ...]:
    if len(found.runs) == 1:
        return ("One seed: there is no interval, and another seed can turn the sign.",)
    return tuple(
        f"{e.arm} minus {e.reference} varies much between seeds: standard deviation "
        f"{100 * e.estimate.sd:.1f} points, {e.n_positive} of {e.estimate.n} seeds above zero."
        for e in found.primary
        if e.estimate.sd > abs(e.estimate.mean) / 2
    )


def _cards(found: Findings, share: str) -> tuple[Card, ...]:
    cards = [
        Card(
            f"{e.arm} minus {e.reference}",
            f"{points(e.estimate.mean)} points",
            f"{share} interval {bounds(e.estimate)}; d = {number(e.d, 2)}",
            strong=i == 0,
        )
        for i, e in enumerate(found.primary)
    ]
    cell = found.primary[0].cell
    cards += [
        Card(
            f"Accuracy, {arm}", percent(found.estimates["accuracy", arm, cell].mean), f"cell {cell}"
        )
        for arm in found.arms
    ]
    return tuple(cards)


def _seed_section(found: Findings, values: SeedValues, command: str) -> Section:
    return Section(
        id="seeds",
        title="Seeds and commands",
        reads="Each line is one world with its trainings.",
        limits="Seeds change world and training at once; the share of each in the spread is not "
        "told apart.",
        blocks=(
            seed_table(values, list(found.runs), found.arms, found.primary),
            Code("To make it again (finished parts are not done again):", command),
        ),
    )
