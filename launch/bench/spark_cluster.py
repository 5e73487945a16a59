"""A real Spark standalone cluster on loopback, from the pip package: a master and its workers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 120.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its master's URL and the processes of its workers' JVMs."""

    master: str
    workers: list[subprocess.Popen[bytes]]

    def kill_worker(self, number: int) -> None:
        """SIGKILL a worker and the executors that it started; their Python processes end then."""
        _kill(self.workers[number])


@contextlib.contextmanager
def standalone_cluster(workers: int = 2, cores: int = 1, memory: str = "1g") -> Iterator[Cluster]:
    """Start a master and its workers, each with `cores` cores and `memory`; kill all at the end."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="spark-cluster-") as folder:
        root = Path(folder)
        try:
            started.append(
                _start(root / "master", "master.Master", ["--port", "0", "--webui-port", "0"])
            )
            url = _wait_for(root / "master", r"Starting Spark master at (spark://\S+)", started[0])
            for number in range(workers):
                work = root / f"worker-{number}"
                options = ["--cores", str(cores), "--memory", memory, "--port", "0"]
                options += ["--webui-port", "0", "--work-dir", str(work / "work"), url]
                started.append(_start(work, "worker.Worker", options))
            for number, process in enumerate(started[1:]):
                _wait_for(root / f"worker-{number}", r"(Successfully registered)", process)
            yield Cluster(url, started[1:])
        finally:
            for process in started:
                _kill(process)


def _start(folder: Path, role: str, options: list[str]) -> subprocess.Popen[bytes]:
    """Start a part of the cluster; its output goes to `folder`."""
    import pyspark

    folder.mkdir()
    home = Path(pyspark.__file__).parent
    settings = {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": HOST,
        "SPARK_LOCAL_DIRS": str(folder),
        "SPARK_NO_DAEMONIZE": "1",
    }
    command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{role}"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--host", HOST, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=os.environ | settings,
            start_new_session=True,  # a process group of its own, with the executors it starts
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """In the new process: end when this process does, even by SIGKILL (executors follow)."""
    set_parent_death_signal = 1  # prctl's PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> str:
    """What the pattern's group matches in a process' output, as soon as it is there."""
    limit = time.monotonic() + START_SECONDS
    while True:
        text = (folder / "log").read_text(errors="replace")
        if found := re.search(pattern, text):
            return found[1]
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"the Spark cluster does not start:\n{text[-2000:]}")
        time.sleep(0.1)
