"""The chain: which stages a configuration asks for, in order, with their folders and inputs."""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.config import STAGES, RunConfig, wandb_settings
from launch.series import checkpoints, split_revision
from mining.common.errors import InputError, SettingsError
from mining.common.manifest import MANIFEST
from mining.corpus_files import holds
from mining.settings import CorpusSettings
from training.settings import snapshot_folder

DEFAULT_TASK = "words"


@dataclass(frozen=True)
class Job:
    """One stage to run: `name` is the stage, with arm and seed where it is run for each."""

    stage: str
    name: str
    folder: Path
    run: Callable[[], None]


@dataclass(frozen=True)
class Model:
    """A model to evaluate: trained by the run (arm and seed) or named in the configuration.

    A checkpoint of a `series` (an arm's snapshots, or an entry of `models` that names several) has
    its training `step` and the label SERIES@CHECKPOINT.
    """

    label: str
    seed: int
    source: str
    revision: str | None
    series: str | None = None
    step: int | None = None


class Plan:
    """The jobs of a configuration."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.root = Path(config.out)
        self.generated = config.corpus.path is None

    def jobs(self) -> list[Job]:
        """All jobs in an order in which each finds its inputs done."""
        found = []
        for stage in STAGES:
            if stage == "world" and not self.generated:
                continue
            if stage == "sentences" and self.config.sentences.path is None:
                continue
            if stage in self.config.inputs:
                continue  # somebody's finished folder: read, never written
            found.extend(getattr(self, f"_{stage}")())
        return found

    def folder(self, stage: str) -> Path:
        """The folder in which a stage's output is, or will be."""
        return Path(self.config.inputs.get(stage, self.root / stage))

    @property
    def corpus(self) -> CorpusSettings:
        """The corpus, with the generated world's folder filled in."""
        if not self.generated:
            return self.config.corpus
        path = str(self.folder("world") / "documents")
        return dataclasses.replace(self.config.corpus, path=path)

    @property
    def task(self) -> Path:
        """The task file."""
        name = self.config.task
        if name is None and self.generated:
            return self.folder("world") / "task.yaml"
        return find_task(name or DEFAULT_TASK)

    def models(self, snapshots: bool = True) -> list[Model]:
        """The models to evaluate: each arm with each seed, those named, and the arms' snapshots.

        Raises SettingsError where two have one label, or `only` names a checkpoint that is not
        there.
        """
        config, train = self.config, self.folder("train")
        runs = [(arm, seed) for arm in config.mix.arms for seed in config.seeds]
        found = [Model(arm, s, str(train / arm / str(s) / "model"), None) for arm, s in runs]
        for label, source in config.models.items():
            seed, members = config.seeds[0], checkpoints(label, source)
            found += [
                Model(f"{label}@{one.name}", seed, one.source, one.revision, label, one.step)
                for one in members
            ] or [Model(label, seed, *split_revision(source))]
        for step, (arm, s) in itertools.product(config.train.snapshots, runs):
            folder = snapshot_folder(step)
            label = f"{arm}@{Path(folder).name}"
            found.append(Model(label, s, str(train / arm / str(s) / folder), None, arm, step))
        self._check_labels(found)
        return [
            model
            for model in found
            if self._wanted(model) and (snapshots or model.series not in config.mix.arms)
        ]

    def _check_labels(self, models: list[Model]) -> None:
        keys = [(model.label, model.seed) for model in models]
        twice = sorted({label for label, seed in keys if keys.count((label, seed)) > 1})
        if twice:
            raise SettingsError(f"models: two models have the name {', '.join(twice)}")
        known = set().union(*(_names(model) for model in models))
        missing = sorted(set(self.config.only) - known)
        if missing:
            raise SettingsError(
                f"only: found {', '.join(missing)}, expected some of {', '.join(sorted(known))}"
            )

    def _reported(self) -> list[Model]:
        """The models that the report shows one by one: of a series the last checkpoint only."""
        models = self.models(snapshots=False)
        last = {model.series: model.step for model in sorted(models, key=lambda m: m.step or 0)}
        return [m for m in models if m.series is None or m.step == last[m.series]]

    def _folders(self, stage: str, models: list[tuple[str, int]]) -> dict[tuple[str, int], Path]:
        return {(label, seed): self.folder(stage) / label / str(seed) for label, seed in models}

    def _wanted(self, model: Model) -> bool:
        return not self.config.only or not _names(model).isdisjoint(self.config.only)

    def _job(self, stage: str, run: Callable[[Path], None], *parts: str) -> Job:
        folder = self.folder(stage).joinpath(*parts)
        return Job(stage, "/".join((stage, *parts)), folder, lambda: run(folder))

    # One method a stage: yields its jobs, imports its code only when the job runs.

    def _world(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.world import run_world

            run_world(self.config.world, out, self.config.seed)

        yield self._job("world", run)

    def _tokenizer(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.train_tokenizer import run_tokenizer

            run_tokenizer(self.config.tokenizer, self.corpus, out, self.config.seed)

        yield self._job("tokenizer", run)

    def _tokenize(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.tokenize import run_tokenize

            config = self.config
            run_tokenize(config.tokenize, self.corpus, out, self.folder("tokenizer"), config.engine)

        yield self._job("tokenize", run)

    def _count(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.count import run_count

            tokens, tokenizer = self.folder("tokenize"), self.folder("tokenizer")
            run_count(self.config.count, out, tokens, tokenizer, self.config.engine)

        yield self._job("count", run)

    def _words(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.words import run_words

            config = self.config
            tokens, tokenizer = self.folder("tokenize"), self.folder("tokenizer")
            run_words(
                config.words, out, self.corpus, tokens, tokenizer, self.task, config.engine,
                config.seed,
            )  # fmt: skip

        yield self._job("words", run)

    def _pivots(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.pivots import run_pivots

            run_pivots(
                self.config.pivots, out, self.folder("count"), self.folder("tokenize"),
                self.config.engine,
            )  # fmt: skip

        yield self._job("pivots", run)

    def _score(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.score import run_score

            tokens, pivots = self.folder("tokenize"), self.folder("pivots")
            run_score(self.config.score, out, tokens, pivots, self.config.engine)

        yield self._job("score", run)

    def _mix(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from mining.mix import run_mix

            config = self.config
            tokens, score = self.folder("tokenize"), self.folder("score")
            run_mix(
                config.mix, out, self.corpus, tokens, score, self.folder("tokenizer"),
                config.engine, config.seed, self.folder("world") if self.generated else None,
            )  # fmt: skip

        yield self._job("mix", run)

    def _train(self) -> Iterator[Job]:
        for arm in self.config.mix.arms:
            for seed in self.config.seeds:
                if self._wanted(Model(arm, seed, "", None)):
                    yield self._job("train", self._train_run(arm, seed), arm, str(seed))

    def _train_run(self, arm: str, seed: int) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            from training.train import run_train

            config = self.config
            live = None
            if config.train.score_every is not None:
                from eval.live_score import LiveScore

                items = config.train.score_items
                live = LiveScore(config.evaluate, self.task, items, config.seed)
            run_train(
                config.train, wandb_settings(config), out, self.folder("mix"), arm, seed, live
            )

        return run

    def _evaluate(self) -> Iterator[Job]:
        for model in self.models():
            yield self._job("evaluate", self._evaluate_run(model), model.label, str(model.seed))

    def _evaluate_run(self, model: Model) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            from eval.evaluate import run_evaluate

            settings = self.config.evaluate
            counted = settings.min_doc_freq is not None or bool(settings.frequency_bands)
            words = self.folder("words") if counted else None
            run_evaluate(
                dataclasses.replace(settings, revision=model.revision or settings.revision),
                out, model.source, self.task, words, self.config.seed,
                {"arm": model.label, "seed": model.seed},
            )  # fmt: skip

        return run

    def _compare(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from eval.compare import Member, run_compare

            models = self.models()
            folders = self._folders("evaluate", [(model.label, model.seed) for model in models])
            members = {
                (model.label, model.seed): Member(model.series, model.step)
                for model in models
                if model.series is not None and model.step is not None
            }
            run_compare(self.config.compare, out, folders, members, self.config.seed)

        if self.models():
            yield self._job("compare", run)

    def _sentences(self) -> Iterator[Job]:
        for model in self.models(snapshots=False):
            yield self._job("sentences", self._sentences_run(model), model.label, str(model.seed))

    def _sentences_run(self, model: Model) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            from eval.sentences import run_sentences

            settings = self.config.sentences
            run_sentences(
                dataclasses.replace(settings, revision=model.revision or settings.revision),
                out, model.source, self.config.seed, {"arm": model.label, "seed": model.seed},
            )  # fmt: skip

        return run

    def _trace(self) -> Iterator[Job]:
        for model in self.models(snapshots=False):
            yield self._job("trace", self._trace_run(model), model.label, str(model.seed))

    def _trace_run(self, model: Model) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            from eval.trace import run_trace

            settings = self.config.trace
            run_trace(
                dataclasses.replace(settings, revision=model.revision or settings.revision),
                out, model.source, self.task, self._finished("words"), self.config.seed,
                {"arm": model.label, "seed": model.seed}, self._finished("count"),
            )  # fmt: skip

        return run

    def _intervene(self) -> Iterator[Job]:
        for model in self.models(snapshots=False):
            yield self._job("intervene", self._intervene_run(model), model.label, str(model.seed))

    def _intervene_run(self, model: Model) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            from eval.intervene import run_intervene

            settings = self.config.intervene
            run_intervene(
                dataclasses.replace(settings, revision=model.revision or settings.revision),
                out, self.folder("trace") / model.label / str(model.seed), model.source, self.task,
                self._finished("words"), self.config.seed,
                {"arm": model.label, "seed": model.seed}, self._finished("count"),
            )  # fmt: skip

        return run

    def _finished(self, stage: str) -> Path | None:
        """A stage's folder where it is done: people trace models without a corpus too."""
        folder = self.folder(stage)
        return folder if (folder / MANIFEST).is_file() else None

    def _attribute(self) -> Iterator[Job]:
        for model in self.models(snapshots=False):
            yield self._job("attribute", self._attribute_run(model), model.label, str(model.seed))

    def _attribute_run(self, model: Model) -> Callable[[Path], None]:
        def run(out: Path) -> None:
            from eval.attribute import run_attribute

            trace, evaluate = (
                self.folder(stage) / model.label / str(model.seed)
                for stage in ("trace", "evaluate")
            )
            run_attribute(
                self.config.attribute, out, trace, evaluate, self.folder("words"), self.config.seed
            )

        return run

    def _report(self) -> Iterator[Job]:
        def run(out: Path) -> None:
            from eval.report import ReportInputs, run_report

            models = [(model.label, model.seed) for model in self._reported()]
            trained = [pair for pair in models if pair[0] in self.config.mix.arms]
            translated = models if self.config.sentences.path is not None else []
            inputs = ReportInputs(
                tokenizer=self.folder("tokenizer"),
                tokenize=self.folder("tokenize"),
                count=self.folder("count"),
                words=self.folder("words"),
                pivots=self.folder("pivots"),
                score=self.folder("score"),
                mix=self.folder("mix"),
                train=self._folders("train", trained),
                evaluate=self._folders("evaluate", models),
                sentences=self._folders("sentences", translated),
                trace=self._folders("trace", models),
                intervene=self._folders("intervene", models),
                attribute=self._folders("attribute", models),
                compare=self.folder("compare") if models else None,
                task=self.task,
                world=self.folder("world") if self.generated else None,
                models={
                    label: "FOLDER" if Path(split_revision(source)[0]).exists() else source
                    for label, source in self.config.models.items()
                },
            )
            run_report(self.config.report, out, inputs, self.config.seed)

        yield self._job("report", run)


def refuse_inner_output(config: RunConfig) -> None:
    """Raise SettingsError where a later stage would take outputs of earlier ones for documents."""
    if any(holds(config.corpus, Path(config.out, stage)) for stage in STAGES):
        raise SettingsError(
            f"out: {config.out} lies in the corpus' folder, {config.corpus.path}, and its files "
            "would be taken for documents; choose a folder outside, or a corpus.glob that does not "
            "reach it"
        )


def _names(model: Model) -> set[str]:
    """What `only` may call a model."""
    names = {model.label} if model.series is None else {model.label, model.series}
    return names | {f"{name}/{model.seed}" for name in names}


def find_task(name: str) -> Path:
    """A task file by its path or, for the shipped ones, by its name."""
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(importlib.resources.files("eval") / "tasks"))
    shipped = folder / f"{name.replace('-', '_')}.yaml"
    if not shipped.is_file():
        known = sorted(p.stem.replace("_", "-") for p in folder.glob("*.yaml"))
        raise InputError(f"{name}: no such task file, nor a shipped task ({', '.join(known)})")
    return shipped


def select_jobs(plan: Plan, stage: str) -> list[Job]:
    """The jobs of one stage; SettingsError where the configuration has none."""
    jobs = [job for job in plan.jobs() if job.stage == stage]
    if not jobs:
        if stage in plan.config.inputs:
            what = f"inputs names a finished folder for it: {plan.config.inputs[stage]}"
        elif stage == "sentences" and plan.config.sentences.path is None:
            what = "no parallel sentences are given (sentences.path)"
        elif stage == "world":
            what = "the corpus has a path, so that no world is generated (corpus.path)"
        else:
            what = f"`only` leaves nothing to do: {', '.join(plan.config.only)}"
        raise SettingsError(f"{stage}: {what}")
    return jobs
