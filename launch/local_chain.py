"""A launch on this machine: stages one after another, shared ones by torchrun or accelerate."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from launch.scripts import (
    Site,
    begin_script,
    environment_lines,
    member_lines,
    node_lines,
    stage_command,
)
from launch.steps import Step

RUN_LINES = """\
set -u
signals=0 ended= stage= told=
# What ends this is handed on to the stage at work, once, as SIGTERM: a training saves a checkpoint.
stop() {
  signals=$((signals + 1))
  ended=${ended:-$1}
  tell
}
tell() {
  if [ -n "$ended" ] && [ -n "$stage" ] && [ -z "$told" ]; then
    told=yes
    kill -TERM "$stage" 2>/dev/null
  fi
}
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM
# Run a stage (TITLE SCRIPT LOG), and end with its status where that is not 0.
run() {
  local seen=-1 status=0 log
  [ -z "$ended" ] || exit "$ended"
  echo "$1"
  exec 3> >(trap '' HUP INT TERM; exec tee -a "$3")  # which ends after all that write there
  log=$!
  bash "$2" >&3 2>&1 3>&- &
  stage=$!
  exec 3>&-
  tell  # where the signal came while the stage was started
  while [ $seen != $signals ]; do  # a signal ends only the waiting
    seen=$signals
    wait "$stage"
    status=$?
  done
  stage=
  wait "$log"
  [ $status = 0 ] || exit "${ended:-$status}"
}
"""


def local_scripts(steps: list[Step], site: Site) -> dict[str, str]:
    """File name -> content of all that a launch on this machine needs."""
    return {**stage_scripts(steps, site, _stage_line), "run.sh": run_script(steps, site, [])}


def _stage_line(step: Step, site: Site) -> list[str]:
    return [f"exec {stage_command(step, site)}"]


def stage_scripts(
    steps: list[Step], site: Site, plain: Callable[[Step, Site], list[str]]
) -> dict[str, str]:
    """The scripts of the steps, those of one process with the lines that `plain` gives."""
    found = {}
    for step in steps:
        shared = site.profile.of(step.stage).is_shared
        lines = [
            *begin_script(f"Stage {step.stage}.", site, []),
            *([] if shared else environment_lines(site)),
            *member_lines(step, None),
            *(_shared_lines(step, site) if shared else plain(step, site)),
        ]
        found[site.script(step).name] = "\n".join(lines) + "\n"
        if shared:
            found[site.node_script(step).name] = "\n".join(node_lines(step, site)) + "\n"
    return found


def _shared_lines(step: Step, site: Site) -> list[str]:
    logs = shlex.quote(str(site.logs / step.file))
    return [
        "export PIVOTS_NODE=0 PIVOTS_NODES=1 PIVOTS_HEAD=127.0.0.1 PIVOTS_PORT=0",
        f"export PIVOTS_ADDRESS=127.0.0.1 PIVOTS_JOB=$$ PIVOTS_LOGS={logs}-$$",
        f"exec bash {shlex.quote(str(site.node_script(step)))}",
    ]


def run_script(steps: list[Step], site: Site, notes: list[str]) -> str:
    """The script that runs the steps one after another; `notes` are comments at its head."""
    logs = shlex.quote(str(site.logs))
    lines = [*begin_script("Runs the stages one after another.", site, []), *notes, RUN_LINES]
    for number, step in enumerate(steps, start=1):
        script = shlex.quote(str(site.script(step)))
        title = f'"[{number}/{len(steps)}] {step.stage}"'
        lines.append(f"run {title} {script} {logs}/{step.file}.log")
    return "\n".join(lines) + "\n"
