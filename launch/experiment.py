"""The command `pivots experiment`: arms and seeds in parallel, then one page about them.

Each seed is a run of its own (seeds/K), in a process of its own; what is finished is not done
again.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
import shlex
import threading
import typing
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from launch.config import RunConfig, parse_config, save_config, shipped, wandb_settings
from mining.common.errors import PivotsError, SettingsError, TaskError
from mining.common.logs import log, progress, setup_logging
from mining.mix_settings import PLANTED_ARMS, Arm
from training.settings import snapshot_folder

USAGE = """\
usage: pivots experiment world [--config FILE] [--out FOLDER] [--seeds "[0, 1, ...]"] ...
       pivots experiment text  [--config FILE] [--corpus.path FOLDER] [--seeds ...] ...

world: the claim under controls. Does a mix rich in pivots raise word translation at equal budget,
and is it the pivots' tie between the languages that does it? Generates a world for each seed, mines
it, trains the arms (random, pivot, low-pivot, oracle, broken-pivot), and compares them over the
seeds. text: the same question of a real corpus, mined once, without the arms that know what was
planted; with an estimate of how many seeds or tokens an answer would take.

Ends with the conclusion and the path of a page. Stop it whenever you like: the same command goes
on from there. Other arms are other mixes, so that all models are trained again.

  --config FILE        configs/experiment/world.yaml and real.yaml are what the pages are about;
                       further files change them (hubs.yaml, twice.yaml ...: docs/EXPERIMENT.md),
                       further settings are as for `pivots run` (--mix.budget_tokens ...)
  --engine.workers N   seeds at work at the same time (default: one a core)
  --experiment.vary    world: settings to vary, for curves of dose and response: see
                       configs/experiment/dose.yaml
"""
PRIMARY_ARMS: tuple[Arm, ...] = ("random", "pivot", "broken-pivot")
MINED = ("tokenizer", "tokenize", "count", "words", "pivots", "score")
TRAINED = ("mix", "train", "evaluate")
# What a dose is made for; the layers are looked at once.
DOSED = ("world", *MINED, *TRAINED)
WHOLE = (*DOSED, "trace", "intervene", "attribute")


def experiment(arguments: Sequence[str]) -> int:
    """Run `pivots experiment` on its command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help") or "--help" in arguments:
        print(USAGE)
        return 0 if arguments else 2
    kinds = {"world": world_experiment, "text": text_experiment}
    if arguments[0] not in kinds:
        raise SettingsError(f"experiment: found '{arguments[0]}', expected {' or '.join(kinds)}")
    config = parse_config(arguments[1:], "experiment")
    if not any(argument.startswith("--config") for argument in arguments):
        name = {"world": "world", "text": "real"}[arguments[0]]
        raise SettingsError(
            f"experiment: found no settings; give --config {shipped(f'experiment/{name}.yaml')}"
        )
    if missing := sorted({"pivot", "random"} - set(config.mix.arms)):
        raise SettingsError(f"mix.arms: found no {' and '.join(missing)}, which are compared")
    # The resolved settings: what was given on the command line is in them.
    command = shlex.join(
        ["pivots", "experiment", arguments[0], "--config", f"{config.out}/config.yaml"]
    )
    conclusion = kinds[arguments[0]](config, command)
    print(conclusion)
    print(f"report: {(Path(config.out) / 'experiment' / 'report.html').resolve()}")
    return 0


def world_experiment(config: RunConfig, command: str) -> str:
    """Run the arms and seeds of a generated world, and the doses; returns the conclusion."""
    if config.corpus.path is not None:
        raise SettingsError(
            f"corpus.path: found {config.corpus.path}, expected null: the experiment generates its "
            "worlds, one a seed; `pivots experiment text` takes a corpus"
        )
    out, workers = Path(config.out), config.engine.worker_count()
    doses = {
        (key, value): dose_config(config, key, value)
        for key, values in config.experiment.vary.items()
        for value in values
    }
    save_config(config, out / "config.yaml")
    run_seeds([seed_config(config, seed) for seed in config.seeds], WHOLE, workers)
    varied = [
        dose_seed_config(config, dose, key, seed)
        for (key, _), dose in doses.items()
        for seed in config.seeds
    ]
    if varied:
        run_seeds(varied, DOSED, workers)

    from eval.experiment import run_experiment
    from eval.experiment_stats import SeedRun

    def runs(of: RunConfig) -> list[SeedRun]:
        return [SeedRun(Path(seed_config(of, seed).out), seed) for seed in config.seeds]

    return run_experiment(
        config.experiment, out / "experiment", runs(config), config.mix.arms,
        {
            **{(key, value_of(config, key)): runs(config) for key in config.experiment.vary},
            **{key: runs(one) for key, one in doses.items()},
        },
        command,
    )  # fmt: skip


