"""The page of an experiment over seeds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.chart_style import make_palette
from eval.experiment_figures import (
    cells_figure,
    dose_figures,
    effects_figure,
    seeds_figure,
)
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import Effect, Estimate, SeedValues, Verdict, estimate, seed_values
from eval.report_figures import FigureWriter
from eval.report_page import Answer, Block, Card, Cell, Code, Column, Note, Page, Section, Table
from eval.report_text import count, listing, number, percent, plural, points, signed
from mining.common.files import read_json
from mining.common.stage import read_manifest

CHANCE = 0.1
MEANINGS = {
    "p1c0": "held out: a pivot stands beside the word in every language, the words never together",
    "p0c0": "held out: neither (negative control)",
    "p1c1": "held out: a pivot, and documents that hold both words",
    "p0c1": "held out: documents that hold both words, no pivot",
    "train": "translated in the lists of every arm",
}
SOURCES = {
    "pool": "the pool, which the arms choose from",
    "codeswitch": "in every arm: text that holds both words of some held-out pairs",
    "format": "in every arm: translations of training concepts",
    "identity": "in every arm: every word, repeated",
}
WORDS = {"better": "Yes", "worse": "No, the reverse", "open": "Not shown"}
TEXT_SHOWN = 260


@dataclass(frozen=True)
class Findings:
    """All that the page says.

    `estimates` by (measure, arm, cell); `primary`: the effects that the conclusion rests on;
    `runs`: seed -> folder of its chain.
    """

    arms: tuple[str, ...]
    cell_order: tuple[str, ...]
    runs: Mapping[int, Path]
    cells: pd.DataFrame
    estimates: Mapping[tuple[str, str, str], Estimate]
    effects: Sequence[Effect]
    primary: Sequence[Effect]
    verdict: Verdict
    conclusion: str
    layers: pd.DataFrame
    mining: pd.DataFrame
    doses: pd.DataFrame
    ablations: pd.DataFrame


def make_page(settings: ExperimentSettings, found: Findings, figures: FigureWriter) -> Page:
    """All parts of the page, its figures written on the way."""
    palette = make_palette(found.arms, ())
    cell = found.primary[0].cell
    share = percent(settings.confidence, 0)
    shown = [e for e in found.effects if (e.cell, e.measure) == (cell, "accuracy")]
    answer = Answer(
        question="Does a mix rich in pivots raise word translation at equal budget, and is it the "
        "pivots' tie between languages that does it?",
        word=WORDS[found.verdict],
        tone=found.verdict,
        text=found.conclusion,
        cautions=_cautions(found),
        figure=figures.figure(
            effects_figure(shown),
            f"Cell {cell}: held-out words that only pivots tie together. Bars are {share} "
            "intervals over seeds, paired.",
        ),
    )
    chart = cells_figure(
        {key[1:]: e for key, e in found.estimates.items() if key[0] == "accuracy"},
        found.arms, found.cell_order, palette, CHANCE,
    )  # fmt: skip
    values = seed_values(found.cells, "accuracy")
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
                seeds_figure(values, found.arms, cell, palette, CHANCE),
                f"Every single run in cell {cell}.",
            ),
            _cell_table(found, "accuracy", share),
            _cell_table(found, "score", share),
            _effect_table(found, share),
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
            _world_section(found),
            _mining_section(found, settings),
            translation,
            *_dose_sections(found, figures, share),
            _layer_section(found, settings),
            _seed_section(found, values),
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
            f"{share} interval {_bounds(e.estimate)}; d = {number(e.d, 2)}",
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


def _bounds(e: Estimate) -> str:
    return "none" if e.n < 2 else f"{points(e.low)} to {points(e.high)}"


def _shown(e: Estimate, as_percent: bool) -> str:
    write = percent if as_percent else number
    if e.n < 2:
        return write(e.mean)
    return f"{write(e.mean)} [{write(e.low)}, {write(e.high)}]"


def _cell_table(found: Findings, measure: str, share: str) -> Table:
    name = "Accuracy among ten" if measure == "accuracy" else "Score"
    rows: list[tuple[Cell, ...]] = [
        (
            cell,
            MEANINGS[cell],
            *(
                _shown(found.estimates[measure, arm, cell], measure == "accuracy")
                for arm in found.arms
            ),
        )
        for cell in found.cell_order
    ]
    columns = (Column("cell"), Column("its words"), *(Column(arm, "num") for arm in found.arms))
    return Table(f"{name}, mean over seeds with {share} interval.", columns, tuple(rows))


def _effect_table(found: Findings, share: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for e in found.effects:
        primary = "primary" if e in found.primary else ""
        rows.append(
            (
                f"{e.arm} minus {e.reference}", e.cell, e.measure, primary,
                _shown(e.estimate, e.measure == "accuracy"), number(e.d, 2), number(e.p),
                f"{e.n_positive} of {e.estimate.n}",
                "–" if e.seeds_needed is None else count(e.seeds_needed),
            )
        )  # fmt: skip
    labels = ("difference", "d", "p", "seeds above zero", "seeds needed")
    columns = (
        Column("arms"), Column("cell"), Column("measure"), Column("endpoint"),
        *(Column(label, "num") for label in labels),
    )  # fmt: skip
    caption = (
        f"Paired differences over seeds with {share} intervals; d is the mean over the standard "
        "deviation of the differences, p of the paired t-test and not corrected, as all but the "
        "primary endpoints are descriptive. Seeds needed: to find an effect of that size with the "
        "set power, at the level of the intervals."
    )
    return Table(caption, columns, tuple(rows), tall=True)


def _world_section(found: Findings) -> Section:
    seed, root = next(iter(found.runs.items()))
    manifest = read_manifest(root / "world", "world").counts
    cells: list[tuple[Cell, ...]] = [
        (cell, MEANINGS[cell], count(manifest["cells"][cell])) for cell in found.cell_order
    ]
    blocks: list[Block] = [
        Table(
            "The design: concepts of each cell in one seed's world.",
            (Column("cell"), Column("its words"), Column("concepts", "num")),
            tuple(cells),
        ),
        Table(
            f"What the world looks like (seed {seed}): the beginning of one document a kind. The "
            "tokens that end in two digits have no language: pivots and neutral ones.",
            (Column("kind"), Column("documents", "num"), Column("text", "code")),
            tuple(_samples(root / "world", manifest["by_source"])),
        ),
        _ties(root / "world"),
    ]
    return Section(
        id="world",
        title="The world",
        reads="Words of invented languages, each tied to a concept. A pivot is a token without "
        "language that stands beside one concept's word in every language.",
        limits="There is no grammar and no meaning beyond these ties.",
        blocks=tuple(blocks),
    )


def _samples(world: Path, by_source: Mapping[str, Mapping[str, int]]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    first: dict[str, str] = {}
    for path in sorted((world / "documents").glob("*.jsonl.gz"), reverse=True):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                first.setdefault(record["source"], record["text"])
                if len(first) == len(by_source) or (record["source"] == "pool"):
                    break
    for source, meaning in SOURCES.items():
        if source in first:
            n = count(by_source[source]["documents"])
            rows.append((f"{source}: {meaning}", n, first[source][:TEXT_SHOWN] + " ..."))
    return rows


def _ties(world: Path) -> Table:
    """Some planted pivots with the words that they stand beside."""
    truth = read_json(world / "truth.json")
    with (world / "concepts.tsv").open(encoding="utf-8") as lines:
        header = next(lines).rstrip("\n").split("\t")
        words = {
            row[0]: dict(zip(header, row, strict=True))
            for row in (line.rstrip("\n").split("\t") for line in lines)
        }
    languages = list(truth["languages"])
    rows: list[tuple[Cell, ...]] = []
    for pivot, concepts in list(truth["pivots"].items())[:6]:
        beside = (
            ", ".join(words[concept][lang] for concept in concepts.get(lang, ()))
            for lang in languages
        )
        rows.append((pivot, *beside))
    columns = (Column("pivot", "token"), *(Column(lang, "token") for lang in languages))
    return Table(
        "Some planted pivots, and the words that each stands beside.", columns, tuple(rows)
    )


def _mining_section(found: Findings, settings: ExperimentSettings) -> Section:
    rows: list[tuple[Cell, ...]] = []
    measures = ("n_pivots", "precision", "recall", "planted_share", "oracle_overlap")
    for (definition, rule), part in found.mining.groupby(["definition", "rule"], sort=False):
        means = [estimate(part[name].to_numpy(), settings.confidence) for name in measures]
        shown = [count(round(means[0].mean)), *(_shown(e, True) for e in means[1:])]
        rows.append((str(definition), str(rule), *shown))
    table = Table(
        "Mined against planted pivots, mean over seeds. Planted share: planted pivots among the "
        "tokens of the documents that the definition would choose; overlap: the share of these "
        "tokens that the oracle chooses too.",
        (
            Column("definition"), Column("threshold"), Column("pivots", "num"),
            Column("precision", "num"), Column("recall", "num"), Column("planted share", "num"),
            Column("overlap with the oracle", "num"),
        ),
        tuple(rows),
    )  # fmt: skip
    return Section(
        id="mining",
        title="Mining",
        reads="Precision and recall judge the set; what counts for training is which documents it "
        "leads to: a few frequent wrong items can cost half the selection.",
        limits="Planted pivots are cleaner than real ones.",
        blocks=(table,),
    )


def _dose_sections(found: Findings, figures: FigureWriter, share: str) -> tuple[Section, ...]:
    if found.doses.empty:
        return ()
    rows: list[tuple[Cell, ...]] = [
        (
            row["key"], number(row["value"]), percent(row["planted_share"]),
            f"{row['arm']} minus {row['reference']}",
            _shown(
                Estimate(row["difference"], row["low"], row["high"], row["sd"], row["n_seeds"]),
                True,
            ),
        )
        for row in found.doses.to_dict("records")
    ]  # fmt: skip
    columns = (
        Column("setting"), Column("value", "num"), Column("planted share", "num"), Column("arms"),
        Column("difference in accuracy", "num"),
    )  # fmt: skip
    cell = found.primary[0].cell
    caption = f"The primary differences in cell {cell} with {share} intervals over seeds."
    return (
        Section(
            id="doses",
            title="Dose and response",
            reads="One setting varied at a time. If pivots do the work, more of them help more.",
            limits="The fewer the seeds, the wider the bands.",
            blocks=(
                *(figures.figure(chart, caption) for chart in dose_figures(found.doses)),
                Table("Planted share: of the pivot arm's tokens.", columns, tuple(rows)),
            ),
        ),
    )


def _ablation_table(found: Findings, settings: ExperimentSettings) -> Table:
    """What is lost of P(answer) without the directions of the pair's pivots, and of controls."""
    rows: list[tuple[Cell, ...]] = []
    conditions = [name for name in found.ablations if str(name).startswith("drop_")]
    for arm in found.arms:
        for cell in found.cell_order:
            here = (found.ablations["arm"] == arm) & (found.ablations["cell"] == cell)
            part = found.ablations[here].dropna(subset=conditions)
            if part.empty:
                continue
            drops = [estimate(part[name].to_numpy(), settings.confidence) for name in conditions]
            gap = (part[conditions[0]] - part[conditions[1]]).to_numpy()
            shown = [_shown(e, True) for e in (*drops, estimate(gap, settings.confidence))]
            rows.append((arm, cell, *shown))
    columns = (
        Column("arm"),
        Column("cell"),
        *(
            Column(str(name).removeprefix("drop_"), "num", "lost of P(answer)")
            for name in conditions
        ),
        Column("pivots minus random", "num"),
    )
    caption = (
        "Cause: the share of the mean P(answer) that is lost where the directions of a pair's "
        "mined pivots are removed from the middle layers, where as many random ones are, and where "
        "another pair's are; mean over seeds. Only items that the lens calls direct or pivot, and "
        "for which all three can be had."
    )
    return Table(caption, columns, tuple(rows), tall=True)


