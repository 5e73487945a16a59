"""The configuration of a whole run: one YAML file, one section a stage.

Every command reads the same file, so that `pivots count --config my.yaml` does exactly what
`pivots run my.yaml` does at that point.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import sys
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eval.build_settings import BuildTaskSettings
from eval.experiment_settings import ExperimentSettings
from eval.export_settings import ExportLmEvalSettings
from eval.intervene_settings import InterveneSettings
from eval.report_settings import ReportSettings
from eval.sample_settings import SampleSettings
from eval.sentence_settings import SentencesSettings
from eval.settings import AttributeSettings, CompareSettings, EvaluateSettings, TraceSettings
from launch.config_checks import check_mappings, check_nulls, one_line
from mining.common.errors import InputError, SettingsError, check_setting
from mining.common.files import write_text
from mining.common.names import is_file_name
from mining.common.secret_words import refuse_secret_urls, refuse_secrets
from mining.common.yaml_files import parse_yaml, read_yaml
from mining.engine_settings import EngineSettings
from mining.mix_settings import MixSettings
from mining.settings import (
    CorpusSettings,
    CountSettings,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
    WorldSettings,
)
from training.settings import Duration, TrainSettings, WandbSettings


@dataclass(frozen=True)
class RunConfig:
    """A run from documents to the report.

    Attributes:
        out: folder of the run; each stage has its own folder in it.
        seed: root seed of every draw but the training seeds.
        seeds: training seeds; each arm is trained once with each.
        task: word-translation task: the name of a shipped one (words) or a path; null takes
            the world's own for a generated world, else words.
        models: further models to evaluate and trace, name -> folder or hub id (id@revision); a
            series of checkpoints is a hub id with several revisions (id@step1000,step2000), or a
            folder of them (step-100/, checkpoint-500/, ...).
        only: restrict train, evaluate, sentences, trace, intervene and attribute to these (ARM,
            ARM/SEED, a name of models, or SERIES@CHECKPOINT); empty means all.
        inputs: folders of finished stages to use in place of this run's own, stage -> folder.
        engine: where tasks run.
        corpus: the documents.
        world: the generated corpus, used where corpus.path is null.
        tokenizer: the tokenizer stage.
        tokenize: the tokenize stage.
        count: the count stage.
        words: the words stage.
        pivots: the pivots stage.
        score: the score stage.
        mix: the mix stage.
        train: the train stage.
        wandb: where every stage logs to, beside its files.
        evaluate: the evaluate stage.
        compare: the compare stage.
        sentences: the sentences stage; not run where sentences.path is null.
        trace: the trace stage.
        intervene: the intervene stage.
        attribute: the attribute stage.
        report: the report stage.
        experiment: the page of `pivots experiment`.
        build_task: the build-task command.
        export_lm_eval: the tool export-lm-eval.
        sample: the tool sample.
    """

    out: str = "runs/quickstart"
    seed: int = 0
    seeds: tuple[int, ...] = (0,)
    task: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    engine: EngineSettings = field(default_factory=EngineSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    world: WorldSettings = field(default_factory=WorldSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    tokenize: TokenizeSettings = field(default_factory=TokenizeSettings)
    count: CountSettings = field(default_factory=CountSettings)
    words: WordsSettings = field(default_factory=WordsSettings)
    pivots: PivotsSettings = field(default_factory=PivotsSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    mix: MixSettings = field(default_factory=MixSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    compare: CompareSettings = field(default_factory=CompareSettings)
    sentences: SentencesSettings = field(default_factory=SentencesSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)
    intervene: InterveneSettings = field(default_factory=InterveneSettings)
    attribute: AttributeSettings = field(default_factory=AttributeSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    experiment: ExperimentSettings = field(default_factory=ExperimentSettings)
    build_task: BuildTaskSettings = field(default_factory=BuildTaskSettings)
    export_lm_eval: ExportLmEvalSettings = field(default_factory=ExportLmEvalSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)

    def __post_init__(self) -> None:
        refuse_secret_urls(self)
        check_setting(self, "out", bool(self.out), "a folder")
        check_setting(self, "seeds", len(self.seeds) >= 1, "at least one seed")
        check_setting(self, "seeds", len(set(self.seeds)) == len(self.seeds), "no seed twice")
        check_setting(self, "seed", self.seed >= 0, "at least 0")
        unknown = sorted(set(self.inputs) - set(STAGES))
        check_setting(self, "inputs", not unknown, f"names of stages: {', '.join(STAGES)}")
        clash = sorted(set(self.models) & set(self.mix.arms))
        check_setting(self, "models", not clash, "names that no arm has")
        names_ok = all(map(is_file_name, self.models))
        check_setting(self, "models", names_ok, "names that folders may have")
        labels = (*self.mix.arms, *self.models)
        known = {*labels, *(f"{label}/{seed}" for label in labels for seed in self.seeds)}
        places = f"ARM, ARM/SEED or a model: {', '.join(labels)}; seeds {self.seeds}"
        # The checkpoints of a series may be known only when its folder is read (launch.pipeline).
        unknown = [name for name in self.only if name not in known]
        members = all("@" in name and name.split("@")[0] in labels for name in unknown)
        check_setting(self, "only", members, places)
        by_epoch = Duration.parse(self.train.duration).unit == "epoch"
        if "random-twice" in self.mix.arms and not by_epoch:
            raise SettingsError(
                f"train.duration: found {self.train.duration}, expected epochs: the arm "
                "random-twice differs by the length of its mix alone"
            )


# Stage -> (what it does, the sections it reads beside the shared ones).
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "world": ("generate a small multilingual corpus with planted pivots", ("world",)),
    "tokenizer": ("train a SentencePiece model, or take a tokenizer", ("corpus", "tokenizer")),
    "tokenize": (
        "documents into token shards; bad records into quarantine",
        ("corpus", "tokenize"),
    ),
    "count": ("in how many documents each pair of items stands, exactly", ("count",)),
    "words": ("find a task's words in the text; pivots of each pair", ("corpus", "words")),
    "pivots": ("choose the pivot set from the counts", ("pivots",)),
    "score": ("each document's share of pivots", ("score",)),
    "mix": ("documents for each arm at one budget", ("mix",)),
    "train": ("pre-train a model on each arm", ("train",)),
    "evaluate": (
        "word-translation score with intervals; of a series, against step",
        ("evaluate", "compare"),
    ),
    "compare": ("models side by side: p-values, heatmaps, score against step", ("compare",)),
    "sentences": ("translate parallel sentences, chrF with intervals", ("sentences",)),
    "trace": ("logit lens: source, pivots and target through the layers", ("trace",)),
    "intervene": ("remove pivots from the layers, replace states: cause", ("intervene",)),
    "attribute": ("tie behaviours and scores to the corpus counts", ("attribute",)),
    "report": ("one HTML page about all of it", ("report",)),
}
# The same for commands beside the chain, which read the configuration too.
TOOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "build-task": ("make a task out of dictionaries or a list of words", ("build_task",)),
    "export-lm-eval": (
        "write the word task as a folder DIR for lm-evaluation-harness",
        ("evaluate", "export_lm_eval"),
    ),
    "sample": ("let the models write on from the beginnings of documents", ("sample",)),
    "dashboard": ("make a view of the run in W&B: curves by arm, scores, layers", ()),
}
COMMANDS = {**STAGES, **TOOLS}
DRY_RUN = "--dry_run"
LOUDNESS = ("--verbose", "--quiet")
# The shipped configurations: beside the packages, in the repository as where a wheel is installed.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DRY_RUN_HELP = (
    "print the expected time, memory and output size, measured on a sample; count nothing"
)
SHARED = ("out", "seed", "seeds", "task", "models", "only", "inputs", "engine", "wandb")


def parse_config(argv: Sequence[str], command: str) -> RunConfig:
    """The settings that a config file and the command line make together.

    Prints and exits on --help (only the sections that `command` reads) and --print_config. Raises
    SettingsError, naming the key and where it was set, on unknown keys, wrong types and impossible
    values.
    """
    import jsonargparse

    if "--help" in argv or "-h" in argv:
        _help(command)
    parser = _parser(command, skip=())
    arguments = list(argv)
    for file in _config_files(arguments):
        _check_sections(Path(file))
    _check_arguments(arguments)
    try:
        values = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        raise SettingsError(f"{_named_files(arguments)}{one_line(error)}") from None
    except RecursionError:
        raise SettingsError(f"{_named_files(arguments)}found a value nested too deep") from None
    del values["config"]
    values.pop("dry_run", None)  # not a setting: the command line asks for it itself
    try:
        check_nulls(values, RunConfig)
        return RunConfig(**vars(parser.instantiate(values)))
    except SettingsError as error:
        where = _paths_by_type().get(error.settings_type or RunConfig, "")
        key = f"{where}.{error.key}" if where else error.key
        on_line = any(a.split("=")[0] == f"--{key}" for a in arguments)
        place = "command line: " if on_line else _named_files(arguments)
        raise SettingsError(f"{place}{where}{'.' if where else ''}{error}") from None


def shipped(name: str) -> str:
    """The path of a shipped configuration or a folder of them, as it is written from here."""
    path = CONFIGS / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def wandb_settings(config: RunConfig) -> WandbSettings:
    """The W&B settings of a run, with the group and folder that null means there."""
    out = Path(config.out)
    return dataclasses.replace(
        config.wandb,
        group=config.wandb.group or out.resolve().name,
        folder=config.wandb.folder or str(out),
    )


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved settings as YAML that `--config` reads again.

    Raises SettingsError where a secret of the environment would stand in it.
    """
    text = config_text(config)
    refuse_secrets({path: text})
    write_text(path, text)


