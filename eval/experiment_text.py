"""`pivots experiment text`: the arms of a real corpus compared over seeds, and a page about it.

Each seed draws the mixes, trains and evaluates; what is mined from the corpus they share. The
primary endpoint was fixed before any run: the accuracy among ten over all items asked, mean over
the directions, pivot minus random, paired over the seeds. Everything else is secondary: Score, the
low-pivot arm, and the items apart by whether some document holds both words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from eval.experiment_results import results_text
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import MEASURES, SeedRun, differences, effect
from eval.experiment_tables import estimate_cells
from eval.experiment_text_page import make_page
from eval.experiment_text_stats import (
    ALL,
    MEANINGS,
    TextCells,
    TextFindings,
    conclude_text,
    find_trend,
    read_text_cells,
)
from eval.report_figures import FigureWriter
from eval.report_page import render
from mining.common.errors import InputError
from mining.common.files import read_json, write_json, write_text
from mining.common.logs import log
from mining.common.manifest import read_manifest
from mining.common.shards import write_table
from mining.common.stage import Input, StageInput, begin, settings_dict

CONTRASTS = (("pivot", "random"), ("pivot", "low-pivot"), ("random", "low-pivot"))


def run_text_experiment(
    settings: ExperimentSettings,
    out: Path,
    runs: Sequence[SeedRun],
    arms: Sequence[str],
    snapshots: Mapping[int, str],
    words: Path,
    command: str,
) -> str:
    """Compare the arms over the seeds; returns the conclusion.

    `snapshots`: tokens seen -> what is behind an arm's name in the label of its models then;
    `words`: the stage's folder; `command`: what made all this, for the page.

    Writes report.html, results.md, figures/, summary.json, and as Parquet cells, effects and
    budgets (the primary effect by tokens seen and seed). Raises InputError where an arm or a stage
    is missing.
    """
    for needed in CONTRASTS[0]:
        if needed not in arms:
            raise InputError(f"experiment: found the arms {', '.join(arms)}, expected '{needed}'")
    inputs: dict[str, Input] = {"words": StageInput(words, "words")}
    for run in runs:
        inputs[f"{run.seed}/mix"] = StageInput(run.root / "mix", "mix")
        for arm in arms:
            train = run.folders("train", [arm])[arm, run.seed]
            inputs[f"{run.seed}/train/{arm}"] = StageInput(train, "train")
        for name in (arm + suffix for suffix in ("", *snapshots.values()) for arm in arms):
            folder = run.folders("evaluate", [name])[name, run.seed]
            inputs[f"{run.seed}/evaluate/{name}"] = StageInput(folder, "evaluate")
    record = {**settings_dict(settings), "arms": list(arms), "seeds": [run.seed for run in runs]}
    started = begin("experiment", out, record, inputs)
    if started is None:
        return str(read_json(out / "summary.json")["conclusion"])
    found = compute(settings, runs, arms, snapshots, words)
    page = make_page(settings, found, FigureWriter(out / "figures"), command)
    write_text(out / "report.html", render(page))
    write_text(out / "results.md", results_text(page, command))
    budgets = [
        {"tokens": tokens, "seed": seed, "difference": gap}
        for tokens, by_seed in found.at.items()
        for seed, gap in by_seed.items()
    ]
    tables = {
        "cells": pa.Table.from_pandas(found.cells.table, preserve_index=False),
        "effects": pa.Table.from_pylist([one.record() for one in found.effects]),
        "budgets": pa.Table.from_pandas(pd.DataFrame(budgets), preserve_index=False),
    }
    for name, table in tables.items():
        write_table(out / f"{name}.parquet", table)
    trend = found.trend
    summary = {
        "conclusion": found.conclusion,
        "verdict": found.verdict,
        "primary": found.primary.record(),
        "accuracy": {arm: found.estimates["accuracy", arm, ALL].mean for arm in arms},
        "chance": found.cells.chance,
        "items": dict(found.cells.items),
        "tokens_needed": trend and trend.tokens_needed,
        "seeds": [run.seed for run in runs],
    }
    write_json(out / "summary.json", summary)
    log.info("experiment: %s", found.conclusion)
    started.finish({"seeds": len(runs), "arms": len(arms), "verdict": found.verdict})
    return found.conclusion


def compute(
    settings: ExperimentSettings,
    runs: Sequence[SeedRun],
    arms: Sequence[str],
    snapshots: Mapping[int, str],
    words: Path,
) -> TextFindings:
    """All numbers of the page."""

    def cells_of(suffix: str) -> TextCells:
        folders = {
            (arm, run.seed): run.folders("evaluate", [arm + suffix])[arm + suffix, run.seed]
            for run in runs
            for arm in arms
        }
        return read_text_cells(folders, words)

    cells = cells_of("")
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(arms)]
    effects = [
        effect(cells.table, arm, other, cell, measure, settings.confidence, settings.power)
        for arm, other in contrasts
        for cell in MEANINGS
        for measure in MEASURES
    ]
    primary = effects[0]
    training = read_manifest(runs[0].folders("train", ["pivot"])["pivot", runs[0].seed], "train")
    at = {tokens: cells_of(suffix).table for tokens, suffix in sorted(snapshots.items())}
    # A snapshot of the last step is the final model.
    at[int(training.counts["tokens"])] = cells.table
    trend = find_trend(at, primary, settings.confidence, settings.power)
    estimates = estimate_cells(cells.table, MEASURES, arms, list(MEANINGS), settings.confidence)
    verdict, conclusion = conclude_text(
        primary, {arm: estimates["accuracy", arm, ALL] for arm in arms}, trend, cells.chance,
        settings.confidence, settings.power,
    )  # fmt: skip
    evaluation = runs[0].folders("evaluate", ["pivot"])["pivot", runs[0].seed]
    return TextFindings(
        arms=tuple(arms),
        runs={run.seed: run.root for run in runs},
        cells=cells,
        estimates=estimates,
        effects=effects,
        primary=primary,
        verdict=verdict,
        conclusion=conclusion,
        trend=trend,
        at={
            tokens: differences(table, *CONTRASTS[0], ALL, primary.measure)
            for tokens, table in at.items()
        },
        training=training.counts,
        mixes=read_json(runs[0].root / "mix" / "arms.json"),
        n_documents=int(read_manifest(words, "words").counts["documents"]),
        asked=read_manifest(evaluation, "evaluate").settings,
    )
