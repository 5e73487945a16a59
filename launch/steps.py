"""What a launch consists of: one step a stage, with the stages that it has to wait for."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from launch.config import STAGES
from launch.pipeline import Plan, select_jobs

Reads = Mapping[str, tuple[str, ...]]
# Stage -> the stages whose folders it reads.
READS: Reads = {
    "world": (),
    "tokenizer": ("world",),
    "tokenize": ("world", "tokenizer"),
    "count": ("tokenize", "tokenizer"),
    "words": ("world", "tokenize", "tokenizer"),
    "pivots": ("count", "tokenize"),
    "score": ("tokenize", "pivots"),
    "mix": ("world", "tokenizer", "tokenize", "score"),
    "train": ("world", "mix"),
    "evaluate": ("world", "words", "train"),
    "compare": ("evaluate",),
    "sentences": ("train",),
    "trace": ("world", "words", "count", "train"),
    "intervene": ("world", "words", "count", "train", "trace"),
    "attribute": ("words", "evaluate", "trace"),
    "report": tuple(stage for stage in STAGES if stage != "report"),
}
# Stages that divide their work into tasks, which the engine of the configuration runs.
TASK_STAGES = ("tokenize", "count", "words", "pivots", "score", "mix")


@dataclass(frozen=True)
class Step:
    """One stage to run.

    `after` are the stages to wait for; `members` what `only` calls the arms and models that can be
    worked on at the same time (ARM/SEED), empty where the stage is one piece.
    """

    stage: str
    after: tuple[str, ...]
    members: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of its script, without suffix: numbered, so that a listing is in order."""
        return f"{list(STAGES).index(self.stage) + 1:02d}-{self.stage}"


def find_steps(plan: Plan, stage: str | None) -> list[Step]:
    """The steps of a stage alone, or of the whole chain, in an order in which they can run."""
    jobs = plan.jobs() if stage is None else select_jobs(plan, stage)
    stages = list(dict.fromkeys(job.stage for job in jobs))
    reads = dict(READS)
    if plan.config.engine.kind == "slurm":
        # Each holds a core while it waits for its tasks: two may leave none for these.
        for before, stage_after in itertools.pairwise(TASK_STAGES):
            reads[stage_after] = (*reads[stage_after], before)
    return [Step(one, _after(one, stages, reads), _members(plan, one)) for one in stages]


def _after(stage: str, stages: Collection[str], reads: Reads) -> tuple[str, ...]:
    """Those of `stages` to wait for: done, they leave nothing undone that `stage` reads."""
    before = [one for one in stages if one in _ancestors(stage, reads)]
    implied = {other for one in before for other in _ancestors(one, reads)}
    return tuple(one for one in before if one not in implied)


def _ancestors(stage: str, reads: Reads) -> set[str]:
    """The stages that a stage reads, directly or through others."""
    return set(reads[stage]).union(*(_ancestors(one, reads) for one in reads[stage]))


def _members(plan: Plan, stage: str) -> tuple[str, ...]:
    models = plan.models(snapshots=stage == "evaluate")
    if any("@" in name for name in plan.config.only):
        return ()  # `only` names checkpoints of a series; a series is one member
    if stage == "train":
        jobs = select_jobs(plan, "train")
        names = ["/".join(job.name.split("/")[1:]) for job in jobs]
    elif stage in ("evaluate", "sentences", "trace", "intervene", "attribute"):
        if stage == "evaluate" and any(model.series is not None for model in models):
            return ()  # it draws the whole series at its end
        names = [f"{model.series or model.label}/{model.seed}" for model in models]
    else:
        return ()
    unique = tuple(dict.fromkeys(names))
    return unique if len(unique) > 1 else ()
