"""`pivots compare RUN RUN ...`: the evaluated models of several runs side by side.

Writes `compare/` (the tables of the compare stage over all runs) and `page/`: `report.html` and its
figures. Each model is set against the baseline of its own run, and against the model of the same
name in the first run; all differences are paired by item.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.compare import Member, RunKey, compared_labels, run_compare
from eval.report_answer import Estimate, Verdict, verdict
from eval.report_compare import comparison_blocks
from eval.report_data import Compared, read_compared
from eval.report_figures import FigureWriter
from eval.report_models import difference_text
from eval.report_page import Answer, Block, Card, Cell, Code, Column, Page, Section, Table, render
from eval.report_text import count, interval, listing, number, percent, plural
from eval.settings import CompareSettings
from mining.common.errors import InputError
from mining.common.files import read_json, sha256_file, write_text
from mining.common.manifest import MANIFEST
from mining.common.stage import StageInput, begin, settings_dict

MARK = ": "  # between a run and its model
WORDS: dict[Verdict, str] = {
    "better": "higher",
    "worse": "lower",
    "open": "cannot be told apart",
    "unknown": "not evaluated",
}


def run_compare_runs(
    settings: CompareSettings, candidate: str, out: Path, runs: Sequence[Path], seed: int
) -> Path:
    """Compare the finished evaluations of the runs' folders; the path of the page.

    Raises InputError where a run has no evaluation or is named twice, MismatchError where the runs
    are of different tasks.
    """
    names = run_names(runs)
    evaluations = find_evaluations(runs)
    members = {k: one for k, one in series_members(runs).items() if k in evaluations}
    pairs = run_pairs(compared_labels(evaluations, members), names, settings)
    run_compare(settings, out / "compare", evaluations, members, seed, pairs)
    record = {**settings_dict(settings), "candidate": candidate, "runs": names}
    folder = out / "page"
    run = begin("comparison", folder, record, {"compare": StageInput(out / "compare", "compare")})
    if run is not None:
        figures = FigureWriter(folder / "figures")
        page = make_page(settings, candidate, out / "compare", evaluations, names, figures)
        write_text(folder / "report.html", render(page))
        run.finish({"runs": len(names), "figures": len(figures.names)})
    return folder / "report.html"


def run_names(runs: Sequence[Path]) -> list[str]:
    """The folders' names; where two have the same, with as many parents as tell them apart."""
    parts = [path.resolve().parts for path in runs]
    if twice := [str(path) for path, n in zip(runs, map(parts.count, parts), strict=True) if n > 1]:
        raise InputError(f"compare: a run is named twice: {', '.join(twice)}")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]).lstrip("/") for part in parts]


def find_evaluations(runs: Sequence[Path]) -> dict[RunKey, Path]:
    """(RUN: model, seed) -> folder of every finished evaluation, run by run."""
    found: dict[RunKey, Path] = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        folders = sorted(path.parent for path in (run / "evaluate").rglob(MANIFEST))
        folders = [folder for folder in folders if folder.name.isdecimal()]  # not a copy beside it
        if not folders:
            raise InputError(f"{run}: holds no finished evaluation; run `pivots evaluate` first")
        for folder in folders:
            label = folder.parent.relative_to(run / "evaluate").as_posix()
            found[name + MARK + label, int(folder.name)] = folder
    return found


def series_members(runs: Sequence[Path]) -> dict[RunKey, Member]:
    """The checkpoints of series, as the runs' own compare stages know them."""
    members = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        if not (run / "compare" / MANIFEST).is_file():
            continue
        for model in read_json(run / "compare" / "summary.json")["models"]:
            if "series" in model:
                key = name + MARK + model["model"], int(model["seed"])
                members[key] = Member(name + MARK + model["series"], int(model["step"]))
    return members


def run_pairs(
    labels: Sequence[str], runs: Sequence[str], settings: CompareSettings
) -> list[tuple[str, str]]:
    """(model, reference): each with the baseline of its run, and with its like in the first run."""
    within, between = [], []
    for label in labels:
        run, _, model = label.partition(MARK)
        baseline, first = run + MARK + settings.baseline, runs[0] + MARK + model
        if label != baseline and baseline in labels:
            within.append((label, baseline))
        if run != runs[0] and first in labels:
            between.append((label, first))
    return within + between


