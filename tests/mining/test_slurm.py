"""The Slurm engine on a real Slurm of one node (tests/start_slurm.sh): results, kills, errors."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from mining import slurm as slurm_engine
from mining.common.errors import InputError, MissingDependencyError, SettingsError, TaskError
from mining.common.slurm_jobs import JOBS, note_jobs
from mining.common.stage import begin
from mining.count import run_count
from mining.engine_settings import EngineSettings, SlurmSettings
from mining.pivots import run_pivots
from mining.score import run_score
from mining.settings import (
    CorpusSettings,
    CountSettings,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
    WorldSettings,
)
from mining.tasks import run_tasks
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer
from mining.words import run_words
from mining.world import run_world
from tests.conftest import REPOSITORY, folder_bytes

slurm = pytest.mark.slurm
SLURM = EngineSettings(kind="slurm", workers=2, slurm=SlurmSettings(mem_per_cpu_gb=1))
LOCAL = EngineSettings(workers=1)


def record_start(folder: Path, rank: int) -> int:
    """Note that a task starts in this process; returns how often it has now started."""
    path = folder / f"starts-{rank}"
    with path.open("a") as handle:
        handle.write(f"{os.getpid()}\n")
    return len(pids(path))


def pids(path: Path) -> list[int]:
    """The processes that a task ran in, the last one only if its line is whole."""
    text = path.read_text() if path.is_file() else ""
    return [int(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for_pid(path: Path) -> int:
    end = time.monotonic() + 60
    while not (found := pids(path)):
        assert time.monotonic() < end, f"nobody started {path}"
        time.sleep(0.1)
    return found[0]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def hang_at_first(rank: int, world: int, folder: Path, hanging: tuple[int, ...]) -> None:
    """Leave the rank's result; at the first start of some ranks, hang instead."""
    if record_start(folder, rank) == 1 and rank in hanging:
        time.sleep(600)
    (folder / f"result-{rank}").write_text(f"{rank} of {world}")


def fail(rank: int, world: int, error: Exception) -> None:
    if rank == 1:
        raise error
    time.sleep(600)


def queued_jobs() -> str:
    """The jobs of run_tasks("test", ...) that wait or run."""
    command = ["squeue", "--noheader", "--name=pivots test", "--format=%F %T"]
    return subprocess.check_output(command, text=True)


def run_stages(root: Path, corpus: CorpusSettings, task: Path, engine: EngineSettings) -> None:
    """All stages that divide their work into tasks, on one engine."""
    tokenizer = Path("tokenizer")
    run_tokenize(TokenizeSettings(words=True), corpus, root / "tokenize", tokenizer, engine)
    count = CountSettings(unit="word", top_items=300, map_tasks=2)
    run_count(count, root / "count", root / "tokenize", tokenizer, engine)
    run_words(
        WordsSettings(sample_documents=20, matching="both"), root / "words", corpus,
        root / "tokenize", tokenizer, task, engine, 0,
    )  # fmt: skip
    pivots = PivotsSettings(stability=True, top_share=0.1, min_doc_freq=5)
    run_pivots(pivots, root / "pivots", root / "count", root / "tokenize", engine)
    run_score(ScoreSettings(), root / "score", root / "tokenize", root / "pivots", engine)


@slurm
@pytest.mark.slow
def test_every_stage_gives_the_local_engines_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths hold in the jobs too
    world = Path("world")
    settings = WorldSettings(
        topics=2, concepts_per_topic=6, training_per_topic=4, function_words=5, neutral_words=5,
        pivots=8, names_per_language=2, format_passes=1, identity_passes=1, pool_documents=300,
        max_pair_count=4,
    )  # fmt: skip
    run_world(settings, world, 0)
    files = sorted((world / "documents").iterdir())
    for k in range(2):  # gzip members one after another are one file
        whole = b"".join(path.read_bytes() for path in files[k::2])
        Path("documents").mkdir(exist_ok=True)
        Path(f"documents/{k}.jsonl.gz").write_bytes(whole)
    corpus = CorpusSettings(path="documents")
    trained = TokenizerSettings(model_type="word", vocab_size=400)
    run_tokenizer(trained, corpus, Path("tokenizer"), 0)
    for name, engine in (("local", LOCAL), ("slurm", SLURM)):
        run_stages(Path(name), corpus, world / "task.yaml", engine)
    expected = folder_bytes(Path("local"))
    assert folder_bytes(Path("slurm")) == expected
    assert {name.split("/")[0] for name in expected} == {
        "tokenize", "count", "words", "pivots", "score"
    }  # fmt: skip


