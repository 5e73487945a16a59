"""A launch on Slurm: one job a stage, an array where arms and models are independent.

A job starts when those that it reads from have ended well, and is taken out of the queue when one
of them failed. It is put back into the queue by Slurm where a node failed or it was preempted, and
by itself where its time is up (SIGTERM comes first; a training saves a checkpoint) or something
killed its processes. Stages go on from what they had finished.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from launch.scripts import (
    Site,
    begin_script,
    environment_lines,
    member_lines,
    node_lines,
    stage_command,
)
from launch.steps import TASK_STAGES, Step
from mining.common.errors import TaskError

JOBS, AROUND = "jobs", "job.sh"
# Of the submitting environment a job has these and what the profile says, not all: secrets of other
# programs stay out, and it does not matter from which shell a job was submitted.
BASIC = ("HOME", "LANG", "PATH", "SLURM_CONF", "TMPDIR", "USER")


def slurm_scripts(steps: list[Step], site: Site) -> dict[str, str]:
    """File name -> content of all that a launch on Slurm needs."""
    found = {}
    for step in steps:
        found[site.script(step).name] = "\n".join(_job_lines(step, site)) + "\n"
        if site.profile.of(step.stage).is_shared:
            found[site.node_script(step).name] = "\n".join(node_lines(step, site)) + "\n"
    found[AROUND] = _around(site)
    found["submit.sh"] = "\n".join(_submit_lines(steps, site)) + "\n"
    return found


def submitted_jobs(folder: Path) -> list[tuple[str, str]]:
    """The (stage, job) pairs that the last launch into a folder submitted, in this order."""
    path = folder / JOBS
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    pairs = [line.split() for line in lines]
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]  # a full disk cuts a line


def _submit_lines(steps: list[Step], site: Site) -> list[str]:
    jobs = shlex.quote(str(site.folder / JOBS))
    lines = [
        *begin_script("Submits one job a stage.", site, []),
        "set -eu",
        "# Where one is refused the others go too. Sizes of a job that this may run in would hold",
        "# for ours.",
        "submitted=()",
        """trap '[ "${#submitted[@]}" = 0 ] || scancel "${submitted[@]}"' ERR""",
        "# sbatch says NUMBER, or NUMBER;CLUSTER.",
        "note() {",
        '  declare -g "$1=${!1%%;*}"',
        '  submitted+=("${!1}")',
        f'  echo "$1 ${{!1}}" >>{jobs}',
        "}",
        'for name in $(compgen -v SLURM_); do [ "$name" = SLURM_CONF ] || unset "$name"; done',
    ]
    for step in steps:
        waits = ""
        if step.after:
            after = ":".join(f"${stage}" for stage in step.after)
            waits = f"--dependency=afterok:{after} --kill-on-invalid-dep=yes "
        script = shlex.quote(str(site.script(step)))
        lines.append(f"{step.stage}=$(sbatch --parsable {waits}{script}); note {step.stage}")
    return lines


def _job_lines(step: Step, site: Site) -> list[str]:
    profile, job = site.profile, site.profile.of(step.stage)
    log = f"{step.file}-{'%A_%a' if step.members else '%j'}.out"
    own = {
        "job-name": f"pivots-{step.stage}",
        "output": str(site.logs / log),
        "open-mode": "append",
        "export": ",".join(dict.fromkeys((*BASIC, *profile.inherit))),
        "requeue": "",
        "signal": f"B:TERM@{profile.grace_seconds}",
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus),
        "mem": job.memory,
        "time": job.time,
        **({"partition": job.partition} if job.partition else {}),
        **({"array": _array(len(step.members), job.at_once)} if step.members else {}),
        **job.options,
    }
    options = [
        f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"
        for name, value in own.items()
    ]
    options.insert(0, f"#SBATCH --chdir={shlex.quote(str(site.directory))}")
    threads = max(1, job.cpus // job.processes)
    return [
        *begin_script(f"Stage {step.stage}.", site, options),
        *([] if job.is_shared else environment_lines(site)),  # else each machine's matter
        *(
            f'export {name}="${{{name}:-{threads}}}"'
            for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
        ),
        *member_lines(step, "SLURM_ARRAY_TASK_ID"),
        f". {shlex.quote(str(site.folder / AROUND))}",
        *(_shared_lines(step, site) if job.is_shared else _plain_lines(step, site)),
        "program=$!",
        "finish",
    ]


def _array(n_members: int, at_once: int | None) -> str:
    return f"0-{n_members - 1}" + (f"%{at_once}" if at_once else "")


def _plain_lines(step: Step, site: Site) -> list[str]:
    lost = f' || [ "$status" = {TaskError.exit_code} ]' if step.stage in TASK_STAGES else ""
    return [
        f"{stage_command(step, site)} &",
        'stop() { kill -TERM "$program" 2>/dev/null; }',
        f'was_killed() {{ [ "$status" -gt 128 ]{lost}; }}',
    ]


def _shared_lines(step: Step, site: Site) -> list[str]:
    logs = shlex.quote(str(site.logs / step.file))
    job = site.profile.of(step.stage)
    node = shlex.quote(str(site.node_script(step)))
    return [
        "export PIVOTS_NODES=$SLURM_NNODES PIVOTS_JOB=$me",
        "export PIVOTS_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        'PIVOTS_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"PIVOTS_LOGS={logs}-$me/start-${{SLURM_RESTART_COUNT:-0}}",
        "export PIVOTS_HEAD PIVOTS_LOGS",
        "# --export: else srun hands on only what sbatch was told to.",
        'srun --export=ALL --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \\',
        f"  --cpus-per-task={job.cpus} --kill-on-bad-exit=1 \\",
        f"""  bash -c 'PIVOTS_NODE=$SLURM_PROCID exec bash "$0" "$@"' {node} "${{only[@]}}" &""",
        "# To the processes on all nodes; this shell is none of them.",
        'stop() { scancel --signal=TERM "$me"; }',
        "# The status is the highest of all nodes, which says nothing; a process with a reason has",
        "# printed it. Others are told to stop when one is killed.",
        "was_killed() {",
        "  ! grep -rhs '^error: ' \"$PIVOTS_LOGS\" | grep -qv 'stopped by SIGTERM'",
        "}",
    ]


def _around(site: Site) -> str:
    """The file that the jobs' scripts read: what a job does around its program.

    A job that somebody cancelled is no longer RUNNING when its processes are gone.
    """
    retries, restarts = site.profile.retries, site.profile.restarts
    lines = [
        "# What every job does around its program. Written by `pivots launch`.",
        "# An array's own number means all of its tasks.",
        "me=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "me=${me:-$SLURM_JOB_ID}",
        "stops=0",
        "",
        "# Wait for $program and hand SIGTERM on to it by `stop`. Put the job back into the queue",
        "# where its time was up or, by `was_killed`, something ended it from outside.",
        "finish() {",
        "  trap 'stops=$((stops + 1)); [ $stops -gt 1 ] || stop' TERM",
        "  local seen=-1 state",
        "  while [ $seen != $stops ]; do  # the signal ends only the waiting",
        "    seen=$stops",
        '    wait "$program"',
        "    status=$?",
        "  done",
        '  [ "$status" = 0 ] && exit 0',
        "  for _ in 1 2 3 4 5; do  # a busy controller may not answer at once",
        '    state=$(squeue --noheader --jobs="$me" --format=%T) && break',
        "    sleep 5",
        "  done",
        '  if [ "$state" = RUNNING ] && { [ $stops -gt 0 ] || may_retry; }; then',
        f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then',
        '      echo "error: status $status after ${SLURM_RESTART_COUNT:-0} restarts, and the" \\',
        f'        "profile allows {restarts} (restarts). The same launch goes on from here"',
        '      exit "$status"',
        "    fi",
        '    echo "status $status: back into the queue, goes on from what is done"',
        '    scontrol requeue "$me" && sleep 60  # which Slurm ends',
        "  fi",
        '  exit "$status"',
        "}",
        "",
        f"may_retry() {{ [ ${{SLURM_RESTART_COUNT:-0}} -lt {retries} ] && was_killed; }}",
    ]
    return "\n".join(lines) + "\n"
