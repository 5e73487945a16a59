"""`pivots launch --on` a real Slurm of one node (tests/start_slurm.sh): the chain as jobs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launch.cli import main
from launch.status import StageStatus, run_status
from mining.common.manifest import read_manifest
from tests.conftest import REPOSITORY
from tests.launch.test_launch import files_with, planted, write_profile

pytestmark = pytest.mark.slurm
SMOKE = str(REPOSITORY / "configs" / "smoke" / "quickstart.yaml")
RUN = Path("runs/quickstart")
JOB = {"memory": "2G", "time": "20:00"}
SMALL = [
    "--world.pool_documents", "1500", "--mix.arms", "[random, pivot]", "--mix.budget_tokens",
    "20000", "--train.duration", "200steps", "--train.checkpoint_every", "20", "--train.log_every",
    "5",
]  # fmt: skip


def queue() -> list[str]:
    """The names of this test's jobs that wait or run."""
    found = subprocess.check_output(["squeue", "--noheader", "--format=%Z|%j"], text=True)
    rows = [line.split("|", 1) for line in found.splitlines()]
    return [name for folder, name in rows if folder == str(Path.cwd())]


def wait_for(what: Callable[[], object], seconds: float = 1500) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, describe()
        time.sleep(0.1)


def describe() -> str:
    logs = sorted((RUN / "launch" / "logs").glob("*.out"))
    texts = [f"{path.name}: {path.read_text()[-1500:]}" for path in logs[-2:]]
    return "\n".join([*(str(one) for one in run_status(RUN)), *texts])


def stages() -> dict[str, StageStatus]:
    return {one.stage: one for one in run_status(RUN)}


def has_checkpoint(arm: str) -> bool:
    return any((RUN / "train" / arm / "0" / "checkpoints").glob("step-*"))


def ranks_of(arm: str) -> list[psutil.Process]:
    """The processes of an arm's training, the launcher not among them."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = process.info["cmdline"] or []
        if "launch.cli" in line and "train" in line and f'["{arm}/0"]' in line:
            found += [process] if "launch.processes" not in line else []
    return [process for process in found if process.info["cwd"] == str(Path.cwd())]


@pytest.mark.slow
def test_the_chain_as_jobs_with_a_killed_and_a_stopped_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process of one arm is killed, the other arm is told that its time is up: both go on."""
    monkeypatch.chdir(tmp_path)
    secrets = planted(monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    profile = write_profile(
        tmp_path / "cluster.yaml", kind="slurm", job=JOB, stages={"train": {"processes": 2}},
        restarts=1,
        setup='echo "given:${WANDB_API_KEY:+ own}${AWS_SECRET_ACCESS_KEY:+ foreign}"',
    )  # fmt: skip
    arguments = ["launch", SMOKE, "--on", profile, *SMALL]
    assert main(arguments) == 0
    assert main(arguments) == 4
    assert "jobs of an earlier launch wait or run" in capsys.readouterr().err
    job = dict(line.split() for line in (RUN / "launch" / "jobs").read_text().splitlines())["train"]

    for arm in ("random", "pivot"):
        wait_for(lambda arm=arm: has_checkpoint(arm))  # type: ignore[misc]
        if arm == "random":
            ranks_of(arm)[-1].kill()
        else:
            subprocess.run(["scancel", "--batch", "--signal=TERM", f"{job}_1"], check=True)
    wait_for(lambda: all(one.state == "done" for one in stages().values()))
    assert main(["status", str(RUN)]) == 0
    assert "report" in capsys.readouterr().out
    assert (RUN / "report" / "report.html").is_file()
    wait_for(lambda: not queue())

    logs = RUN / "launch" / "logs"
    for number, arm in enumerate(("random", "pivot")):
        printed = (logs / f"09-train-{job}_{number}.out").read_text()
        assert "back into the queue" in printed
        assert "resumes after step" in printed
        starts = sorted(path.name for path in (logs / f"09-train-{job}_{number}").iterdir())
        assert starts == ["start-0", "start-1"]
        for start in starts:
            ranks = (logs / f"09-train-{job}_{number}" / start).rglob("stderr.log")
            assert sorted(path.parent.name for path in ranks) == ["0", "1"]
        # No step is missing, none twice.
        lines = (RUN / "train" / arm / "0" / "metrics.jsonl").read_text().splitlines()
        steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]
        assert steps == list(range(steps[0], 201, steps[1] - steps[0]))
        assert read_manifest(RUN / "train" / arm / "0").counts["steps"] == 200
    stopped = (logs / f"09-train-{job}_1" / "start-0").rglob("stderr.log")
    assert any("stopped by SIGTERM after step" in path.read_text() for path in stopped)

    # Jobs have the secret that the profile names, and no other; nothing wrote either down.
    given = {
        line
        for path in logs.glob("*.out")
        for line in path.read_text().splitlines()
        if line.startswith("given:")
    }
    assert given == {"given: own"}
    assert files_with(tmp_path, secrets) == []


