from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from mining.engine_settings import EngineSettings
from mining.tasks import run_tasks


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