def config_text(config: RunConfig) -> str:
    """The resolved settings as YAML that `--config` reads again."""
    plain = _plain(dataclasses.asdict(config))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parser(command: str, skip: Iterable[str]) -> Any:
    import jsonargparse

    text = COMMANDS[command][0] if command in COMMANDS else "the whole chain, documents to report"
    parser = jsonargparse.ArgumentParser(
        prog=f"pivots {command}",
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=(
            "Every command reads the same YAML file; `--section.key value` overrides it. "
            "--print_config shows the result."
        ),
        exit_on_error=False,
        allow_abbrev=False,  # `--count.top` would be taken for the first key that begins so
    )
    parser.add_argument("--config", action="config", help="YAML file with the settings")
    if command == "count":
        parser.add_argument(DRY_RUN, action="store_true", help=DRY_RUN_HELP)
    parser.add_class_arguments(RunConfig, as_group=False, skip=set(skip))
    return parser


def _help(command: str) -> typing.NoReturn:
    sections = COMMANDS[command][1] if command in COMMANDS else tuple(_sections())
    skip = set(_sections()) - {*SHARED, *sections}
    _parser(command, skip).print_help()
    sys.exit(0)


def _sections() -> list[str]:
    return [f.name for f in dataclasses.fields(RunConfig)]