def make_page(
    settings: CompareSettings,
    candidate: str,
    compared_folder: Path,
    evaluations: Mapping[RunKey, Path],
    names: Sequence[str],
    figures: FigureWriter,
) -> Page:
    """The page about the runs."""
    compared = read_compared(compared_folder)
    found = {run: _difference(compared, run, candidate, settings.baseline) for run in names}
    verdicts = {run: verdict(one) for run, one in found.items()}
    tone: Verdict = verdicts[names[0]] if len(set(verdicts.values())) == 1 else "open"
    share = percent(settings.confidence, 0)
    answer = Answer(
        question=f"Does the {candidate} mix beat the {settings.baseline} mix in word translation, "
        "in each run?",
        word="; ".join(f"{run}: {WORDS[verdicts[run]]}" for run in names),
        tone=tone,
        text=f"Mean Score, {candidate} minus {settings.baseline}, with {share} intervals over the "
        "concepts: "
        + listing([f"{difference_text(one)} in {run}" for run, one in found.items()])
        + ".",
        cautions=(
            "The differences are of the items that both models have. Runs may differ in more than "
            "one setting: their lineage says in which (`pivots lineage RUN/report`).",
        ),
        figure=None,
    )
    shown = {run: difference_text(one).partition(" ") for run, one in found.items()}
    cards = tuple(
        Card(run, value, f"{candidate} minus {settings.baseline} {bounds}", strong=True)
        for run, (value, _, bounds) in shown.items()
    )
    return Page(
        title="Runs side by side",
        subtitle=f"{plural(len(names), 'run')}: {listing(list(names))}.",
        facts=tuple((run, _models_of(evaluations, run)) for run in names),
        answer=answer,
        cards=cards,
        sections=(
            Section(
                id="models",
                title="Models",
                reads="Score is above 0 if the right source word makes the target more likely than "
                "wrong ones do. Intervals of two models may overlap although their paired "
                "difference is clear: judge by the differences below.",
                limits="How much another training seed would move a model that has one only.",
                blocks=(_model_table(compared_folder, share),),
            ),
            Section(
                id="differences",
                title="Differences",
                reads="Each model minus the baseline of its own run, then minus the model of the "
                "same name in the first run, on the items that both have.",
                limits="Why runs differ.",
                blocks=tuple(comparison_blocks(compared, figures, heatmaps=True)),
            ),
            Section(
                id="lineage",
                title="Lineage",
                reads="The evaluations by the hash of their manifests; equal hashes mean equal "
                "results.",
                limits="The machine and the time, which are in each stage's run.json.",
                blocks=_lineage(evaluations, names),
            ),
        ),
        footer="Made by `pivots compare`. The tables are beside it in compare/, as Parquet.",
    )


def _difference(compared: Compared, run: str, candidate: str, baseline: str) -> Estimate:
    rows = compared.comparisons
    chosen = rows[
        (rows["level"] == "model") & (rows["measure"] == "score")
        & (rows["model"] == run + MARK + candidate) & (rows["reference"] == run + MARK + baseline)
    ]  # fmt: skip
    if chosen.empty:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    row = chosen.iloc[0]
    return Estimate(row["difference"], row["low"], row["high"], int(row["n_items"]))


def _models_of(evaluations: Mapping[RunKey, Path], run: str) -> str:
    labels = [label for label, _ in evaluations if label.startswith(run + MARK)]
    return listing([label.removeprefix(run + MARK) for label in dict.fromkeys(labels)])


def _model_table(folder: Path, share: str) -> Table:
    columns = (
        Column("model"), Column("seed", "num"), Column("items", "num"), Column("Score", "num"),
        Column("accuracy", "num"), Column("mean reciprocal rank", "num"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for model in read_json(folder / "summary.json")["models"]:
        shown = [_mean_text(model[measure]) for measure in ("score", "accuracy", "mrr")]
        rows.append((model["model"], str(model["seed"]), count(model["n_items"]), *shown))
    caption = f"Every evaluated model, with {share} intervals over its own items."
    return Table(caption, columns, tuple(rows), tall=len(rows) > 20)


def _mean_text(record: Mapping[str, float | None]) -> str:
    mean, low, high = (record[key] for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return number(mean)
    return interval(mean, low, high)


def _lineage(evaluations: Mapping[RunKey, Path], names: Sequence[str]) -> tuple[Block, ...]:
    rows = tuple(
        (label, str(seed), sha256_file(folder / MANIFEST)[:12])
        for (label, seed), folder in evaluations.items()
    )
    columns = (Column("model"), Column("seed", "num"), Column("manifest of evaluate", "code"))
    text = shlex.join(["pivots", "compare", *names, "--out", "COMPARISON"])
    return (
        Table("What was compared.", columns, rows, tall=len(rows) > 20),
        Code("To make it again", text),
    )
