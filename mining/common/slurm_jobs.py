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

from mining.common.errors import BusyError
from mining.common.files import write_text
from mining.common.logs import log

JOBS = "slurm_jobs"
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 300.0


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
        except (FileNotFoundError, TimeoutError) as error:
            raise BusyError(
                f"{path.parent}: tasks of the Slurm jobs {' '.join(jobs)} may still be writing "
                f"here, and Slurm cannot be asked ({error}). Run this where squeue answers; if the "
                f"jobs are surely gone, remove {path}"
            ) from None
        path.unlink()


def list_queue(jobs: Collection[str]) -> list[tuple[str, str, str]]:
    """The (job, state, reason) of what is waiting or running of some jobs, as squeue has it.

    State and reason are Slurm's words (R, PD; Resources). Raises TimeoutError where squeue has no
    answer for minutes: a busy controller is no sign that a job has ended.
    """
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--format=%F|%t|%r"]
    start = time.monotonic()
    while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        if time.monotonic() - start > PATIENCE_SECONDS:
            raise TimeoutError(f"squeue: {done.stderr.strip()}")
        time.sleep(POLL_SECONDS * 10)
    rows = [line.split("|", maxsplit=2) for line in done.stdout.splitlines()]
    return [(job, state, reason) for job, state, reason in rows if job in jobs]
