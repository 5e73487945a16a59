"""Likelihoods are computed once: across kills, runs, damaged files and several processes."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval import evaluate as evaluate_module
from eval.evaluate import run_evaluate
from eval.loss_store import LossStore, store_name
from eval.scoring import Scorer
from eval.settings import EvaluateSettings
from mining.common.errors import InputError, SettingsError
from mining.common.files import read_json
from mining.common.task import read_task
from tests.conftest import REPOSITORY, folder_bytes

N = 20
SETTINGS = EvaluateSettings(draws=2, examples=2, bootstrap_samples=50, device="cpu")
Evaluate = Callable[..., Path]


@pytest.fixture
def chunks_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "CHUNK_ITEMS", 8)


@pytest.fixture
def evaluate(tmp_path: Path, word_task: Any, word_level: Any, tiny_model: Any) -> Evaluate:
    """Evaluates a tiny model on a task of N concepts in two languages; returns the folder."""
    path = word_task(tmp_path / "task", N, ("en", "fr"))
    task = read_task(path)
    everything = [task.prompt(a, b, list(task.concepts), "") for a, b in task.directions()]
    tokenizer = word_level(everything, tmp_path / "model")
    tiny_model("llama", tokenizer.vocab_size).save_pretrained(tmp_path / "model")

    def run(name: str, settings: EvaluateSettings = SETTINGS, task: Path = path) -> Path:
        run_evaluate(settings, tmp_path / name, str(tmp_path / "model"), task, None, 5)
        return tmp_path / name

    return run


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each call of the scorer was asked for; the probe's six are among them."""
    calls: list[int] = []
    real = Scorer.log_probs

    def counted(self: Scorer, members: Any) -> Any:
        calls.append(len(members))
        return real(self, members)

    monkeypatch.setattr(Scorer, "log_probs", counted)
    return calls


class KilledError(Exception):
    """Stands for a SIGKILL between two chunks."""


