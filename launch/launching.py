"""The command `pivots launch`: writes the scripts of a launch, then starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from launch.config import (
    DRY_RUN,
    LOUDNESS,
    STAGES,
    RunConfig,
    config_text,
    parse_config,
    save_config,
    shipped,
)
from launch.local_chain import local_scripts
from launch.pipeline import Plan, refuse_inner_output
from launch.profiles import Profile, load_profile
from launch.scripts import Site
from launch.slurm_chain import JOBS, slurm_scripts, submitted_jobs
from launch.spark_submit import is_untested, pack_project, spark_scripts
from launch.steps import Step, find_steps
from mining.common.errors import BusyError, MissingDependencyError, SettingsError, TaskError
from mining.common.files import remove_tree, write_bytes, write_text
from mining.common.secret_words import refuse_secrets
from mining.common.slurm_jobs import SHORT_PATIENCE, list_queue
from mining.common.stage import hold
from mining.engine_settings import EngineSettings, SparkSettings

FOLDER = "launch"
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
USAGE = """\
usage: pivots launch CONFIG --on PROFILE [--dry_run] [--section.key VALUE ...]
       pivots launch STAGE [--config FILE] --on PROFILE [--dry_run] [--section.key VALUE ...]

Runs the whole chain (CONFIG), or one stage, where PROFILE says:

  local    this machine; trainings of several processes by torchrun or `accelerate launch`
  slurm    one job a stage, each waiting for those that it reads; arms and models as an array;
           trainings on several nodes by torchrun; requeued when preempted, killed or out of time
  spark    the mining stages by spark-submit, the others on this machine

PROFILE is a name of {profiles}/ or a file like those. Copy one and fill in what your site
wants: partition, account, modules, container, Python, nodes, GPUs. Nothing of that is in the
program. Secrets such as WANDB_API_KEY stay in your shell: the profile names them (inherit).

  --dry_run   write the scripts into OUT/launch/, print what would be submitted, start nothing
  --verbose, --quiet   are handed on to the stages

SIGTERM and Ctrl-C go on to the stage that is at work on this machine, a training saves a
checkpoint, and this waits for it; the code is then 143 or 130. Else the code is that of the stage
that failed (pivots --help lists them), with several processes that of the first one to fail. On
Slurm it says whether the jobs were submitted; `pivots status` tells how they ended.

First steps on a cluster:
  cp {profiles}/slurm.yaml my-cluster.yaml              # edit partition, time, gpus, setup
  pivots launch my.yaml --on my-cluster.yaml --dry_run      # read what it would do
  pivots launch my.yaml --on my-cluster.yaml
  pivots status OUT                                         # stages, tasks, logs, time left

The same command again does only what is missing. See docs/CLUSTERS.md.
"""


def launch(arguments: Sequence[str]) -> int:
    """Run `pivots launch` on its command line; returns the exit code."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(USAGE.format(profiles=shipped("launch")))
        return 0 if arguments else 2
    what, options = arguments[0], list(arguments[1:])
    profile_name = _take(options, "--on")
    dry_run, flags = DRY_RUN in options, tuple(one for one in options if one in LOUDNESS)
    options = [option for option in options if option not in (DRY_RUN, *LOUDNESS)]
    if engine := next((one for one in options if one.startswith("--engine")), None):
        raise SettingsError(
            f"command line: found {engine.split('=')[0]}; where tasks run is the profile's matter: "
            "set engine there"
        )
    stage = what if what in STAGES else None
    if stage is None:
        if what.startswith("-") or not Path(what).is_file():
            raise SettingsError(
                f"launch: found '{what}', expected a config file or a stage: {', '.join(STAGES)}"
            )
        options = ["--config", what, *options]
    if profile_name is None:
        raise SettingsError("launch: found no profile; give --on local, slurm, spark or a file")
    profile = load_profile(profile_name)
    config = parse_config(options, stage or "run")
    if not any(option.startswith("--config") for option in options) and not config.corpus.path:
        raise SettingsError(
            "launch: found no documents; give --config FILE or --corpus.path FOLDER"
        )
    refuse_inner_output(config)
    config = dataclasses.replace(config, engine=_engine(profile))
    out = Path(config.out)
    site = Site(out / FOLDER, Path.cwd(), profile, flags)
    steps = find_steps(Plan(config), stage)
    # Of a launch on this machine, until its last stage has ended, whoever ends this command.
    site.folder.mkdir(parents=True, exist_ok=True)
    lock = hold("launch", site.folder)
    _refuse_second(site)
    starter = _write(config, steps, site)
    if stage is None:
        save_config(config, out / "config.yaml")
    if dry_run:
        _show(site, starter)
        return 0
    if profile.kind == "spark" and is_untested(site):
        print(
            f"written, not started, as nobody has tried it: read it, then run "
            f"bash {shlex.quote(str(starter))}"
        )
        return 0
    if profile.kind == "slurm":
        return _submit(starter, steps, out)
    (site.folder / JOBS).unlink(missing_ok=True)  # of an earlier launch on Slurm, none in the queue
    return _run(starter, lock.fileno())


