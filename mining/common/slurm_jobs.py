"""Slurm jobs at work in a folder: which they are, and how to end those that a killed run left.

The ids of jobs stand in a file of the folder they write to, for as long as they may run. Whoever
takes the folder next ends them first: a job outlives the process that submitted it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from mining.common.errors import BusyError, TaskError
from mining.common.files import write_text
from mining.common.logs import log

JOBS = "slurm_jobs"
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 300.0
SHORT_PATIENCE = 20.0  # where somebody sits and waits


def note_jobs(folder: Path, jobs: Sequence[str]) -> None:
    """Say that the jobs of these ids may write to `folder` from now on."""
    write_text(folder / JOBS, "".join(f"{job}\n" for job in jobs))


def noted_jobs(folder: Path) -> list[str]:
    """The ids of the jobs that may write to `folder`."""
    try:
        return (folder / JOBS).read_text("utf-8").split()
    except FileNotFoundError:
        return []


def end_jobs(folder: Path) -> None:
    """Cancel all jobs noted in `folder` or in one below, and wait until they are gone.

    Raises BusyError where Slurm cannot be asked.
    """
    for path in sorted(folder.rglob(JOBS)):
        jobs = noted_jobs(path.parent)
        try:
            if queued := {job for job, _, _ in list_queue(jobs)}:
                log.info("Slurm jobs %s are cancelled", ", ".join(sorted(queued)))
                subprocess.run(["scancel", *sorted(queued)], check=False)
            while list_queue(jobs):
                time.sleep(POLL_SECONDS)
        except (FileNotFoundError, TaskError) as error:
            raise BusyError(
                f"{path.parent}: tasks of the Slurm jobs {' '.join(jobs)} may still be writing "
                f"here, and Slurm cannot be asked ({error}). Run this where squeue answers; if the "
                f"jobs are surely gone, remove {path}"
            ) from None
        path.unlink()


def list_queue(
    jobs: Collection[str], patience_seconds: float = PATIENCE_SECONDS
) -> list[tuple[str, str, str]]:
    """The (job, state, reason) of what is waiting or running of some jobs, as squeue has it.

    State and reason are Slurm's words (R, PD; Resources). Raises TaskError where squeue fails or
    hangs for so long: a busy controller is no sign that a job has ended.
    """
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%F|%t|%r"]
    end = time.monotonic() + patience_seconds
    while True:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False,
                timeout=max(POLL_SECONDS, end - time.monotonic()),
            )  # fmt: skip
            fault = done.stderr.strip() or f"status {done.returncode}"
        except subprocess.TimeoutExpired:
            fault = "no answer"
        else:
            if done.returncode == 0:
                break
        if time.monotonic() >= end:
            raise TaskError(
                f"squeue: {fault}, in {patience_seconds:.0f} s; see whether Slurm's controller is "
                "up (scontrol ping), then the same command goes on from here"
            )
        time.sleep(min(POLL_SECONDS * 10, patience_seconds / 10))
    rows = [line.split("|", maxsplit=2) for line in done.stdout.splitlines()]
    return [(job, state, reason) for job, state, reason in rows if job in jobs]
