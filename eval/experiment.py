"""`pivots experiment`: the arms of a generated world compared over seeds, and a page about it.

Each seed is a finished chain in a folder of its own. The primary endpoints were fixed before any
run: the accuracy among ten on held-out concepts with pivots and without direct co-occurrence (cell
p1c0), pivot minus random and pivot minus broken-pivot, paired over seeds. The cells without pivots
are the negative control. Everything else is secondary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from eval.experiment_doses import Varied, find_doses
from eval.experiment_findings import CONTRASTS, CONTROL, PRIMARY, PRIMARY_ARMS, Findings
from eval.experiment_layers import read_ablations, read_aucs, read_layers
from eval.experiment_page import make_page
from eval.experiment_results import results_text
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import MEASURES, Effect, SeedRun, conclude, effect, read_cells
from eval.experiment_tables import estimate_cells
from eval.report_figures import FigureWriter
from eval.report_page import render
from mining.common.errors import InputError
from mining.common.files import read_json, write_json, write_text
from mining.common.logs import log
from mining.common.shards import read_columns, write_table
from mining.common.stage import Input, StageInput, begin, settings_dict
from mining.world_plan import CELLS, TRAIN


def run_experiment(
    settings: ExperimentSettings,
    out: Path,
    runs: Sequence[SeedRun],
    arms: Sequence[str],
    doses: Varied,
    command: str,
) -> str:
    """Compare the arms over the seeds; returns the conclusion.

    `doses`: (setting, value) -> the seeds' runs with that value, which have the arms of the
    primary endpoints; `command`: what made all this, for the page.

    Writes report.html, results.md, figures/, summary.json, and as Parquet cells, effects, layers,
    ablations, mining, doses and dose_runs. Raises InputError where an arm or a stage is missing, or
    there are no cells.
    """
    for needed in CONTRASTS[0]:
        if needed not in arms:
            raise InputError(f"experiment: found the arms {', '.join(arms)}, expected '{needed}'")
    inputs: dict[str, Input] = {}
    for run in runs:
        for stage in ("evaluate", "trace", "intervene", "attribute"):
            for (arm, seed), folder in run.folders(stage, arms).items():
                inputs[f"{seed}/{stage}/{arm}"] = StageInput(folder, stage)
        for stage in ("world", "mix", "judge"):
            inputs[f"{run.seed}/{stage}"] = StageInput(run.root / stage, stage)
    for (key, value), varied in doses.items():
        for run in varied:
            place = f"{key}={value}/{run.seed}"
            inputs[f"{place}/mix"] = StageInput(run.root / "mix", "mix")
            for (arm, _), folder in run.folders("evaluate", PRIMARY_ARMS).items():
                inputs[f"{place}/evaluate/{arm}"] = StageInput(folder, "evaluate")
    record = {**settings_dict(settings), "arms": list(arms), "seeds": [run.seed for run in runs]}
    started = begin("experiment", out, record, inputs)
    if started is None:
        return str(read_summary(out)["conclusion"])
    found = compute(settings, runs, arms, doses)
    figures = FigureWriter(out / "figures")
    page = make_page(settings, found, figures, command)
    write_text(out / "report.html", render(page))
    write_text(out / "results.md", results_text(page, command))
    tables = {
        "cells": found.cells,
        "layers": found.layers,
        "ablations": found.ablations,
        "mining": found.mining,
        "doses": found.doses.effects,
        "dose_runs": found.doses.runs,
    }
    for name, table in tables.items():
        write_table(out / f"{name}.parquet", pa.Table.from_pandas(table, preserve_index=False))
    rows = [one.record() for one in found.effects]
    write_table(out / "effects.parquet", pa.Table.from_pylist(rows))
    summary = {
        "conclusion": found.conclusion,
        "verdict": found.verdict,
        "primary": [one.record() for one in found.primary],
        "seeds": [run.seed for run in runs],
    }
    write_json(out / "summary.json", summary)
    log.info("experiment: %s", found.conclusion)
    started.finish({"seeds": len(runs), "arms": len(arms), "verdict": found.verdict})
    return found.conclusion


def read_summary(out: Path) -> dict[str, object]:
    """summary.json of a finished experiment."""
    summary: dict[str, object] = read_json(out / "summary.json")
    return summary


def compute(
    settings: ExperimentSettings, runs: Sequence[SeedRun], arms: Sequence[str], doses: Varied
) -> Findings:
    """All numbers of the page."""

    def folders(stage: str) -> dict[tuple[str, int], Path]:
        return {key: path for run in runs for key, path in run.folders(stage, arms).items()}

    cells = read_cells(folders("evaluate"))
    order = [cell for cell in (*CELLS, TRAIN) if cell in set(cells["cell"])]
    if PRIMARY not in order:
        raise InputError(
            f"experiment: no item of the cell {PRIMARY}, which the endpoints are about"
        )
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(arms)]
    effects = [
        effect(cells, arm, reference, cell, measure, settings.confidence, settings.power)
        for arm, reference in contrasts
        for cell in order
        for measure in MEASURES
    ]
    primary = [
        one for one in effects
        if (one.arm, one.reference) in CONTRASTS[:2]
        and (one.cell, one.measure) == (PRIMARY, "accuracy")
    ]  # fmt: skip
    control = _find(effects, *CONTRASTS[0], CONTROL)
    broken = primary[1] if len(primary) > 1 else None
    twice = _find(effects, "pivot", "random-twice", PRIMARY)
    gain = _find(effects, "broken-pivot", "random", PRIMARY)
    verdict, conclusion = conclude(primary[0], broken, control, twice, gain)
    layers = read_layers(folders("trace"))
    return Findings(
        arms=tuple(arms),
        cell_order=tuple(order),
        runs={run.seed: run.root for run in runs},
        cells=cells,
        estimates=estimate_cells(cells, MEASURES, arms, order, settings.confidence),
        effects=effects,
        primary=primary,
        verdict=verdict,
        conclusion=conclusion,
        doses=find_doses(settings, doses, runs),
        ablations=read_ablations(folders("intervene"), folders("trace")),
        layers=layers.merge(read_aucs(folders("attribute")), on=["arm", "seed"]),
        mining=pd.concat(
            [
                read_columns(run.root / "judge" / "definitions.parquet")
                .to_pandas()
                .assign(seed=run.seed)
                for run in runs
            ],
            ignore_index=True,
        ),
    )


def _find(effects: Sequence[Effect], arm: str, reference: str, cell: str) -> Effect | None:
    key = (arm, reference, cell, "accuracy")
    return next((e for e in effects if (e.arm, e.reference, e.cell, e.measure) == key), None)
