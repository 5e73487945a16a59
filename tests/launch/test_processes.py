"""A stage in several processes, as `pivots launch` starts and ends them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from launch.cli import main
from launch.processes import describe, first_failure
from mining.common.manifest import read_manifest
from mining.common.stage import begin
from tests.conftest import REPOSITORY
from tests.launch.test_launch import TRAIN, write_profile
from tests.training.conftest import write_mix

ACCELERATE = str(REPOSITORY / "configs/accelerate/one-node.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in: what launch writes has relative paths in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rank_logs(folder: Path) -> list[str]:
    """What each process of a training printed, by the end of its log's path."""
    return sorted(
        "/".join(path.parts[-4:-1]) for path in folder.rglob("stderr.log") if path.stat().st_size
    )


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", [None, ACCELERATE])
def test_a_training_of_two_processes(here: Path, accelerate: str | None) -> None:
    write_mix(here / "mix")
    profile = write_profile(
        here / "p.yaml", kind="local", stages={"train": {"processes": 2}}, accelerate=accelerate
    )
    assert main(["launch", "train", "--on", profile, "--out", "run", *TRAIN]) == 0
    counts = read_manifest(Path("run/train/pivot/0"), "train").counts
    assert counts["steps"] == 24
    logs = rank_logs(Path("run/launch/logs"))
    assert [name.split("/")[-1] for name in logs] == ["0", "1"]


def descendants() -> list[psutil.Process]:
    """The processes that work in this folder, but this one."""
    return [
        process
        for process in psutil.process_iter(["cwd"])
        if process.pid != os.getpid() and process.info["cwd"] == str(Path.cwd())
    ]


@pytest.mark.slow
def test_a_launch_that_is_told_to_stop_waits_for_the_checkpoint(here: Path) -> None:
    """SIGTERM to the command alone reaches the processes of a training, which outlive nothing."""
    write_mix(here / "mix")
    profile = write_profile(here / "p.yaml", kind="local", stages={"train": {"processes": 2}})
    command = [sys.executable, "-m", "launch.cli", "launch", "train", "--on", profile]
    command += ["--out", "run", *TRAIN, "--train.duration", "100000steps"]
    with Path("printed").open("wb") as printed:
        launch = subprocess.Popen(
            command, stdout=printed, stderr=printed, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while not Path("run/train/pivot/0/metrics.jsonl").is_file():
            assert launch.poll() is None, Path("printed").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        assert len(descendants()) >= 4  # the command, the launcher, two processes
        launch.send_signal(signal.SIGTERM)
        assert launch.wait(timeout=120) == 143
        assert descendants() == []
    finally:
        for process in descendants():
            process.kill()
    (log,) = Path("run/launch/logs").glob("09-train.log")
    assert "stopped by SIGTERM after step" in log.read_text()
    assert Path("printed").read_text().endswith(log.read_text())
    assert list(Path("run/train/pivot/0/checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", [None, ACCELERATE])
def test_a_failure_of_one_process_is_the_exit_code(
    here: Path, accelerate: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first process finds its folder taken, while the second waits for it."""
    write_mix(here / "mix")
    profile = write_profile(
        here / "p.yaml", kind="local", stages={"train": {"processes": 2}}, accelerate=accelerate
    )
    held = begin("train", Path("run/train/pivot/0"), {}, {})
    assert held is not None
    arguments = ["launch", "train", "--on", profile, "--out", "run", *TRAIN]
    assert main(arguments) == 4
    assert "is writing this output" in capfd.readouterr().out
    held.lock.close()


@dataclass
class Ended:
    local_rank: int
    exitcode: int
    timestamp: int


@pytest.mark.parametrize(
    ("ended", "first"),
    [
        ([Ended(0, 2, 5), Ended(1, 2, 5)], 0),
        ([Ended(0, -15, 5), Ended(1, 3, 6)], 1),  # told to stop
        ([Ended(0, 143, 5), Ended(1, -9, 6)], 1),
        ([Ended(0, 1, 5), Ended(1, 6, 5)], 1),  # its partner was gone
        ([Ended(0, 1, 6), Ended(1, 1, 5)], 1),
        ([Ended(0, 143, 5), Ended(1, 143, 5)], 0),
    ],
)
def test_the_process_that_says_why(ended: list[Ended], first: int) -> None:
    assert first_failure(ended) is ended[first]


def test_what_is_said_about_a_process(tmp_path: Path) -> None:
    """The error of a process whose output is not shown, or how it ended and where its log is."""
    for rank, text in ((0, "error: one\n"), (1, "x\nerror: two\nbye\n"), (2, "Traceback\n")):
        log = tmp_path / "7_x" / "attempt_0" / str(rank) / "stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text(text)
    assert describe(Ended(0, 2, 0), tmp_path) is None
    assert describe(Ended(1, 2, 0), tmp_path) == "error: two"
    told = describe(Ended(2, -9, 0), tmp_path)
    assert told == f"error: process 2 ended by SIGKILL; its log is {log}"
    told = describe(Ended(3, 1, 0), tmp_path)
    assert told == f"error: process 3 ended with status 1; it left no log in {tmp_path}"


@pytest.mark.slow
def test_two_nodes_meet_at_the_endpoint(here: Path) -> None:
    """The script that a Slurm job starts on each of its nodes, here in two process groups."""
    write_mix(here / "mix")
    profile = write_profile(here / "p.yaml", kind="slurm", stages={"train": {"nodes": 2}})
    common = ["train", "--on", profile, "--out", "run", *TRAIN]
    assert main(["launch", *common, "--train.parallel", "fsdp", "--dry_run"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"PIVOTS_HEAD": "127.0.0.1", "PIVOTS_PORT": str(port), "PIVOTS_JOB": "7"}
    places |= {"PIVOTS_NODES": "2", "PIVOTS_LOGS": "logs", "OMP_NUM_THREADS": "1"}
    (script,) = Path("run/launch").glob("*-train.node.sh")
    nodes = [
        subprocess.Popen(
            ["bash", str(script)], env={**os.environ, **places, "PIVOTS_NODE": str(node)},
            start_new_session=True,
        )
        for node in (1, 0)
    ]  # fmt: skip
    try:
        assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    assert read_manifest(Path("run/train/pivot/0"), "train").counts["steps"] == 24
    names = {path.relative_to("logs").parts[0] for path in Path("logs").rglob("stderr.log")}
    assert names == {"node-0", "node-1"}
