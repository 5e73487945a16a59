"""Every stage killed at random moments, a few times; tests/faults/kills.py does it often."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest

from launch.bench.kills import TOLERANCE, differences, last_step, settings, start
from tests.faults.harness import CHAIN, IN_PROCESSES, Chain
from tests.faults.kills import kill_runs, kill_workers

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("FAULTS_KILLS", "3"))
SEED = os.environ.get("FAULTS_SEED") or str(random.SystemRandom().randrange(1 << 32))


@pytest.mark.parametrize("stage", CHAIN)
def test_a_killed_stage_gives_the_bytes_of_an_unbroken_one(chain: Chain, stage: str) -> None:
    draw = random.Random(f"{SEED}/{stage}")
    found = kill_runs(chain, stage, "local", signal.SIGKILL, KILLS, draw)
    print(f"seed {SEED}", stage, found.line())
    assert found.kills, f"{stage} is over before it can be killed"
    assert not found.different, (SEED, found.different)


@pytest.mark.parametrize("stage", ["tokenize", "count", "mix", "train", "trace"])
def test_so_does_one_that_is_asked_to_end(chain: Chain, stage: str) -> None:
    draw = random.Random(f"{SEED}/{stage}/SIGTERM")
    found = kill_runs(chain, stage, "local", signal.SIGTERM, 1, draw)
    assert found.kills
    assert not found.different, (SEED, found.different)


@pytest.mark.parametrize("stage", IN_PROCESSES["local"])
def test_a_killed_worker_is_made_up_for(chain: Chain, stage: str) -> None:
    """As the kernel kills one process where memory runs out: the command itself comes through."""
    found = kill_workers(chain, stage, "local", 1, random.Random(f"{SEED}/{stage}/worker"))
    assert found.kills
    assert not found.different, (SEED, found.different)


def test_a_training_goes_on_after_one_of_its_ranks_is_killed(chain: Chain) -> None:
    """The launcher ends the others; the same command goes on from the last checkpoint."""
    steps = 40
    unbroken = start(settings(chain.root, "one", steps), "ddp", 1)
    options = settings(chain.root, "ranks", steps)
    metrics = chain.root / "ranks" / "train" / "pivot" / "0" / "metrics.jsonl"
    assert unbroken.wait(timeout=1800) == 0
    process = start(options, "ddp", 2)
    end = time.monotonic() + 300
    while last_step(metrics) < 15:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    ranks = [p for p in psutil.Process(process.pid).children() if "train" in p.cmdline()]
    assert len(ranks) == 2
    random.Random(SEED).choice(ranks).kill()
    assert process.wait(timeout=600) != 0
    again = start(options, "ddp", 2)
    assert again.wait(timeout=1800) == 0
    one = chain.root / "one" / "train" / "pivot" / "0"
    assert differences(metrics.parent, one)["loss_difference"] <= TOLERANCE