def _paths_by_type() -> dict[type, str]:
    """Settings class -> dotted path of its section."""
    found: dict[type, str] = {RunConfig: ""}

    def walk(cls: type, path: str) -> None:
        for name, hint in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint) and isinstance(hint, type):
                found[hint] = f"{path}{name}"
                walk(hint, f"{path}{name}.")

    walk(RunConfig, "")
    return found


def _config_files(arguments: Sequence[str]) -> list[str]:
    files = [a.split("=", 1)[1] for a in arguments if a.startswith("--config=")]
    return files + [b for a, b in itertools.pairwise(arguments) if a == "--config"]


def _named_files(arguments: Sequence[str]) -> str:
    files = _config_files(arguments)
    return ", ".join(files) + ": " if files else ""


def _check_sections(path: Path) -> None:
    """Name a file that is no mapping, or an unknown section, which the parser may pass over."""
    if not path.is_file():
        raise SettingsError(f"{path}: no such config file")
    try:
        value = read_yaml(path)
    except InputError as error:
        raise SettingsError(str(error)) from None
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{path}: found a {type(value).__name__}, expected sections with keys")
    for key in value or {}:
        if key not in _sections():
            near = difflib.get_close_matches(str(key), _sections(), n=1)
            hint = (
                f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(_sections())}"
            )
            raise SettingsError(f"{path}: unknown key '{key}'{hint}")
    try:
        refuse_secret_urls(value)
        check_mappings(RunConfig, value or {}, "")
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse URLs with secrets, which --print_config would show, and sections out of a file.

    The parser reads such a file itself, without the limits of `read_yaml`.
    """
    sections = set(_paths_by_type().values())
    for before, argument in itertools.pairwise(["", *arguments]):
        option, equals, value = argument.partition("=")
        if not (option.startswith("--") and equals):
            option, value = before, argument
        key = option.removeprefix("--")
        try:
            refuse_secret_urls(value, key)
            if option.startswith("--") and key in sections:
                found = parse_yaml(value, key)
                if not isinstance(found, dict):
                    raise SettingsError(
                        f"{key}: found a {type(found).__name__}, expected keys and values, such as "
                        "{key: value}; files of settings are named by --config"
                    )
        except (SettingsError, InputError) as error:
            raise SettingsError(f"command line: {error}") from None
