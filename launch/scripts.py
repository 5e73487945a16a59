"""The shell scripts that a launch writes: one a stage, and for shared stages one a machine.

    OUT/launch/config.yaml         the settings, with the profile's engine
    OUT/launch/09-train.sh         what the stage's job runs
    OUT/launch/09-train.node.sh    what each machine of it runs
    OUT/launch/logs/               what they print; of shared stages also by process
    OUT/launch/submit.sh, run.sh   what starts all of it: `pivots launch` does nothing else

They are complete: whoever reads one sees what will happen, and can start it by hand. No value of a
secret is in them: variables are handed on by name.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import mining
from launch.profiles import Profile
from launch.steps import Step

ROOT = Path(mining.__path__[0]).resolve().parent


@dataclass(frozen=True)
class Site:
    """Where a launch is: its folder, relative to `directory` if it is below it, and its profile."""

    folder: Path
    directory: Path
    profile: Profile
    flags: tuple[str, ...] = ()  # of every stage's command

    @property
    def config(self) -> Path:
        """The settings that the scripts name."""
        return self.folder / "config.yaml"

    @property
    def logs(self) -> Path:
        """Where output goes."""
        return self.folder / "logs"

    @property
    def python(self) -> str:
        """The jobs' Python."""
        return self.profile.python or sys.executable

    def script(self, step: Step) -> Path:
        """The script of a step."""
        return self.folder / f"{step.file}.sh"

    def node_script(self, step: Step) -> Path:
        """What each machine of a shared step runs."""
        return self.folder / f"{step.file}.node.sh"


def begin_script(title: str, site: Site, options: list[str]) -> list[str]:
    """The first lines of a script; `options` are lines for the scheduler."""
    directory = shlex.quote(str(site.directory))
    return ["#!/bin/bash", *options, f"# {title} Written by `pivots launch`.", f"cd {directory}"]


def environment_lines(site: Site) -> list[str]:
    """What every job's environment has beside what it is given."""
    profile = site.profile
    exports = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    path = f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    setup = [profile.setup] if profile.setup else []
    return [*setup, *exports, path, "export PYTHONUNBUFFERED=1"]


def member_lines(step: Step, variable: str | None) -> list[str]:
    """What makes $only the argument that picks the member of number `variable`, if any."""
    if not step.members or variable is None:
        return ["only=()"]
    members = " ".join(shlex.quote(json.dumps([name], ensure_ascii=False)) for name in step.members)
    return [f"members=({members})", f'only=(--only "${{members[${variable}]}}")']


def stage_command(step: Step, site: Site) -> str:
    """The command of a step in one process."""
    return f'{_prefix(site)}{shlex.join([site.python, "-m", *_program(step, site)])} "${{only[@]}}"'


def _program(step: Step, site: Site) -> list[str]:
    return ["launch.cli", step.stage, "--config", str(site.config), *site.flags]


def node_lines(step: Step, site: Site) -> list[str]:
    """The script that starts a step's processes on one machine; its arguments go to the stage.

    It takes PIVOTS_NODE (its number), PIVOTS_NODES (how many), PIVOTS_HEAD and PIVOTS_PORT (where
    all of them meet), PIVOTS_JOB (the same name on all) and PIVOTS_LOGS (a folder) from outside;
    PIVOTS_ADDRESS, if set, is how the others reach this machine where its own name does not do.
    """
    processes = site.profile.of(step.stage).processes
    launcher = [site.python, "-m", "launch.processes"]
    if site.profile.accelerate is not None:
        launcher += ["accelerate", "--config_file", site.profile.accelerate]
        places = (
            f'--num_machines "$PIVOTS_NODES" --num_processes $((PIVOTS_NODES * {processes})) '
            '--machine_rank "$PIVOTS_NODE" --main_process_ip "$PIVOTS_HEAD" '
            '--main_process_port "$PIVOTS_PORT" --tee 3 --log_dir "$logs"'
        )
    else:
        launcher += ["torchrun", "--nproc_per_node", str(processes)]
        # The first machine is the one that keeps the list of those that came.
        places = (
            '--nnodes "$PIVOTS_NODES" --rdzv_backend c10d --rdzv_id "$PIVOTS_JOB" '
            '--rdzv_endpoint "$PIVOTS_HEAD:$PIVOTS_PORT" '
            '--rdzv_conf "is_host=$((PIVOTS_NODE == 0))" '
            '${PIVOTS_ADDRESS:+--local_addr "$PIVOTS_ADDRESS"} '
            '--tee 3 --local_ranks_filter 0 --log_dir "$logs"'
        )
    return [
        *begin_script(f"{step.stage}: what each machine of the job runs.", site, []),
        *environment_lines(site),
        "# How long torchrun waits for its processes after SIGTERM.",
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={site.profile.grace_seconds}",
        'logs="$PIVOTS_LOGS/node-$PIVOTS_NODE"',
        'mkdir -p "$logs"',
        f"exec {_prefix(site)}{shlex.join(launcher)} \\",
        f"  {places} \\",
        f'  -m {shlex.join(_program(step, site))} "$@"',
    ]


def _prefix(site: Site) -> str:
    return f"{site.profile.prefix} " if site.profile.prefix else ""