@pytest.mark.usefixtures("chunks_of_eight")
def test_an_interrupted_run_gives_the_same_bytes(
    evaluate: Evaluate, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("whole")
    n_chunks = len(scored)
    real = LossStore.add
    added = []

    def twice(self: LossStore, found: Any) -> None:
        if len(added) == 2:
            raise KilledError
        added.append(found)
        real(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(LossStore, "add", twice)
        with pytest.raises(KilledError):
            evaluate("broken")
    broken = whole.parent / "broken"
    assert not (broken / "manifest.json").exists()
    assert len(list((broken / ".work").rglob("*.parquet"))) == 2
    scored.clear()
    evaluate("broken")
    assert len(scored) == n_chunks - 2
    assert folder_bytes(broken) == folder_bytes(whole)
    assert not (broken / ".work").exists()
    scored.clear()
    evaluate("broken")
    assert not scored


def test_a_cache_serves_other_settings_and_tasks(
    evaluate: Evaluate, scored: list[int], tmp_path: Path
) -> None:
    cached = dataclasses.replace(SETTINGS, cache=str(tmp_path / "cache"))
    plain, first = evaluate("plain"), evaluate("first", cached)
    # Where the likelihoods are kept is no part of the result.
    assert folder_bytes(plain) == folder_bytes(first)
    scored.clear()
    again = evaluate("again", dataclasses.replace(cached, bootstrap_samples=20, confidence=0.9))
    assert not scored
    assert (again / "items.parquet").read_bytes() == (first / "items.parquet").read_bytes()
    # Another version of the task, whose last concept is called something else.
    table = (tmp_path / "task" / "concepts.tsv").read_text("utf-8")
    text = (tmp_path / "task" / "task.yaml").read_text("utf-8")
    (tmp_path / "two").mkdir()
    last = f"wen{N - 1}\twfr{N - 1}"
    assert last in table
    (tmp_path / "two" / "concepts.tsv").write_text(table.replace(last, "wen1\twfr2"), "utf-8")
    (tmp_path / "two" / "task.yaml").write_text(text.replace('"version": 1', '"version": 2'))
    evaluate("other", cached, tmp_path / "two" / "task.yaml")
    asked = pq.read_table(tmp_path / "other" / "candidates.parquet").num_rows * SETTINGS.draws
    assert 0 < sum(scored) - 12 < asked
    fresh = evaluate("fresh", SETTINGS, tmp_path / "two" / "task.yaml")
    frames = [pq.read_table(tmp_path / n / "items.parquet").to_pandas() for n in ("other", "fresh")]
    assert fresh.is_dir()
    np.testing.assert_allclose(frames[0].loss, frames[1].loss, atol=1e-5)
    np.testing.assert_array_equal(frames[0]["rank"], frames[1]["rank"])


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"draws": 1},
        {"examples": 1},
        {"shared_draws": True},
        {"share_prefixes": "off"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_likelihood_is_not_taken_from_the_cache(
    change: dict[str, Any], evaluate: Evaluate, scored: list[int], tmp_path: Path
) -> None:
    cached = dataclasses.replace(SETTINGS, cache=str(tmp_path / "cache"), max_items=3)
    evaluate("first", cached)
    scored.clear()
    evaluate("second", dataclasses.replace(cached, **change))
    assert sum(scored) > 6


def test_another_model_is_not_taken_from_the_cache(
    evaluate: Evaluate, scored: list[int], tmp_path: Path, tiny_model: Any
) -> None:
    cached = dataclasses.replace(SETTINGS, cache=str(tmp_path / "cache"))
    first = evaluate("first", cached)
    vocab = read_json(tmp_path / "model" / "config.json")["vocab_size"]
    tiny_model("llama", vocab, seed=1).save_pretrained(tmp_path / "model")
    scored.clear()
    second = evaluate("second", cached)
    assert scored
    losses = [pq.read_table(out / "items.parquet").column("loss") for out in (first, second)]
    assert losses[0] != losses[1]


def test_a_damaged_file_is_computed_again(
    evaluate: Evaluate, scored: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached = dataclasses.replace(SETTINGS, cache=str(tmp_path / "cache"))
    first = evaluate("first", cached)
    files = sorted((tmp_path / "cache").rglob("*.parquet"))
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)
    files[1].write_bytes(files[1].read_bytes()[:100])
    scored.clear()
    with caplog.at_level(logging.WARNING):
        second = evaluate("second", cached)
    assert caplog.text.count("damaged, so what it held is computed again") == 2
    assert scored
    assert folder_bytes(first) == folder_bytes(second)
    # Only whole files are left.
    assert sorted((tmp_path / "cache").rglob("*.parquet")) == files


def test_a_cache_that_is_a_file_is_named(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="cache: found a file, expected a folder"):
        evaluate("out", dataclasses.replace(SETTINGS, cache=str(tmp_path / "cache")))


def test_a_store_reads_what_others_add(tmp_path: Path) -> None:
    mine, theirs = LossStore(tmp_path), LossStore(tmp_path)
    mine.add({"a": np.array([-1.5, -0.25])})
    mine.add({})
    assert theirs.get("a") is None
    theirs.refresh()
    np.testing.assert_array_equal(theirs.get("a"), [-1.5, -0.25])
    assert len(list(tmp_path.iterdir())) == 1
    assert store_name({"a": 1}) == store_name({"a": 1}) != store_name({"a": 2})


SCRIPT = """
import sys
from pathlib import Path
from eval import evaluate
from eval.settings import EvaluateSettings
evaluate.CHUNK_ITEMS = 8
settings = EvaluateSettings(draws=2, examples=2, bootstrap_samples=50, device="cpu")
root = Path(sys.argv[1])
for name in ("two", "two"):
    evaluate.run_evaluate(
        settings, root / name, str(root / "model"), root / "task" / "task.yaml", None, 5
    )
"""


@pytest.mark.slow
@pytest.mark.usefixtures("chunks_of_eight")
def test_two_processes_give_the_bytes_of_one(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = evaluate("one")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, "2", str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert folder_bytes(tmp_path / "two") == folder_bytes(one)


def test_frequencies_need_their_words(evaluate: Evaluate) -> None:
    with pytest.raises(SettingsError, match=r"frequency_bands: found \(1, 10\).*words folder"):
        evaluate("out", dataclasses.replace(SETTINGS, frequency_bands=(1, 10)))
