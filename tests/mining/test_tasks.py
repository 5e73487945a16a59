from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import psutil
import pytest

from mining.common.errors import InputError, TaskError
from mining.common.logs import log
from mining.engine_settings import EngineSettings
from mining.tasks import run_tasks
from tests.conftest import REPOSITORY


def leave_a_file(rank: int, world: int, folder: Path) -> None:
    (folder / f"{rank}-of-{world}").write_text(os.environ.get("OMP_NUM_THREADS", "unset"))


@pytest.mark.parametrize("n_tasks", [1, 2])
def test_threads_are_limited_in_workers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_tasks: int
) -> None:
    """Later stages of the same process would train on one thread, and to other bits."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    task = partial(leave_a_file, folder=tmp_path)
    run_tasks("test", task, n_tasks, tmp_path / "tasks", EngineSettings(workers=2))
    assert "OMP_NUM_THREADS" not in os.environ
    expected = "1" if n_tasks > 1 else "unset"
    assert (tmp_path / f"0-of-{n_tasks}").read_text() == expected


def dies(rank: int, world: int, folder: Path, times: int, number: int = signal.SIGKILL) -> None:
    """Leave the rank's result; task 1's process is killed `times` times before that."""
    starts = folder / f"starts-{rank}"
    with starts.open("a") as handle:
        handle.write("x")
    if rank == 1 and len(starts.read_text()) <= times:
        os.kill(os.getpid(), number)
    (folder / f"result-{rank}").write_text(f"{rank} of {world}")


@pytest.mark.parametrize(
    ("n_tasks", "number", "name"),
    # A real-time signal has no name.
    [(2, signal.SIGRTMIN + 3, str(signal.SIGRTMIN + 3)), (5, signal.SIGKILL, "SIGKILL")],
)
def test_the_task_of_a_killed_worker_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    n_tasks: int, number: int, name: str,
) -> None:  # fmt: skip
    """datatrove's own pool waits for ever for it."""
    monkeypatch.setattr(log, "propagate", True)
    task = partial(dies, folder=tmp_path, times=1, number=number)
    run_tasks("test", task, n_tasks, tmp_path / "tasks", EngineSettings(workers=2))
    results = {path.name: path.read_text() for path in tmp_path.glob("result-*")}
    assert results == {f"result-{k}": f"{k} of {n_tasks}" for k in range(n_tasks)}
    starts = {path.name: len(path.read_text()) for path in tmp_path.glob("starts-*")}
    assert starts == {f"starts-{k}": 1 + (k == 1) for k in range(n_tasks)}
    assert f"task 1 ended by signal {name}, as" in caplog.text


def test_a_task_that_is_killed_again_is_an_error_and_the_others_are_not_redone(
    tmp_path: Path,
) -> None:
    engine = EngineSettings(workers=2)
    with pytest.raises(TaskError, match=r"task 1 ended by signal SIGKILL.*engine\.workers"):
        run_tasks("test", partial(dies, folder=tmp_path, times=2), 4, tmp_path / "tasks", engine)
    run_tasks("test", partial(dies, folder=tmp_path, times=2), 4, tmp_path / "tasks", engine)
    starts = {path.name: len(path.read_text()) for path in tmp_path.glob("starts-*")}
    assert starts == {"starts-0": 1, "starts-1": 3, "starts-2": 1, "starts-3": 1}


@pytest.mark.parametrize("often", [1, 2])
def test_the_process_that_workers_are_forked_from_may_be_killed_once(
    tmp_path: Path, often: int
) -> None:
    from multiprocess.forkserver import _forkserver

    _forkserver._stop()
    killed: set[int] = set()
    over = threading.Event()

    def kill() -> None:
        while len(killed) < often and not over.is_set():
            pid = _forkserver._forkserver_pid
            if pid is not None and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    engine = EngineSettings(workers=2)
    outcome = pytest.raises(TaskError, match="no worker process") if often == 2 else nullcontext()
    with outcome:
        run_tasks("test", partial(leave_a_file, folder=tmp_path), 2, tmp_path / "tasks", engine)
    over.set()
    killer.join()
    assert len(killed) == often
    assert len(list(tmp_path.glob("*-of-2"))) == (2 if often == 1 else 0)


def test_a_folder_for_temporary_files_that_no_socket_can_lie_in(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert f"SettingsError: TMPDIR: found {folder}" in found.stderr


class UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def fails(rank: int, world: int, kind: str) -> None:
    if rank == 0:
        time.sleep(600)
    if kind == "input":
        raise InputError("no such thing")
    if kind == "disk":
        raise OSError(28, "No space left on device", "/x")
    raise UnpicklableError("no ", "such thing")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("input", InputError), ("disk", OSError), ("unpicklable", RuntimeError)],
)
def test_an_error_arrives_at_once_with_its_place(
    tmp_path: Path, kind: str, expected: type[Exception]
) -> None:
    with pytest.raises(expected, match=r"no such thing|No space left") as caught:
        run_tasks("test", partial(fails, kind=kind), 2, tmp_path, EngineSettings(workers=2))
    assert "in fails" in caught.value.__notes__[0]


OWNER = """
import sys
from functools import partial
from pathlib import Path
from mining.engine_settings import EngineSettings
from mining.tasks import run_tasks
from tests.mining.test_tasks import hangs
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_tasks("test", partial(hangs, folder=folder), 2, folder / "tasks", EngineSettings(workers=2))
"""


def hangs(rank: int, world: int, folder: Path) -> None:
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(600)


def is_at_work(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_end_with_their_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], cwd=REPOSITORY)
    end = time.monotonic() + 60
    while len(pids := [p.read_text() for p in tmp_path.glob("pid-*") if p.read_text()]) < 2:
        assert time.monotonic() < end
        assert owner.poll() is None
        time.sleep(0.02)
    owner.kill()
    owner.wait()
    end = time.monotonic() + 20
    while any(map(is_at_work, map(int, pids))):
        assert time.monotonic() < end, "a worker outlives the process that it worked for"
        time.sleep(0.01)