def _take(options: list[str], name: str) -> str | None:
    """Remove an option with its value from a command line, and return the value."""
    for place, option in enumerate(options):
        if option.startswith(f"{name}="):
            return options.pop(place).split("=", 1)[1]
        if option == name and place + 1 < len(options):
            del options[place]
            return options.pop(place)
    return None


def _engine(profile: Profile) -> EngineSettings:
    """The engine of the jobs; what spark-submit says, the jobs do not say again."""
    if profile.kind != "spark":
        return profile.engine
    return dataclasses.replace(profile.engine, spark=SparkSettings())


def _refuse_second(site: Site) -> None:
    """BusyError where jobs of an earlier launch are in the queue: they write where ours will.

    Also where Slurm has no answer.
    """
    path = site.folder / JOBS
    jobs = [job for _, job in submitted_jobs(site.folder)]
    try:
        queued = sorted({job for job, _, _ in list_queue(jobs, SHORT_PATIENCE)}) if jobs else []
    except FileNotFoundError:
        return  # no Slurm here
    except TaskError as error:
        raise BusyError(
            f"{site.folder}: jobs of an earlier launch may wait or run, and Slurm cannot be asked "
            f"({error}). If they are surely gone, remove {path}"
        ) from None
    if queued:
        raise BusyError(
            f"{site.folder}: jobs of an earlier launch wait or run: wait for them (pivots status "
            f"{shlex.quote(str(site.folder.parent))}), or end them with scancel {' '.join(queued)}"
        )


def _write(config: RunConfig, steps: list[Step], site: Site) -> Path:
    """Write settings and scripts; returns the script that starts everything."""
    archive: tuple[str, bytes] | None = None
    if site.profile.kind == "slurm":
        scripts = slurm_scripts(steps, site)
    elif site.profile.kind == "spark":
        archive = pack_project()
        scripts = spark_scripts(steps, site, archive[0])
    else:
        scripts = local_scripts(steps, site)
    texts = {site.folder / name: text for name, text in scripts.items()}
    texts[site.config] = config_text(config)
    refuse_secrets(texts)
    for old in [*site.folder.glob("*.sh"), *site.folder.glob("project-*.zip")]:
        old.unlink()
    for folder in site.folder.glob("project-*/"):
        if archive is None or folder.name != archive[0].removesuffix(".zip"):
            remove_tree(folder)
    site.logs.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_text(path, text)
    if archive is not None:
        write_bytes(site.folder / archive[0], archive[1])
    return site.folder / ("submit.sh" if site.profile.kind == "slurm" else "run.sh")


def _show(site: Site, starter: Path) -> None:
    for path in [starter, *sorted({*site.folder.glob("*.sh")} - {starter})]:
        print(f"==> {path} <==\n{path.read_text(encoding='utf-8')}")
    print(f"nothing was started; this starts it: bash {shlex.quote(str(starter))}")


def _submit(starter: Path, steps: list[Step], out: Path) -> int:
    done = subprocess.run(["bash", str(starter)], capture_output=True, text=True, check=False)
    if done.returncode == 127:
        raise MissingDependencyError(
            "launch: there is no sbatch here: run this on a machine from which jobs are submitted "
            "(a login node), or choose --on local"
        )
    if done.returncode:
        raise SettingsError(
            f"launch: sbatch refuses a job, none was left in the queue: {done.stderr.strip()}. "
            f"See {starter.parent} and the profile"
        )
    command = f"pivots status {shlex.quote(str(out))}"
    print(f"{len(steps)} jobs are in the queue; see how they are with: {command}")
    return 0


def _run(starter: Path, lock: int) -> int:
    """Run the stages here, which hold `lock` with us; their errors have been printed at the end.

    A signal that ends this command is the script's, which hands it on and waits for the stage.
    """
    received: list[int] = []
    script: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        for one in script:
            one.send_signal(number)

    with _handled(hand_on):
        script.append(subprocess.Popen(["bash", str(starter)], pass_fds=[lock]))
        if received:  # before there was a script
            script[0].send_signal(received[0])
        code = script[0].wait()
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let a handler take the signals that end a command, but those that are ignored (nohup)."""
    ending = [one for one in ENDING if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in ending}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
