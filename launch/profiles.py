"""Profiles: where `pivots launch` runs stages. All that is particular to a site stands in them.

A profile is a YAML file, of configs/launch/ or anywhere; its keys are the fields of `Profile`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launch.config import CONFIGS, STAGES, shipped
from launch.config_checks import check_mappings, check_nulls, one_line
from mining.common.errors import InputError, SettingsError, check_setting
from mining.common.secret_words import SECRET, refuse_secret_urls
from mining.common.yaml_files import read_yaml
from mining.engine_settings import EngineSettings

FOLDER = CONFIGS / "launch"
# Stages whose work several processes of a launcher share.
SHARED_STAGES = ("train", "evaluate")
# sbatch options that the scripts set from other fields, or need as they are.
OWN_OPTIONS = {
    "array", "chdir", "cpus-per-task", "dependency", "error", "export", "job-name",
    "kill-on-invalid-dep", "mem", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output",
    "partition", "requeue", "signal", "time",
}  # fmt: skip
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class JobSettings:
    """What a stage's job has.

    Attributes:
        nodes: machines (train and evaluate; others have one).
        processes: processes on each machine, as a rule one a GPU (train and evaluate).
        at_once: arms and models at work at the same time, each a task of the stage's array; null
            means all of them.
        cpus: cores on each machine.
        memory: memory on each machine, as sbatch writes it (64G); 0 takes all of it.
        time: wall-clock limit, as sbatch writes it ("4:00:00", in quotes).
        partition: partition; null takes the cluster's default.
        options: further sbatch options, name -> value ({"gpus-per-node": "8", "exclusive": ""}).
    """

    nodes: int = 1
    processes: int = 1
    at_once: int | None = None
    cpus: int = 1
    memory: str = "8G"
    time: str = "4:00:00"
    partition: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("nodes", "processes", "cpus"):
            check_setting(self, key, getattr(self, key) >= 1, "at least 1")
        check_setting(self, "at_once", self.at_once is None or self.at_once >= 1, "at least 1")
        allowed = not OWN_OPTIONS & set(self.options)
        check_setting(self, "options", allowed, f"none of {', '.join(sorted(OWN_OPTIONS))}")

    @property
    def is_shared(self) -> bool:
        """Whether a launcher has to start several processes."""
        return self.nodes * self.processes > 1


@dataclass(frozen=True)
class SubmitSettings:
    """How spark-submit starts the stages that Spark runs.

    Attributes:
        command: the program; null takes the one of the installed pyspark.
        deploy_mode: client (the driver runs here) or cluster.
        archive: packed Python environment for the workers (by conda-pack or venv-pack), unpacked
            there as ./environment; null where they have this Python already.
        python: Python on the workers; null is ./environment/bin/python with an archive, else the
            profile's.
    """

    command: str | None = None
    deploy_mode: Literal["client", "cluster"] = "client"
    archive: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class Profile:
    """Where and how stages run.

    Attributes:
        kind: local (this machine, one stage after another), slurm (one job a stage) or spark (the
            mining stages by spark-submit, the others on this machine).
        setup: shell lines that every job runs first (module load ..., source .../activate).
        python: Python of the jobs; null takes the one of this command.
        prefix: what runs the program, such as `apptainer exec --nv image.sif`.
        environment: variables of the jobs, name -> value. No secrets: those stand in `inherit`.
        inherit: variables handed on from the environment of this command, where they are set there;
            only their names are written down.
        engine: where the mining stages' tasks run, in place of the configuration's engine.
        accelerate: configuration of `accelerate launch`, which then starts the processes of a
            stage; null takes torchrun.
        job: what a stage's job has.
        stages: stage -> what is different for it.
        grace_seconds: from SIGTERM to the end of a job's time; a training saves a checkpoint.
        retries: a job that was killed is put back into the queue if it has been so less often.
        restarts: a job whose time was up is put back into the queue if it has been so less often,
            for whatever reason; one that comes to no checkpoint in its time would go on for ever.
        spark: how spark-submit starts stages.
    """

    kind: Literal["local", "slurm", "spark"]
    setup: str | None = None
    python: str | None = None
    prefix: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    inherit: tuple[str, ...] = ("WANDB_API_KEY", "WANDB_MODE", "HF_TOKEN", "HF_HOME")
    engine: EngineSettings = field(default_factory=EngineSettings)
    accelerate: str | None = None
    job: JobSettings = field(default_factory=JobSettings)
    stages: dict[str, JobSettings] = field(default_factory=dict)
    grace_seconds: int = 120
    retries: int = 2
    restarts: int = 20
    spark: SubmitSettings = field(default_factory=SubmitSettings)

    def __post_init__(self) -> None:
        refuse_secret_urls(self)
        known = set(self.stages) <= set(STAGES)
        check_setting(self, "stages", known, f"names of stages: {', '.join(STAGES)}")
        names = all(NAME.fullmatch(name) for name in (*self.environment, *self.inherit))
        check_setting(self, "environment", names, "names of variables, here and in inherit")
        if secret := next(filter(SECRET.search, self.environment), None):
            raise SettingsError(
                f"environment: {secret} looks like a secret, which no file may hold: set it in "
                "your shell and name it in inherit",
                Profile, "environment",
            )  # fmt: skip
        for stage, job in ((None, self.job), *self.stages.items()):
            fits = not job.is_shared or stage in SHARED_STAGES
            expected = f"several nodes or processes for {' and '.join(SHARED_STAGES)} only"
            check_setting(self, "stages" if stage else "job", fits, expected)
            fits = job.nodes == 1 or self.kind == "slurm"
            check_setting(self, "stages", fits, "several nodes where kind is slurm only")
        engines = {"local": ("local",), "slurm": ("local", "slurm"), "spark": ("spark",)}
        fits = self.engine.kind in engines[self.kind]
        check_setting(self, "engine", fits, f"kind {' or '.join(engines[self.kind])}")
        fits = self.kind != "spark" or self.engine.spark.master is not None
        check_setting(self, "engine", fits, "spark.master, such as spark://host:7077")
        check_setting(self, "grace_seconds", self.grace_seconds >= 1, "at least 1")
        for key in ("retries", "restarts"):
            check_setting(self, key, getattr(self, key) >= 0, "at least 0")

    def of(self, stage: str) -> JobSettings:
        """What a stage's job has."""
        return self.stages.get(stage, self.job)


