"""Records the chain on a real Slurm and on a real Spark cluster as terminal sessions.

    python -m launch.record_sessions slurm     # docs/sessions/slurm.txt; needs tests/start_slurm.sh
    python -m launch.record_sessions spark     # docs/sessions/spark.txt; needs Java

Everything in them is what the commands printed, on a small generated world; names of this machine
are replaced.
"""

from __future__ import annotations

import argparse
import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from launch.bench.spark_cluster import standalone_cluster
from launch.scripts import ROOT
from launch.status import run_status
from mining.common.errors import TaskError
from mining.common.files import write_text

CONFIG = "configs/smoke/quickstart.yaml"
# Small, but with time enough in a training to be killed.
SIZES = "--mix.arms '[random, pivot]' --train.duration 200steps --tokenize.words false"
RUN = Path("runs/quickstart")
LIMIT_SECONDS = 1800.0
SLURM_PROFILE = """\
kind: slurm
engine: {kind: slurm, workers: 1, slurm: {mem_per_cpu_gb: 1}}
job: {memory: 2G, time: "20:00"}
stages:
  train: {processes: 2}
"""
SPARK_PROFILE = """\
kind: spark
engine:
  kind: spark
  spark: {master: "MASTER", conf: {spark.executor.memory: 512m}}
stages:
  train: {processes: 2}
"""


class Session:
    """A terminal session: runs commands and keeps what a terminal would show."""

    def __init__(self, title: str) -> None:
        self.lines = [f"# {title}", "# Recorded by: python -m launch.record_sessions", ""]
        self.here = str(Path.cwd())

    def run(self, command: str, show: Callable[[list[str]], list[str]] | None = None) -> int:
        """Run a shell command and record it with its output, of which `show` may pick lines."""
        found = subprocess.run(
            ["bash", "-c", command.replace("pivots ", f"{sys.executable} -m launch.cli ", 1)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        )  # fmt: skip
        printed = found.stdout.rstrip().splitlines()
        self.lines += [f"$ {command}", *(printed if show is None else show(printed)), ""]
        return found.returncode

    def note(self, text: str) -> None:
        """Add a line of one's own, as a comment."""
        self.lines += [f"# {text}"]

    def text(self) -> str:
        """All of it, without the names of this machine."""
        import pyspark

        spark = str(Path(pyspark.__file__).parent / "bin") + "/"
        names = {
            self.here: "~/experiments",
            spark: "",
            sys.executable: "python",
            str(ROOT): "~/pivots",
        }
        text = "\n".join(self.lines)
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, names[name])
        for name, stand_in in ((platform.node().split(".")[0], "node1"), (getpass.getuser(), "me")):
            text = re.sub(rf"\b{re.escape(name)}\b", stand_in, text)
        return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def wait_until(what: Callable[[], object]) -> None:
    """Return when `what` is true; TaskError when it takes too long."""
    end = time.monotonic() + LIMIT_SECONDS
    while not what():
        if time.monotonic() > end:
            raise TaskError(f"{RUN}: {run_status(RUN)}")
        time.sleep(0.5)


def is_done(stage: str) -> bool:
    """Whether a stage of the run is done."""
    return any(one.stage == stage and one.state == "done" for one in run_status(RUN))


def record_slurm() -> Session:
    """The chain as Slurm jobs; a process of a training is killed on the way."""
    session = Session("The chain on a Slurm of one node, with a training of two processes")
    Path("cluster.yaml").write_text(SLURM_PROFILE)
    session.run("cat cluster.yaml")
    session.run(f"pivots launch train --config {CONFIG} --on cluster.yaml {SIZES} --dry_run")
    session.run(f"pivots launch {CONFIG} --on cluster.yaml {SIZES}")
    session.run("squeue --format='%.8i %.18j %.2t %.8M %.24r'")
    wait_until(lambda: any(RUN.glob("tokenize/.work/tasks/completions/*")))
    session.run(f"pivots status {RUN}")
    wait_until(lambda: any((RUN / "train/random/0/checkpoints").glob("step-*")))
    session.note("A process of a training is lost:")
    session.run(f"kill -KILL {_rank('random/0')}")
    session.run(f"pivots status {RUN}")
    wait_until(lambda: re.search("back into the queue", _train_log()))
    session.run("squeue --format='%.8i %.18j %.2t %.8M %.24r'")
    wait_until(lambda: is_done("report"))
    session.run(f"pivots status {RUN}")
    session.run(f"grep -hE 'queue|resumes' {RUN}/launch/logs/09-train-*_0.out")
    session.run(f"find {RUN}/launch/logs -name '09-train*' -o -path '*train*/stderr.log' | sort")
    session.run(f"pivots lineage {RUN}/report | tail -n 12")
    return session


def _rank(member: str) -> int:
    """A process of a training that this session has launched."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = process.info["cmdline"] or []
        ours = process.info["cwd"] == str(Path.cwd()) and f'["{member}"]' in line
        if ours and "launch.cli" in line and "launch.processes" not in line:
            return int(process.pid)
    raise TaskError(f"{RUN}: no process trains {member}")


def _train_log() -> str:
    return "".join(p.read_text() for p in RUN.glob("launch/logs/09-train-*_0.out"))


def record_spark() -> Session:
    """The chain with its mining stages on a standalone cluster of two workers."""
    session = Session("The chain on a standalone Spark cluster of two workers")
    with standalone_cluster() as cluster:
        Path("cluster.yaml").write_text(SPARK_PROFILE.replace("MASTER", cluster.master))
        session.run("cat cluster.yaml")
        session.run(f"pivots launch count --config {CONFIG} --on cluster.yaml --dry_run")
        session.run(f"pivots launch {CONFIG} --on cluster.yaml {SIZES}")
    session.run(f"pivots status {RUN}")
    session.run(f"pivots lineage {RUN}/report | tail -n 12")
    return session


def main() -> None:
    """Record one session into docs/sessions/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("slurm", "spark"))
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory(prefix="pivots-") as folder:
        shutil.copytree(ROOT / "configs", Path(folder) / "configs")
        os.chdir(folder)
        session = record_slurm() if what == "slurm" else record_spark()
        text = session.text()
        os.chdir(ROOT)
    write_text(ROOT / "docs" / "sessions" / f"{what}.txt", text)
    print(text)


if __name__ == "__main__":
    main()
