"""What the fault tests share: an unbroken run, and one stage of it started again by the command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from launch.config import STAGES
from mining.common.files import read_json
from mining.common.manifest import MANIFEST, RUN
from mining.common.stage import LOCK, WORK
from tests.conftest import REPOSITORY, folder_bytes

CONFIG = REPOSITORY / "configs" / "smoke" / "quickstart.yaml"
FANNED = ("train", "evaluate", "trace", "intervene", "attribute")
# A generated world has no parallel sentences to translate.
CHAIN = tuple(stage for stage in STAGES if stage != "sentences")
# The stages whose work is divided into tasks of an engine.
DIVIDED = ("tokenize", "count", "words", "pivots", "score", "mix")
# Those of them that an engine runs in processes of its own. On this machine the tasks of others are
# compiled code, in threads of the one process; so are those of `pivots` everywhere.
IN_PROCESSES = {
    "local": ("tokenize", "words", "mix"),
    "spark": ("tokenize", "count", "words", "score", "mix"),
}
ENGINES: dict[str, tuple[str, ...]] = {
    "local": ("--engine.workers", "2"),
    "spark": ("--engine.kind", "spark", "--engine.spark.master", "local[2]"),
    "slurm": ("--engine.kind", "slurm", "--engine.workers", "2"),
}
PATIENCE_SECONDS = 1800.0
# Stands in the environment of every command; no output may hold it.
SECRET = "sk-PlantedSecret0123456789abcdefPlantedSecre"
NAMES = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
SECRETS = dict.fromkeys(NAMES, SECRET)


@dataclass
class Started:
    """A command at work; `log` is the file of what it prints."""

    process: subprocess.Popen[bytes]
    log: Path
    start: float = field(default_factory=time.monotonic)

    def finish(self) -> float:
        """Wait for it; its seconds. AssertionError with its last words where it failed."""
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        assert code == 0, f"status {code}: {self.log.read_text()[-3000:]}"
        return time.monotonic() - self.start

    def workers(self) -> list[psutil.Process]:
        """Its processes that do an engine's tasks."""
        parents = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                # One that has ended meanwhile, or that nobody waits for (Spark's launcher leaves
                # such), says nothing of the others.
                with contextlib.suppress(psutil.NoSuchProcess):
                    if _does_tasks(process.cmdline()):
                        parents[process] = process.ppid()
        serving = {process.pid for process in parents}
        # Below the process that they are forked from, whose command they share.
        return [process for process, parent in parents.items() if parent in serving]


def _does_tasks(command: list[str]) -> bool:
    line = " ".join(command)
    return "multiprocess.forkserver" in line or "pyspark.daemon" in line


def pivots(log: Path, *arguments: str, **environment: str) -> Started:
    """Start `pivots ARGUMENTS`."""
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *arguments],
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env={
                **os.environ,
                **SECRETS,
                "OMP_NUM_THREADS": "1",
                "WANDB_MODE": "disabled",
                **environment,
            },
        )
    return Started(process, log)


@dataclass(frozen=True)
class Chain:
    """An unbroken run under `root`, and what starts one of its stages elsewhere."""

    root: Path
    config: Path = CONFIG

    @property
    def base(self) -> Path:
        """The unbroken run."""
        return self.root / "base"

    def prepare(self) -> None:
        """Make the unbroken run; nothing where it is there."""
        self.root.mkdir(parents=True, exist_ok=True)
        pivots(
            self.root / "base.log", "run", str(self.config), "--out", str(self.base),
            *ENGINES["local"],
        ).finish()  # fmt: skip

    def part(self, stage: str) -> Path:
        """A stage's folder in a run: of a stage that is run for each arm, one arm's."""
        return Path(stage, "pivot", "0") if stage in FANNED else Path(stage)

    def start(
        self, stage: str, out: Path, engine: str = "local", *more: str, log: Path | None = None,
        **environment: str,
    ) -> Started:  # fmt: skip
        """One stage into a folder of its own, all its inputs taken from the unbroken run."""
        if log is None:
            out.mkdir(parents=True, exist_ok=True)
            log = out / "log"
        inputs = [f"--inputs.{other}={self.base / other}" for other in CHAIN if other != stage]
        only = ["--only", '["pivot/0"]'] if stage in FANNED else []
        return pivots(
            log, stage, "--config", str(self.config), "--out", str(out), *inputs, *only,
            *ENGINES[engine], *more, **environment,
        )  # fmt: skip

    def differences(self, stage: str, out: Path) -> list[str]:
        """Names of the files that differ from the unbroken run's, and of what was left behind."""
        folder = out / self.part(stage)
        mine, theirs = folder_bytes(folder), folder_bytes(self.base / self.part(stage))
        found = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
        left = [path.name for path in folder.rglob("*.tmp")]
        return found + left + ([WORK] if (folder / WORK).exists() else [])


def wait_until_at_work(started: Started, folder: Path) -> bool:
    """Return when a command has taken a stage's folder; False where it ended before."""
    line = f"(process {started.process.pid} on "
    end = time.monotonic() + PATIENCE_SECONDS
    while started.process.poll() is None:
        lock = folder / LOCK
        if lock.is_file() and line in lock.read_text() and (folder / WORK).is_dir():
            return True
        assert time.monotonic() < end, f"{folder}: nobody took it"
        time.sleep(0.002)
    return False


def send(started: Started, number: signal.Signals, seconds: float) -> bool:
    """Send a signal after some seconds, and wait for the end; False where it came too late."""
    try:
        started.process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        started.process.send_signal(number)
        started.process.wait(timeout=PATIENCE_SECONDS)
        return True
    return False


def is_done(folder: Path) -> bool:
    """Whether a stage's folder has its manifest."""
    return (folder / MANIFEST).is_file()


def seconds_at_work(folder: Path) -> float:
    """How long the run that finished a stage was at work there, by its own clock."""
    return float(read_json(folder / RUN)["seconds"])