@slurm
@pytest.mark.slow
def test_a_killed_task_is_redone_alone(tmp_path: Path) -> None:
    """Six tasks are more than the test cluster takes as one array: the last is in a second job."""
    task = partial(hang_at_first, folder=tmp_path, hanging=(5,))

    def kill() -> None:
        os.kill(wait_for_pid(tmp_path / "starts-5"), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TaskError, match="task 5 of 6 did not finish") as caught:
        run_tasks("test", task, 6, tmp_path / "tasks", SLURM)
    killer.join()
    assert "FAILED, status 0, signal 9" in str(caught.value)
    logs = list((tmp_path / "tasks" / "slurm_logs").iterdir())
    assert len(logs) == 6
    n_jobs = math.ceil(6 / slurm_engine.max_array_size())
    assert len({path.name.split("_")[0] for path in logs}) == n_jobs
    run_tasks("test", task, 6, tmp_path / "tasks", SLURM)
    assert [len(pids(tmp_path / f"starts-{rank}")) for rank in range(6)] == [1, 1, 1, 1, 1, 2]
    assert (tmp_path / "result-5").read_text() == "5 of 6"
    assert not (tmp_path / "tasks" / JOBS).exists()


DRIVER = """
import signal, sys
from functools import partial
from pathlib import Path
from mining.common.stage import begin
from mining.tasks import run_tasks
from tests.mining.test_slurm import SLURM, hang_at_first
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test in the background lacks
folder = Path(sys.argv[1])
run = begin("test", folder / "out", {"value": 1}, {})
task = partial(hang_at_first, folder=folder, hanging=(0, 1))
run_tasks("test", task, 2, run.work / "tasks", SLURM)
"""


@slurm
@pytest.mark.slow
@pytest.mark.parametrize("engine", [SLURM, LOCAL], ids=["continued", "other-settings-and-engine"])
def test_jobs_of_a_killed_run_are_ended_by_the_next(tmp_path: Path, engine: EngineSettings) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=REPOSITORY)
    left = [wait_for_pid(tmp_path / f"starts-{rank}") for rank in range(2)]
    driver.kill()
    driver.wait()
    assert all(map(is_alive, left))
    run = begin("test", tmp_path / "out", {"value": 1 if engine == SLURM else 2}, {})
    assert run is not None
    assert not any(map(is_alive, left))
    task = partial(hang_at_first, folder=tmp_path, hanging=(0, 1))
    run_tasks("test", task, 2, run.work / "tasks", engine)
    assert [(tmp_path / f"result-{rank}").is_file() for rank in range(2)] == [True, True]


@slurm
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_job(tmp_path: Path, number: signal.Signals) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=REPOSITORY)
    pid = wait_for_pid(tmp_path / "starts-0")
    driver.send_signal(number)
    driver.wait(timeout=120)
    assert not is_alive(pid)
    assert queued_jobs() == ""


@slurm
@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [InputError("x.jsonl: line 3 is torn"), ValueError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_a_tasks_error_arrives_and_ends_the_other_tasks(tmp_path: Path, error: Exception) -> None:
    start = time.monotonic()
    expected = InputError if isinstance(error, InputError) else TaskError
    with pytest.raises(expected) as caught:
        run_tasks("test", partial(fail, error=error), 2, tmp_path / "tasks", SLURM)
    assert type(caught.value) is expected
    assert time.monotonic() - start < 100
    assert queued_jobs() == ""
    if expected is TaskError:
        message = str(caught.value)
        assert "test: task 1 of 2 failed" in message
        assert "ValueError: a bug" in message
        place = Path(message.split("log is ")[1])
        assert "ValueError: a bug" in place.read_text()
    else:
        assert str(caught.value) == str(error)


@slurm
def test_a_job_that_slurm_refuses(tmp_path: Path) -> None:
    engine = EngineSettings(kind="slurm", slurm=SlurmSettings(partition="nowhere"))
    with pytest.raises(SettingsError, match=r"sbatch refuses.*partition"):
        run_tasks("test", partial(fail, error=ValueError()), 2, tmp_path / "tasks", engine)


def test_without_slurm_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"no sbatch here.*--engine.kind local"):
        run_tasks("test", partial(fail, error=ValueError()), 2, tmp_path / "tasks", SLURM)


def test_a_job_that_nobody_noted_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run was killed between submitting it and noting its id: no later run could end it."""
    monkeypatch.setattr(slurm_engine, "SUBMIT_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    note_jobs(tmp_path, ["70"])
    step = slurm_engine._ArrayStep(partial(hang_at_first, folder=tmp_path, hanging=()), tmp_path)
    with pytest.raises(SystemExit, match="job 7 does not stand in"):
        step(None, 0, 1)
    note_jobs(tmp_path, ["70", "7"])
    step._check_job()
    assert not (tmp_path / "starts-0").exists()