def load_profile(name: str) -> Profile:
    """The profile of a file, or of configs/launch/NAME.yaml; SettingsError names the key."""
    import jsonargparse

    path = _find(name)
    try:
        raw = read_yaml(path)
    except InputError as error:
        raise SettingsError(str(error)) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise SettingsError(f"{path}: found no mapping, expected keys such as kind: slurm")
    fields = {f.name for f in dataclasses.fields(Profile)}
    if unknown := sorted(set(raw) - fields):
        raise SettingsError(
            f"{path}: unknown key '{unknown[0]}'; there are {', '.join(sorted(fields))}"
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Profile, as_group=False)
    try:
        refuse_secret_urls(raw)
        check_mappings(Profile, raw, "")
        values = parser.parse_object({**raw, "stages": _with_defaults(raw)})
        check_nulls(values, Profile)
        return Profile(**vars(parser.instantiate(values)))
    except jsonargparse.ArgumentError as error:
        raise SettingsError(f"{path}: {one_line(error)}") from None
    except RecursionError:
        raise SettingsError(f"{path}: found a value nested too deep") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    found = FOLDER / f"{name}.yaml"
    if not found.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise SettingsError(
            f"--on {name}: no such file, nor a shipped profile ({known}); copy one of "
            f"{shipped('launch')}"
        )
    return found


def _with_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Each stage's job: what the profile says of every job, and over it what of this stage."""
    common, stages = raw.get("job") or {}, raw.get("stages") or {}
    if not isinstance(stages, dict):
        raise SettingsError(f"stages: found a {type(stages).__name__}, expected names of stages")
    found = {}
    for stage, own in stages.items():
        place = f"stages.{stage}"
        if not isinstance(own, dict):
            raise SettingsError(f"{place}: expected keys such as cpus: 4")
        options = {**_options(common, "job"), **_options(own, place)}
        found[stage] = {**common, **own, "options": options}
    return found


def _options(job: Mapping[str, Any], place: str) -> dict[str, Any]:
    options = job.get("options", {})
    if not isinstance(options, dict):
        found = "null" if options is None else f"a {type(options).__name__}"
        raise SettingsError(f"{place}.options: found {found}, expected names and values")
    return options