def _layer_section(found: Findings, settings: ExperimentSettings) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for arm in found.arms:
        for cell in found.cell_order:
            part = found.layers[(found.layers["arm"] == arm) & (found.layers["cell"] == cell)]
            shown = [
                _shown(estimate(part[name].dropna().to_numpy(), settings.confidence), True)
                if part[name].notna().any() else "–"
                for name in ("pivot_class", "pivot_first")
            ]  # fmt: skip
            rows.append((arm, cell, *shown))
    aucs = found.layers.drop_duplicates(["arm", "seed"])
    auc_rows: list[tuple[Cell, ...]] = [
        (str(arm), _shown(estimate(part["auc"].dropna().to_numpy(), settings.confidence), False))
        for arm, part in aucs.groupby("arm", sort=False)
        if part["auc"].notna().any()
    ]
    blocks: tuple[Block, ...] = (
        _ablation_table(found, settings),
        Table(
            "By planted cell: the share of items that the lens puts in the pivot class, and the "
            "share whose pivot mass peaks in an earlier layer than the target (of those whose "
            "peaks differ).",
            (
                Column("arm"), Column("cell"), Column("pivot class", "num"),
                Column("pivot before target", "num"),
            ),
            tuple(rows),
            tall=True,
        ),
        Table(
            "AUC of co-occurrence frequency as a predictor of the direct class (.5: none).",
            (Column("arm"), Column("AUC", "num")),
            tuple(auc_rows),
        ),
        Note(
            "Labels by planted cell do not rest on the lens. If the lens followed the planted "
            "ties, the pivot class would be more frequent in p1c0 than in p0c1."
        ),
    )  # fmt: skip
    return Section(
        id="layers",
        title="Layers",
        reads="METHOD's lens classes beside what was planted.",
        limits="A lens shows what could be read out of a layer, not what the model used.",
        blocks=blocks,
    )


def _seed_section(found: Findings, values: SeedValues) -> Section:
    cell = found.primary[0].cell
    rows: list[tuple[Cell, ...]] = []
    for seed in found.runs:
        hits = [values[arm, cell][seed] for arm in found.arms]
        gaps = [values[e.arm, cell][seed] - values[e.reference, cell][seed] for e in found.primary]
        rows.append((str(seed), *(percent(v) for v in hits), *(signed(100 * g, 3) for g in gaps)))
    columns = (
        Column("seed"),
        *(Column(arm, "num", "accuracy") for arm in found.arms),
        *(Column(f"{e.arm} − {e.reference}", "num", "difference, points") for e in found.primary),
    )
    out = next(iter(found.runs.values())).parent
    return Section(
        id="seeds",
        title="Seeds and commands",
        reads="Each line is one world with its trainings.",
        limits="Seeds change world and training at once; the share of each in the spread is not "
        "told apart.",
        blocks=(
            Table(f"Cell {cell} by seed.", columns, tuple(rows)),
            Code(
                "To make it again (finished parts are not done again):",
                f"pivots experiment world --config {out.parent}/config.yaml",
            ),
        ),
    )
