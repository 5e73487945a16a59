"""The page of an experiment over seeds of a real corpus."""

from __future__ import annotations

from collections.abc import Iterator

from eval.chart_style import make_palette
from eval.charts import Axis, Panel, Series, XYChart
from eval.experiment_figures import cells_figure, effects_figure, seeds_figure
from eval.experiment_power import smallest_size
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import estimate, seed_values
from eval.experiment_tables import bounds, cell_table, direction_table, effect_table, seed_table
from eval.experiment_text_stats import ALL, MEANINGS, TextFindings
from eval.report_figures import FigureWriter
from eval.report_page import Answer, Block, Card, Cell, Code, Column, Page, Section, Table
from eval.report_text import NONE, count, listing, number, percent, plural, points

WORDS = {"better": "Yes, here", "worse": "No, the reverse", "open": "Not shown"}
COLOR = "#d55e00"


def make_page(
    settings: ExperimentSettings, found: TextFindings, figures: FigureWriter, command: str
) -> Page:
    """All parts of the page, its figures written on the way."""
    share = percent(settings.confidence, 0)
    on_all = [e for e in found.effects if (e.cell, e.measure) == (ALL, "accuracy")]
    primary, training = found.primary, found.training
    return Page(
        title=settings.title,
        subtitle=f"{plural(len(found.arms), 'arm')}, {plural(len(found.runs), 'seed')}; each seed "
        "draws the mixes, the training and the worked examples of its own.",
        facts=(
            ("Corpus", f"{count(found.n_documents)} documents"),
            ("Arms", listing(list(found.arms))),
            (
                "Models",
                f"{count(training['parameters'])} parameters, {count(training['tokens'])} tokens",
            ),
            (
                "Items",
                f"{count(found.cells.items[ALL])} in all directions, words in at least "
                f"{found.asked['min_doc_freq'] or 0} documents in both languages",
            ),
            (
                "Endpoint",
                "fixed before the runs: accuracy among ten over all items, pivot minus random; all "
                "else is secondary",
            ),
        ),
        answer=Answer(
            question="Does a mix rich in pivots raise word translation on real text, at equal "
            "tokens per language?",
            word=WORDS[found.verdict],
            tone=found.verdict,
            text=found.conclusion,
            cautions=(
                "Choosing by pivots also chooses sources, lengths and subjects: see the mixes.",
            ),
            figure=figures.figure(
                effects_figure(on_all, "Differences of the arms over all items"),
                f"Differences in accuracy over all items, with {share} intervals, paired over "
                "seeds.",
            ),
        ),
        cards=(
            Card(
                f"{primary.arm} minus {primary.reference}",
                f"{points(primary.estimate.mean)} points",
                f"{share} interval {bounds(primary.estimate)}; d = {number(primary.d, 2)}",
                strong=True,
            ),
            *(
                Card(f"Accuracy, {arm}", percent(found.estimates["accuracy", arm, ALL].mean))
                for arm in found.arms
            ),
        ),
        sections=(
            _translation(found, settings, figures, share),
            _power(found, settings, figures, share),
            _mixes(found),
            _seeds(found, command),
        ),
        footer="Made by `pivots experiment text`. The page holds everything it needs; the numbers "
        "are beside it as Parquet, the figures as PNG and SVG.",
    )


def _translation(
    found: TextFindings, settings: ExperimentSettings, figures: FigureWriter, share: str
) -> Section:
    palette, cells = make_palette(found.arms, ()), found.cells
    chart = cells_figure(
        {key[1:]: e for key, e in found.estimates.items() if key[0] == "accuracy"},
        found.arms, list(MEANINGS), palette, cells.chance,
    )  # fmt: skip
    runs = seeds_figure(
        seed_values(cells.table, "accuracy"), found.arms, ALL, palette, cells.chance,
        "Accuracy of every run over all items",
    )  # fmt: skip
    meanings = {
        cell: f"{meaning} ({plural(cells.items[cell], 'item')})"
        for cell, meaning in MEANINGS.items()
    }
    return Section(
        id="translation",
        title="Translation",
        reads="A dot is the mean over seeds, its bar the interval. The paper's claim is about "
        "words that hardly ever stand together: those of the cell apart.",
        limits="A model that is at chance cannot show a difference.",
        blocks=(
            figures.figure(chart, f"Accuracy by cell and arm, {share} intervals over seeds."),
            figures.figure(runs, "Every single run, all items."),
            cell_table(found.estimates, found.arms, meanings, "accuracy", share),
            cell_table(found.estimates, found.arms, meanings, "score", share),
            direction_table(cells.table, found.arms, ALL, settings.confidence, share),
            effect_table(found.effects, [found.primary], share),
        ),
    )


