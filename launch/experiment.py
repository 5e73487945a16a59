"""The command `pivots experiment world`: arms and seeds in parallel, then one page about them.

Each seed is a run of its own (seeds/K, all stages but the report), in a process of its own; what is
finished is not done again.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from launch.config import RunConfig, parse_config, save_config, wandb_settings
from mining.common.errors import PivotsError, SettingsError, TaskError
from mining.common.logs import log, progress, setup_logging
from mining.mix_settings import Arm

USAGE = """\
usage: pivots experiment world [--config FILE] [--out FOLDER] [--seeds "[0, 1, ...]"] ...

The controlled world: does a mix rich in pivots raise word translation at equal budget, and is it
the pivots' tie between the languages that does it? Generates a world for each seed, mines it,
trains the arms (random, pivot, low-pivot, oracle, broken-pivot), and compares them over the seeds.
Ends with the conclusion and the path of a page. Stop it whenever you like: the same command goes
on from there. Other arms are other mixes, so that all models are trained again.

  --config FILE        configs/experiment/world.yaml is what the page is about; further settings
                       as for `pivots run` (--world.hubs_per_topic 3, --mix.budget_tokens ...)
  --engine.workers N   seeds at work at the same time (default: one a core)
  --experiment.vary    settings to vary, for curves of dose and response: see
                       configs/experiment/dose.yaml
"""
SKIPPED = ("report", "compare", "sentences")
PRIMARY_ARMS: tuple[Arm, ...] = ("random", "pivot", "broken-pivot")


def experiment(arguments: Sequence[str]) -> int:
    """Run `pivots experiment` on its command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help") or "--help" in arguments:
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] != "world":
        raise SettingsError(f"experiment: found '{arguments[0]}', expected 'world'")
    config = parse_config(arguments[1:], "experiment")
    if config.corpus.path is not None:
        raise SettingsError(
            f"corpus.path: found {config.corpus.path}, expected null: the experiment generates its "
            "worlds, one a seed"
        )
    out = Path(config.out)
    save_config(config, out / "config.yaml")
    if not any(argument.startswith("--config") for argument in arguments):
        raise SettingsError(
            "experiment: found no world; give --config configs/experiment/world.yaml"
        )
    doses = {
        (key, value): dose_config(config, key, value)
        for key, values in config.experiment.vary.items()
        for value in values
    }
    wanted = [seed_config(one, seed) for one in (config, *doses.values()) for seed in config.seeds]
    run_seeds(wanted, config.engine.worker_count())

    from eval.experiment import SeedRun, run_experiment

    def runs(of: RunConfig) -> list[SeedRun]:
        return [SeedRun(Path(seed_config(of, seed).out), seed) for seed in config.seeds]

    conclusion = run_experiment(
        config.experiment, out / "experiment", runs(config), config.mix.arms,
        {
            **{(key, value_of(config, key)): runs(config) for key in config.experiment.vary},
            **{key: runs(one) for key, one in doses.items()},
        },
    )  # fmt: skip
    print(conclusion)
    print(f"report: {(out / 'experiment' / 'report.html').resolve()}")
    return 0


def dose_config(config: RunConfig, key: str, value: float) -> RunConfig:
    """The experiment with one setting changed, in a folder of its own, with the primary arms.

    Raises SettingsError where `key` names no setting, or one of the wrong type.
    """
    whole: float = int(value) if float(value).is_integer() else value
    if key.split(".")[0] in ("seed", "engine", "experiment", "report"):
        raise SettingsError(f"experiment.vary: '{key}' changes no seed's run, so it has no doses")
    folder = Path(config.out) / "vary" / key / str(whole)
    changed: RunConfig = _changed(config, key.split("."), key, whole)
    arms = dataclasses.replace(changed.mix, arms=PRIMARY_ARMS)
    return dataclasses.replace(changed, out=str(folder), mix=arms)


def value_of(config: RunConfig, key: str) -> float:
    """The value of a setting by its dotted name."""
    return float(functools.reduce(getattr, key.split("."), config))  # type: ignore[arg-type]


def _changed(settings: Any, path: Sequence[str], key: str, value: float) -> Any:
    known = {field.name for field in dataclasses.fields(settings)}
    inner = getattr(settings, path[0], None)
    if path[0] not in known or (len(path) > 1) != dataclasses.is_dataclass(inner):
        raise SettingsError(f"experiment.vary: found '{key}', expected the name of a setting")
    if len(path) > 1:
        return dataclasses.replace(settings, **{path[0]: _changed(inner, path[1:], key, value)})
    if inner is None:
        raise SettingsError(f"experiment.vary: '{key}' is null; set it in the config to vary it")
    if isinstance(inner, bool) or not isinstance(inner, (int, float)):
        raise SettingsError(f"experiment.vary: '{key}' is no number, so it has no doses")
    if isinstance(inner, int) and not isinstance(value, int):
        raise SettingsError(f"experiment.vary: {key}: found {value}, expected a whole number")
    return dataclasses.replace(settings, **{path[0]: value})


def seed_config(config: RunConfig, seed: int) -> RunConfig:
    """The run of one seed, which draws the world, the mixes and the trainings."""
    return dataclasses.replace(
        config,
        out=str(Path(config.out) / "seeds" / str(seed)),
        seed=seed,
        seeds=(seed,),
        wandb=wandb_settings(config),
        engine=dataclasses.replace(config.engine, workers=1),
    )


def run_seeds(configs: Sequence[RunConfig], workers: int) -> None:
    """Run the seeds, `workers` at a time. The first error stops the others and is raised."""
    # Each seed has one core: two seeds with two threads each would be in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(min(workers, len(configs)), mp_context=context) as pool,
        progress("experiment", len(configs), "seeds") as ticker,
    ):
        folder_of = {pool.submit(run_seed, config): config.out for config in configs}
        left: set[Future[None]] = set(folder_of)
        try:
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for one in done:
                    try:
                        one.result()
                    except BrokenProcessPool:
                        raise TaskError(
                            "experiment: a seed's process was killed (out of memory?); the same "
                            "command goes on from there, with fewer engine.workers where it must"
                        ) from None
                    except PivotsError:
                        log.error("experiment: %s failed, see run.log there", folder_of[one])
                        raise
                    ticker.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def run_seed(config: RunConfig) -> None:
    """All stages of one seed, and how well its mining found what was planted."""
    from launch.pipeline import Plan
    from launch.watch import Watch
    from mining.judge import run_judge

    plan, watch = Plan(config), Watch(config)
    root = Path(config.out)
    save_config(config, root / "config.yaml")
    # Several seeds would write over each other on a terminal.
    with (root / "run.log").open("a", encoding="utf-8") as lines:
        os.dup2(lines.fileno(), 2)
    setup_logging()
    jobs = [job for job in plan.jobs() if job.stage not in SKIPPED]
    for job in jobs:
        job.run()
        watch.stage(job)
    watch.close()
    run_judge(
        config.pivots, config.mix, root / "judge", plan.folder("world"), plan.folder("count"),
        plan.folder("tokenize"), plan.folder("score"), plan.folder("tokenizer"), config.seed,
    )  # fmt: skip