@pytest.mark.slow
def test_a_cancelled_stage_takes_its_arrays_of_tasks_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's job waits for arrays that it submits; what they finished counts later."""
    monkeypatch.chdir(tmp_path)
    engine = {"kind": "slurm", "workers": 1, "slurm": {"mem_per_cpu_gb": 1}}
    profile = write_profile(tmp_path / "p.yaml", kind="slurm", job=JOB, engine=engine)
    common = ["--config", SMOKE, "--world.pool_documents", "300", "--tokenize.words", "false"]
    for stage in ("world", "tokenizer"):
        assert main([stage, *common]) == 0
    assert main(["launch", "tokenize", *common, "--on", profile]) == 0
    tasks = RUN / "tokenize" / ".work" / "tasks"
    wait_for(lambda: list((tasks / "completions").glob("*")))
    assert stages()["tokenize"].state == "running"
    assert stages()["tokenize"].total == 4
    job = (RUN / "launch" / "jobs").read_text().split()[-1]
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: not queue())
    n_done = len(list((tasks / "completions").glob("*")))
    assert n_done < 4
    assert stages()["tokenize"].state == "failed"
    assert main(["launch", "tokenize", *common, "--on", profile]) == 0
    wait_for(lambda: stages()["tokenize"].state == "done")
    job = (RUN / "launch" / "jobs").read_text().split()[-1]
    log = (RUN / "launch" / "logs" / f"03-tokenize-{job}.out").read_text()
    assert f"tokenize: {4 - n_done} tasks on Slurm" in log


@pytest.mark.slow
def test_a_failed_stage_ends_the_chain_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = write_profile(tmp_path / "p.yaml", kind="slurm", job=JOB)
    (tmp_path / "documents").mkdir()
    arguments = ["launch", SMOKE, "--on", profile, "--corpus.path", "documents"]
    assert main([*arguments, "--task", "words"]) == 0
    wait_for(lambda: not queue())
    found = stages()
    assert found["tokenizer"].state == "failed"
    assert "error: documents" in found["tokenizer"].notes[0]
    assert {one.state for stage, one in found.items() if stage != "tokenizer"} == {"pending"}
    assert main(["status", str(RUN)]) == 6
    assert "its log is runs/quickstart/launch/logs/02-tokenizer-" in capsys.readouterr().out


def test_a_job_that_never_has_time_enough_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is put back into the queue as often as the profile says (in the chain once), then not."""
    monkeypatch.chdir(tmp_path)
    profile = write_profile(tmp_path / "p.yaml", kind="slurm", job=JOB, restarts=0)
    large = ["--world.pool_documents", "1000000"]
    assert main(["launch", "world", "--config", SMOKE, "--on", profile, *large]) == 0
    job = (RUN / "launch" / "jobs").read_text().split()[-1]
    log, work = RUN / "launch" / "logs" / f"01-world-{job}.out", RUN / "world" / ".lock"
    wait_for(work.exists, 120)  # then the script listens
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], check=True)
    wait_for(lambda: not queue(), 60)
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: status 143 after 0 restarts, and the profile allows 0")
    assert main(["status", str(RUN)]) == 6
    assert last in capsys.readouterr().out


def test_jobs_that_slurm_refuses_leave_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = {"report": {"partition": "nowhere"}}
    profile = write_profile(tmp_path / "p.yaml", kind="slurm", job=JOB, stages=stages)
    assert main(["launch", SMOKE, "--on", profile, *SMALL]) == 2
    assert "sbatch refuses a job" in capsys.readouterr().err
    wait_for(lambda: not queue(), 60)