def text_experiment(config: RunConfig, command: str) -> str:
    """Mine a corpus once, run the arms and seeds on it; returns the conclusion."""
    if config.corpus.path is None:
        raise SettingsError(
            "corpus.path: found null, expected a folder of documents; `pivots experiment world` "
            "generates its own"
        )
    if config.experiment.vary:
        raise SettingsError("experiment.vary: found settings, expected none for real text")
    if planted := [arm for arm in config.mix.arms if arm in PLANTED_ARMS]:
        raise SettingsError(
            f"mix.arms: found {', '.join(planted)}, which know what a generated world planted; a "
            "corpus has no such arm"
        )
    from launch.pipeline import Plan, refuse_inner_output
    from launch.watch import Watch

    refuse_inner_output(config)
    out, plan, watch = Path(config.out), Plan(config), Watch(config)
    save_config(config, out / "config.yaml")
    for job in plan.jobs():
        if job.stage in MINED:
            log.info("experiment: %s", job.name)
            job.run()
            watch.stage(job)
    watch.close()
    mined = {stage: str(plan.folder(stage)) for stage in MINED}
    seeds = [seed_config(config, seed) for seed in config.seeds]
    shared = [dataclasses.replace(one, inputs={**one.inputs, **mined}) for one in seeds]
    run_seeds(shared, TRAINED, config.engine.worker_count())

    from eval.experiment_stats import SeedRun
    from eval.experiment_text import run_text_experiment

    runs = [SeedRun(Path(one.out), seed) for one, seed in zip(seeds, config.seeds, strict=True)]
    train = config.train
    step_tokens = train.global_batch_sequences * train.sequence_length
    snapshots = {
        step * step_tokens: f"@{Path(snapshot_folder(step)).name}" for step in train.snapshots
    }
    return run_text_experiment(
        config.experiment, out / "experiment", runs, config.mix.arms, snapshots,
        plan.folder("words"), command,
    )  # fmt: skip


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
    group = f"{wandb_settings(config).group} {key}={whole}"
    wandb = dataclasses.replace(changed.wandb, group=group)
    return dataclasses.replace(changed, out=str(folder), mix=arms, wandb=wandb)


def dose_seed_config(config: RunConfig, dose: RunConfig, key: str, seed: int) -> RunConfig:
    """One seed of a dose; what a setting of mix or later leaves alone is the experiment's own."""
    own = seed_config(dose, seed)
    if key.split(".")[0] not in TRAINED:
        return own
    root = Path(seed_config(config, seed).out)
    shared = {stage: str(root / stage) for stage in ("world", *MINED)}
    return dataclasses.replace(own, inputs={**shared, **own.inputs})


def value_of(config: RunConfig, key: str) -> float:
    """The value of a setting by its dotted name; NaN where it is null."""
    value: Any = functools.reduce(getattr, key.split("."), config)
    return math.nan if value is None else float(value)


def _changed(settings: Any, path: Sequence[str], key: str, value: float) -> Any:
    known = {field.name for field in dataclasses.fields(settings)}
    inner = getattr(settings, path[0], None)
    if path[0] not in known or (len(path) > 1) != dataclasses.is_dataclass(inner):
        raise SettingsError(f"experiment.vary: found '{key}', expected the name of a setting")
    if len(path) > 1:
        return dataclasses.replace(settings, **{path[0]: _changed(inner, path[1:], key, value)})
    # A null says nothing of what may stand there.
    types = typing.get_type_hints(type(settings))[path[0]]
    numbers = {int, float} & ({types} | set(typing.get_args(types)))
    if not numbers:
        raise SettingsError(f"experiment.vary: '{key}' is no number, so it has no doses")
    if numbers == {int} and not isinstance(value, int):
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


def run_seeds(configs: Sequence[RunConfig], stages: Sequence[str], workers: int) -> None:
    """Run these stages of seeds, `workers` at a time. The first error stops the others."""
    # Each seed has one core: two seeds with two threads each would be in each other's way.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    size = min(workers, len(configs))
    with (
        ProcessPoolExecutor(size, mp_context=context, initializer=_follow_owner) as pool,
        progress("experiment", len(configs), "seeds") as ticker,
    ):
        folder_of = {pool.submit(run_seed, config, stages): config.out for config in configs}
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


def _follow_owner() -> None:
    """End this process with the command that started it, even where that was killed.

    It would go on to write where the same command, started again, writes too.
    """

    def follow() -> None:
        owner = multiprocessing.parent_process()
        assert owner is not None
        owner.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_seed(config: RunConfig, stages: Sequence[str]) -> None:
    """Some stages of one seed and, with its layers, how well mining found what was planted."""
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
    for job in plan.jobs():
        if job.stage in stages:
            job.run()
            watch.stage(job)
    watch.close()
    if stages == WHOLE:
        run_judge(
            config.pivots, config.mix, root / "judge", plan.folder("world"), plan.folder("count"),
            plan.folder("tokenize"), plan.folder("score"), plan.folder("tokenizer"), config.seed,
        )  # fmt: skip