def _power(
    found: TextFindings, settings: ExperimentSettings, figures: FigureWriter, share: str
) -> Section:
    e, alpha = found.primary.estimate, 1 - settings.confidence
    rows: list[tuple[Cell, ...]] = [
        (str(n), points(smallest_size(n, settings.power, alpha) * e.sd))
        for n in sorted({3, 5, 10, 20, 50, max(2, e.n)})
    ]
    needed = found.primary.seeds_needed
    trend = found.trend
    blocks: list[Block] = [
        Table(
            "The smallest difference that a number of seeds would find with a probability of "
            f"{percent(settings.power, 0)}, if seeds vary as they do here. For a difference of the "
            f"size seen: {NONE if needed is None else plural(needed, 'seed')}.",
            (Column("seeds", "num"), Column("difference, points", "num")),
            tuple(rows),
        )
    ]
    if len(found.at) > 1:
        chart = _budget_figure(found, settings)
        blocks.append(
            figures.figure(
                chart,
                f"The primary difference against the tokens that the models have seen, {share} "
                "intervals over seeds. Checkpoints of one training, not trainings of their own.",
            )
        )
    if trend is not None:
        named = NONE if trend.tokens_needed is None else count(trend.tokens_needed)
        columns = (
            Column("points for each doubling of the tokens", "num"), Column("interval", "num"),
            Column("tokens needed", "num"),
        )  # fmt: skip
        row = (points(trend.slope.mean), bounds(trend.slope), named)
        blocks.append(
            Table(
                f"The line through the checkpoints, over seeds. Tokens needed: where it reaches "
                f"what {plural(e.n, 'seed')} would find; {NONE} where it does not clearly rise.",
                columns,
                (row,),
            )
        )
    return Section(
        id="power",
        title="What it would take",
        reads="How large a difference would have to be, or how many seeds or tokens there would "
        "have to be, for it to show.",
        limits="The spread is an estimate from a few seeds. The line through checkpoints is drawn "
        "on as if nothing changed on the way; take it for an order of magnitude at best.",
        blocks=tuple(blocks),
    )


def _budget_figure(found: TextFindings, settings: ExperimentSettings) -> XYChart:
    x, spans, seeds = [], [], []
    for tokens, by_seed in found.at.items():
        x.append(float(tokens))
        spans.append(estimate(list(by_seed.values()), settings.confidence))
        seeds += [(float(tokens), gap) for gap in by_seed.values()]
    line = Series(
        "pivot minus random", COLOR, x, [e.mean for e in spans], low=[e.low for e in spans],
        high=[e.high for e in spans],
    )  # fmt: skip
    dots = Series(
        "one seed", COLOR, [a for a, _ in seeds], [b for _, b in seeds], mode="points", opacity=0.6
    )
    return XYChart(
        "budget",
        "Difference in accuracy against the tokens seen",
        (Panel("", (line, dots)),),
        Axis("tokens seen"),
        Axis("difference in accuracy", percent=True),
        columns=1,
        panel_height=3.0,
    )


def _mixes(found: TextFindings) -> Section:
    rows: list[tuple[Cell, ...]] = list(_mix_rows(found))
    overlap = found.mixes["overlap"]
    shared: list[tuple[Cell, ...]] = [
        (a, *(percent(overlap[a][b]) for b in found.arms)) for a in found.arms
    ]
    seed = next(iter(found.runs))
    return Section(
        id="mixes",
        title="Mixes",
        reads="A fair comparison has the same number of tokens in each language.",
        limits="Where the sources differ much, a difference between arms may be one of subjects; "
        "mix.match [source, length] takes that away.",
        blocks=(
            Table(
                f"What the arms hold (seed {seed}). Sources apart: the share of tokens that would "
                "have to change their source to be distributed as the pivot arm's.",
                (
                    Column("language"), Column("arm"), Column("tokens", "num"),
                    Column("mined pivots", "num"), Column("documents", "num"),
                    Column("of the pool", "num"), Column("sources apart", "num"),
                ),
                tuple(rows),
                tall=True,
            ),
            Table(
                "Overlap: the share of an arm's tokens whose documents stand in the other too.",
                (Column("arm"), *(Column(arm, "num") for arm in found.arms)),
                tuple(shared),
            ),
        ),
    )  # fmt: skip


def _mix_rows(found: TextFindings) -> Iterator[tuple[Cell, ...]]:
    arms = found.mixes["arms"]
    for lang in arms["pivot"]["languages"]:
        for arm in found.arms:
            part = arms[arm]["languages"].get(lang, {})
            yield (
                lang, arm, count(part.get("tokens")), percent(part.get("mean_proportion")),
                count(part.get("documents")), percent(part.get("pool_share")),
                percent(part.get("source_distance")),
            )  # fmt: skip


def _seeds(found: TextFindings, command: str) -> Section:
    values = seed_values(found.cells.table, "accuracy")
    on_all = [e for e in found.effects if (e.cell, e.measure) == (ALL, "accuracy")]
    return Section(
        id="seeds",
        title="Seeds and commands",
        reads="Each line is one draw of the mixes with its trainings.",
        limits="The corpus, its pivots and the concepts asked are the same for all seeds, and the "
        "arms of the most and the fewest pivots take nearly the same documents each time: "
        "intervals say nothing about other corpora or other concepts.",
        blocks=(
            seed_table(values, list(found.runs), found.arms, on_all),
            Code("To make it again (finished parts are not done again):", command),
        ),
    )
