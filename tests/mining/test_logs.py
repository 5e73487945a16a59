"""Progress and log lines: on a terminal, elsewhere, and in a file."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mining.common import logs
from mining.common.logs import log, progress, setup_logging
from mining.common.memory import resident_bytes
from tests.conftest import REPOSITORY

WORK = """
import sys, time
from pathlib import Path
from mining.common import logs
logs.PLAIN_INTERVAL_SECONDS = 0.0
logs.setup_logging(quiet="quiet" in sys.argv)
logs.log_to_file(Path(sys.argv[1]))
with logs.progress("count", 3, "tasks") as ticker:
    for k in range(3):
        ticker.note(f"loss {k}")
        ticker.advance()
        time.sleep(0.15)
    logs.log.info("a line beside the bar")
logs.log.warning("a warning")
"""


def test_a_log_file_that_cannot_be_written_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """The library would print a traceback for every line; other mistakes it still shows."""
    setup_logging()
    logs.log_to_file(Path("/dev/full"))
    log.info("a line for the terminal")
    assert "a line for the terminal" in (shown := capsys.readouterr().err)
    assert "Traceback" not in shown
    log.info("%d", "no number")
    assert "TypeError" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        log.handlers.pop().close()  # it still has the line


def on_terminal(*arguments: str) -> str:
    """What a terminal of 200 columns shows of WORK."""
    leader, follower = pty.openpty()
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "200",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments], stderr=follower, stdout=follower, env=environment
    )
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(leader)
    assert process.wait() == 0
    return shown.decode()


def test_a_terminal_has_a_bar_and_the_file_has_lines(tmp_path: Path) -> None:
    shown = on_terminal(str(tmp_path / "run.log"))
    for part in ("count", "3/3", "tasks", "/s", "MiB", "loss 2", "a line beside the bar"):
        assert part in shown, part
    assert "tasks, " not in shown  # no plain line among the bar's
    lines = (tmp_path / "run.log").read_text("utf-8").splitlines()
    assert len(lines) == 6
    assert " I count: 1/3 tasks, " in lines[0]
    assert lines[0].endswith("loss 0")
    assert "left" in lines[0]
    assert "count: 3/3 tasks" in lines[4]
    assert "took 0:00:0" in lines[4]
    assert lines[5].endswith(" W a warning")


def test_quiet_shows_warnings_only_and_the_file_has_all(tmp_path: Path) -> None:
    shown = on_terminal(str(tmp_path / "run.log"), "quiet")
    assert shown.strip().endswith("a warning")
    assert "count" not in shown
    assert (tmp_path / "run.log").read_text("utf-8").count("count: ") == 4


def test_elsewhere_there_are_plain_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging()
    clock = iter([0.0, *(20.0 * k for k in range(1, 5))])
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(logs, "resident_bytes", lambda: 3 << 20)
    with progress("train", 4, "steps") as ticker:
        ticker.advance(1)
        ticker.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1].strip() for line in lines] == [
        "train: 1/4 steps, 0.05/s, 0:01:00 left, 3 MiB",
        "train: 3/4 steps, 0.075/s, 0:00:13 left, 3 MiB",
    ]


def test_verbose_adds_details(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        setup_logging(verbose=verbose)
        log.debug("a detail")
    assert capsys.readouterr().err.count("a detail") == 1
    assert log.level == logging.DEBUG


def test_memory_counts_the_processes_below() -> None:
    alone = resident_bytes()
    assert alone > 1 << 20
    code = "import os, sys; held = bytearray(os.urandom(1 << 16)) * 1600; print(1, flush=True); "
    with subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_bytes() > alone + (90 << 20)
        child.communicate("")
