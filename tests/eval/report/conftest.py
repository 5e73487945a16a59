"""Writes the finished stage folders of a small run, in the schemas of the real stages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.report_data import ReportInputs
from tests.eval.report.corpus_stages import CorpusStages
from tests.eval.report.model_stages import ModelStages
from tests.eval.report.run_plan import RunPlan


def build_run(root: Path, plan: RunPlan) -> ReportInputs:
    """Write all folders of `plan` under `root`."""
    CorpusStages(root, plan).mining()
    builder = ModelStages(root, plan)
    keys = list(itertools.product(plan.arms, plan.seeds))
    stages: dict[str, dict[tuple[str, int], Path]] = {}
    for stage, wanted in (
        ("train", plan.trained),
        ("evaluate", plan.evaluated),
        ("sentences", plan.translated),
        ("trace", plan.traced),
        ("intervene", plan.traced),
        ("attribute", plan.attributed),
    ):
        write = getattr(builder, stage)
        stages[stage] = {key: write(*key) for key in keys} if wanted else {}
    singles = ("tokenizer", "tokenize", "count", "words", "pivots", "score", "mix")
    compare = builder.compare(keys) if plan.compared else None
    return ReportInputs(
        **{s: root / s for s in singles}, task=root / "task.yaml", compare=compare, **stages
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ReportInputs]:
    """A function that builds the run of a RunPlan with the given fields, once each."""
    made: dict[str, ReportInputs] = {}

    def build(**fields: object) -> ReportInputs:
        plan = RunPlan(**fields)  # type: ignore[arg-type]
        if repr(plan) not in made:
            made[repr(plan)] = build_run(tmp_path_factory.mktemp("run") / "run", plan)
        return made[repr(plan)]

    return build
