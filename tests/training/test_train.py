"""The stage as a whole: export, resume, continuation, errors, W&B, several processes."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers

from mining.common.errors import InputError, MismatchError, MissingDependencyError, SettingsError
from mining.common.files import read_json
from mining.common.lineage import verify_outputs
from mining.common.stage import read_manifest
from mining.common.tokenizer import load_tokenizer
from tests.wandb_files import read_runs
from training import checkpoint, loop
from training.errors import DivergedError, StoppedError
from training.model import build_model
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train

WORKER = """
import json, sys
from pathlib import Path
from training.settings import ModelSettings, TrainSettings, WandbSettings
from training.train import run_train
values = json.loads(sys.argv[1])
settings = TrainSettings(**{**values, "model": ModelSettings(**values["model"]),
                            "betas": tuple(values["betas"])})
mix, out = Path(sys.argv[2]), Path(sys.argv[3])
run_train(settings, WandbSettings(mode="disabled"), out, mix, "pivot", 7)
"""
DEFAULT_GRACE_SECONDS = 240


def worker(settings: TrainSettings, mix: Path, out: Path) -> list[str]:
    """Command line that trains in a process of its own."""
    values = json.dumps(dataclasses.asdict(settings))
    script = out.parent / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script), values, str(mix), str(out)]


def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def contents(folder: Path) -> dict[str, bytes]:
    """Every hashed output and the manifest."""
    names = [*read_manifest(folder).outputs, "manifest.json"]
    return {name: (folder / name).read_bytes() for name in names}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(
    mix: Path,
    tiny: TrainSettings,
    no_wandb: WandbSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A training that ran in one go, seed 7."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    run_train(tiny, no_wandb, out, mix, "pivot", 7)
    return out


def test_outputs(unbroken: Path, tiny: TrainSettings) -> None:
    verify_outputs(unbroken)
    manifest = read_manifest(unbroken, "train")
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json",
            "metrics.jsonl"} <= set(manifest.outputs)  # fmt: skip
    assert "timings.jsonl" not in manifest.outputs
    assert manifest.counts["steps"] == 24
    assert manifest.counts["tokens"] == 24 * 4 * 16
    records = lines(unbroken)
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == [4, 8, 12, 16, 20, 24]
    assert set(train[0]) == {"kind", "step", "tokens", "loss", "lr", "grad_norm"}
    validation = [r for r in records if r["kind"] == "validation"]
    assert [(r["step"], r.get("lang")) for r in validation] == [
        (step, lang) for step in (0, 12, 24) for lang in ("en", "fr", None)
    ]
    assert all(r["tokens"] == r["step"] * 64 for r in records)
    assert manifest.counts["train_loss"] == train[-1]["loss"] < train[0]["loss"]
    last = {r.get("lang", "all"): r for r in validation[-3:]}
    assert manifest.counts["validation_loss"] == {k: r["loss"] for k, r in last.items()}
    bits = {k: r["bits_per_byte"] for k, r in last.items()}
    assert manifest.counts["validation_bits_per_byte"] == bits
    # Both languages have 79 predicted tokens; all together is not the mean of the two ratios.
    nats = {k: r["loss"] * 79 for k, r in last.items()}
    assert last["all"]["loss"] == pytest.approx((nats["en"] + nats["fr"]) / 158, abs=1e-6)
    n_bytes = sum(nats[k] / math.log(2) / bits[k] for k in ("en", "fr"))
    expected = (nats["en"] + nats["fr"]) / math.log(2) / n_bytes
    assert bits["all"] == pytest.approx(expected, abs=1e-5)
    assert not (unbroken / ".work").exists()


def test_export_loads_in_plain_transformers(unbroken: Path, mix: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(unbroken / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    ours = load_tokenizer(mix / "tokenizer")
    text = "w3 w4 nothing w59 w2"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert GenerationConfig.from_pretrained(unbroken / "model").eos_token_id == ours.eos_id
    saved = load_file(unbroken / "model" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name])
    # The same logits as the model in training gave, bit for bit.
    settings = ModelSettings(path=str(unbroken / "model"))
    trained = build_model(settings, ours, 0)
    ids = torch.arange(2, 32)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, trained(input_ids=ids).logits)
    # The last validation loss, computed again from the export by other means.
    tokens = np.fromfile(mix / "validation" / "en.ds", dtype="<u2").astype(np.int64)
    total = 0.0
    for start in range(0, len(tokens) - 1, 16):
        window = torch.from_numpy(tokens[start : start + 17])[None]
        with torch.no_grad():
            logits = model(input_ids=window[:, :-1]).logits
        total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    expected = read_manifest(unbroken).counts["validation_loss"]["en"]
    assert total / (len(tokens) - 1) == pytest.approx(expected, abs=2e-6)


def test_done_before_and_changed_settings(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    short = dataclasses.replace(tiny, duration="3steps")
    run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    before = contents(tmp_path / "a")
    with caplog.at_level(logging.INFO, logger="pivots"):
        run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    assert "already done" in caplog.text
    faster = dataclasses.replace(short, learning_rate=0.01)
    with caplog.at_level(logging.INFO, logger="pivots"):
        run_train(faster, no_wandb, tmp_path / "a", mix, "pivot", 0)
    assert "settings.learning_rate changed: 0.003 -> 0.01" in caplog.text
    after = contents(tmp_path / "a")
    assert before["model/model.safetensors"] != after["model/model.safetensors"]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("when", [1, 2, 3])
def test_resumes_to_the_same_bytes(
    when: int, mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    unbroken: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saves = []

    def save_then_die(*args: Any, **kwargs: Any) -> None:
        if len(saves) == when:
            raise Killed
        saves.append(checkpoint.save_checkpoint(*args, **kwargs))

    monkeypatch.setattr(loop, "save_checkpoint", save_then_die)
    # Checkpoints at 10, 20 and 24, lines at multiples of 4: lines and checkpoints do not coincide.
    if when < 3:
        with pytest.raises(Killed):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
        monkeypatch.undo()
    else:
        monkeypatch.undo()
        monkeypatch.setattr("training.model.export_model", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
        monkeypatch.undo()
    assert not (tmp_path / "a" / "manifest.json").exists()
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)


def test_a_kill_between_the_manifest_and_the_pruning(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def killed(*_: Any) -> None:
        raise Killed

    settings = dataclasses.replace(tiny, checkpoint_every=5, keep_every=10)
    with monkeypatch.context() as patch:
        patch.setattr("training.train._prune_finished", killed)
        with pytest.raises(Killed):
            run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7)
    folder = tmp_path / "a/checkpoints"
    names = [f"step-{step:08d}" for step in (10, 20, 24)]
    assert sorted(path.name for path in folder.iterdir()) == names
    # What the finished training kept counts, not what a later start says.
    later = dataclasses.replace(settings, keep_every=None)
    run_train(later, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert sorted(path.name for path in folder.iterdir()) == names[:2]


def test_what_fails_early_touches_nothing_and_lets_go_of_the_folder(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    short = dataclasses.replace(tiny, duration="1step")
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "3")
        with pytest.raises(SettingsError, match=r"found 4, expected a multiple of 3 process\(es\)"):
            run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert not (tmp_path / "a").exists()
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(SettingsError, match="configured for FSDP") as caught:
            run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 7)
    # While the error, with its frames, is still held.
    run_train(short, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert caught.value.exit_code
    verify_outputs(tmp_path / "a")


def test_sigterm_saves_and_stops(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = loop.learning_rate

    def signal_at_step_5(settings: TrainSettings, step: int, n_steps: int) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(settings, step, n_steps)

    monkeypatch.setattr(loop, "learning_rate", signal_at_step_5)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="after step 6 of 24"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "a/checkpoints/step-00000006/manifest.json").is_file()
    monkeypatch.undo()
    run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(unbroken)


def test_snapshots_are_models_and_the_same_after_a_stop(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = dataclasses.replace(tiny, snapshots=(3, 8, 24), checkpoint_every=8)
    run_train(settings, no_wandb, tmp_path / "whole", mix, "pivot", 7)
    names = [f"snapshots/step-{step:06d}" for step in (3, 8, 24)]
    whole = contents(tmp_path / "whole")
    assert {f"{name}/model.safetensors" for name in names} <= set(whole)
    # Exporting on the way changes nothing of the training.
    assert whole["model/model.safetensors"] == contents(unbroken)["model/model.safetensors"]
    for file in (n for n in whole if n.startswith("model/")):
        assert whole[f"{names[2]}/{file.removeprefix('model/')}"] == whole[file]
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / names[0])
    assert sum(p.numel() for p in net.parameters()) > 0
    assert whole[f"{names[0]}/model.safetensors"] != whole[f"{names[1]}/model.safetensors"]

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    # The hardest place: the snapshot of step 8 is there, its checkpoint is torn.
    torn = tmp_path / "killed/checkpoints/.step-00000008.tmp"
    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run_train(settings, no_wandb, tmp_path / "killed", mix, "pivot", 7)
    monkeypatch.undo()
    assert (tmp_path / "killed" / names[1]).is_dir()
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    run_train(settings, no_wandb, tmp_path / "killed", mix, "pivot", 7)
    assert contents(tmp_path / "killed") == whole
    late = dataclasses.replace(settings, snapshots=(25,))
    with pytest.raises(SettingsError, match="snapshots: found 25, expected at most the 24 steps"):
        run_train(late, no_wandb, tmp_path / "late", mix, "pivot", 7)


def kill_and_rerun(settings: TrainSettings, mix: Path, out: Path, at_step: int) -> None:
    """Train in a process that is killed once a line of at least `at_step` is written; rerun it."""
    metrics = out / "metrics.jsonl"
    with subprocess.Popen(worker(settings, mix, out), env=environment()) as process:
        deadline = time.monotonic() + DEFAULT_GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            text = metrics.read_text() if metrics.is_file() else ""
            whole = text[: text.rfind("\n") + 1].splitlines()
            if whole and json.loads(whole[-1])["step"] >= at_step:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    subprocess.run(worker(settings, mix, out), env=environment(), check=True)


@pytest.mark.parametrize("attempt", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))])
def test_sigkill_at_a_random_step(
    attempt: int, mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    settings = dataclasses.replace(tiny, duration="300steps", log_every=2, checkpoint_every=25)
    run_train(settings, no_wandb, tmp_path / "whole", mix, "pivot", 7)
    at_step = random.Random(time.time_ns()).randrange(2, 200)
    kill_and_rerun(settings, mix, tmp_path / "killed", at_step)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole"), f"killed at {at_step}"


def test_continues_from_a_checkpoint_folder(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    again = dataclasses.replace(
        tiny, model=ModelSettings(path=str(unbroken / "model")), duration="2steps"
    )
    run_train(again, no_wandb, tmp_path / "a", mix, "pivot", 0)
    first = read_manifest(unbroken)
    manifest = read_manifest(tmp_path / "a")
    assert "model.safetensors" in manifest.inputs["model"]["files"]
    start = {r.get("lang", "all"): r["loss"] for r in lines(tmp_path / "a") if r["step"] == 0}
    assert start == first.counts["validation_loss"]
    assert str(unbroken) not in (tmp_path / "a/model/config.json").read_text()


def test_a_transformers_checkpoint_continues_like_ours(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    """Written by transformers alone, its weights in several files."""
    theirs = tmp_path / "theirs"
    net = transformers.AutoModelForCausalLM.from_pretrained(unbroken / "model")
    net.save_pretrained(theirs, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(unbroken / "model" / name, theirs / name)
    assert len(list(theirs.glob("model-*.safetensors"))) > 1
    for name, path in (("a", unbroken / "model"), ("b", theirs)):
        model = ModelSettings(path=str(path))
        again = dataclasses.replace(tiny, model=model, duration="6steps", log_every=1)
        run_train(again, no_wandb, tmp_path / name, mix, "pivot", 3)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_goes_on_with_optimizer_state_only_of_a_whole_checkpoint(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    """The moments are used, and only those of a whole checkpoint."""
    whole = dataclasses.replace(tiny, snapshots=(10,), keep_every=10, validate_every=None)
    run_train(whole, no_wandb, tmp_path / "first", mix, "pivot", 7)
    kept = tmp_path / "first/checkpoints/step-00000010"
    path = str(tmp_path / "first/snapshots/step-000010")
    model = ModelSettings(path=path, optimizer=str(kept))
    again = dataclasses.replace(tiny, model=model, duration="2steps", validate_every=None)
    run_train(again, no_wandb, tmp_path / "a", mix, "pivot", 7)
    fresh = dataclasses.replace(again, model=ModelSettings(path=path))
    run_train(fresh, no_wandb, tmp_path / "b", mix, "pivot", 7)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] != weights[1]
    shard = kept / "shard-00000-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"step-00000010: not a whole checkpoint \(shard-00000"):
        run_train(again, no_wandb, tmp_path / "c", mix, "pivot", 7)


def test_a_checkpoint_of_another_tokenizer_is_refused(
    make_mix: Callable[..., Path], tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    unbroken: Path,
) -> None:  # fmt: skip
    other = make_mix(tmp_path / "mix", vocabulary=70)
    again = dataclasses.replace(tiny, model=ModelSettings(path=str(unbroken / "model")))
    with pytest.raises(MismatchError, match="tokenizer fingerprint"):
        run_train(again, no_wandb, tmp_path / "a", other, "pivot", 0)


def test_sequences_longer_than_the_checkpoint_takes(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    again = dataclasses.replace(
        tiny, model=ModelSettings(path=str(unbroken / "model")), sequence_length=65
    )
    with pytest.raises(SettingsError, match="sequence_length"):
        run_train(again, no_wandb, tmp_path / "a", mix, "pivot", 0)


def test_missing_arm_and_unfinished_mix(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no arm 'random'; its arms are pivot"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "random", 0)
    with pytest.raises(InputError, match="does not exist"):
        run_train(tiny, no_wandb, tmp_path / "a", tmp_path / "nowhere", "pivot", 0)


def test_a_loss_that_is_not_finite_stops(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []
    plain = loop.NextTokenLoss.forward

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = plain(self, tokens)
        # The first is the trial batch.
        return loss * float("nan") if sum(calls) == 7 else loss

    monkeypatch.setattr(loop.NextTokenLoss, "forward", poisoned)
    with pytest.raises(DivergedError, match=r"step 6: loss nan") as caught:
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    ids = loop.DataOrder(7, len(loop.Sequences(mix / "pivot/tokens.ds", 60, 16)), 4).ids(5)
    assert str(ids.tolist()) in str(caught.value)
    assert not (tmp_path / "a" / "manifest.json").exists()
    saved = json.loads((tmp_path / "a/nonfinite/step-000006.json").read_text())
    assert [entry["sequence"] for entry in saved["sequences"]] == ids.tolist()
    assert saved["sequences"][0]["first_token"] == ids[0] * 16


def test_a_stopped_training_goes_on_by_skipping(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the error advises: skip in the same folder; another rate there is refused."""
    plain, step_of = loop.NextTokenLoss.forward, loop.learning_rate
    at: list[int] = []

    def rate(settings: TrainSettings, step: int, n_steps: int) -> float:
        at.append(step)
        return step_of(settings, step, n_steps)

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        bad = torch.is_grad_enabled() and at and at[-1] == 11
        return plain(self, tokens) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(loop, "learning_rate", rate)
    monkeypatch.setattr(loop.NextTokenLoss, "forward", poisoned)
    with pytest.raises(DivergedError, match=r"With train\.on_nonfinite skip the same command"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)
    slower = dataclasses.replace(tiny, learning_rate=1e-4)
    with pytest.raises(MismatchError, match="learning_rate changed"):
        run_train(slower, no_wandb, tmp_path / "a", mix, "pivot", 7)
    at.clear()
    skipping = dataclasses.replace(tiny, on_nonfinite="skip")
    run_train(skipping, no_wandb, tmp_path / "a", mix, "pivot", 7)
    assert at[0] == 10
    at.clear()
    run_train(skipping, no_wandb, tmp_path / "b", mix, "pivot", 7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_validation_loss_that_is_not_finite_stops(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = loop.NextTokenLoss.forward

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        return plain(self, tokens) * (1.0 if torch.is_grad_enabled() else float("inf"))

    monkeypatch.setattr(loop.NextTokenLoss, "forward", poisoned)
    with pytest.raises(DivergedError, match="validation after step 0: loss inf on en"):
        run_train(tiny, no_wandb, tmp_path / "a", mix, "pivot", 7)


def test_accumulation_gives_the_same_curve(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    split = dataclasses.replace(tiny, micro_batch_sequences=1)
    run_train(split, no_wandb, tmp_path / "a", mix, "pivot", 7)
    for mine, theirs in zip(lines(tmp_path / "a"), lines(unbroken), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_learns_a_tiny_text(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    longer = dataclasses.replace(tiny, duration="400steps", learning_rate=1e-2, log_every=50)
    run_train(longer, no_wandb, tmp_path / "a", mix, "pivot", 0)
    counts = read_manifest(tmp_path / "a").counts
    # Every word follows from the one before; only the first of each document must be guessed,
    # which costs ln(28) / 16 nats a token, and the 15th word looks like any other.
    assert counts["train_loss"] < 0.5
    assert max(counts["validation_loss"].values()) < 0.6


def test_runs_in_a_thread(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    short = dataclasses.replace(tiny, duration="1step")
    thread = threading.Thread(
        target=run_train, args=(short, no_wandb, tmp_path / "a", mix, "pivot", 0)
    )
    thread.start()
    thread.join()
    verify_outputs(tmp_path / "a")


def test_wandb_offline(
    mix: Path, tiny: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Path
) -> None:
    pytest.importorskip("wandb", reason="needs the extra: pip install 'semantic-pivots[wandb]'")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("training.model.export_model", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_train(tiny, WandbSettings(mode="auto"), tmp_path / "a", mix, "pivot", 7)
    (broken,) = read_runs(tmp_path / "a")
    run_train(tiny, WandbSettings(mode="auto"), tmp_path / "a", mix, "pivot", 7)
    first, found = read_runs(tmp_path / "a")
    # One run in W&B, and none but this training's.
    assert broken.id == first.id == found.id == read_json(tmp_path / "a" / "run.json")["id"]
    assert any("train/grad_norm" in record for record in first.history)
    assert (found.name, found.job_type, found.exit_code) == ("train pivot/7", "train", 0)
    assert [kind for _, kind, _ in found.used] == ["mix"]
    assert {kind for _, kind, _ in first.made} >= {"config", "checkpoint"}
    assert {kind for _, kind, _ in found.made} >= {"weights", "model"}
    assert contents(tmp_path / "a") == contents(unbroken)


def test_a_score_is_taken_on_the_way(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path, unbroken: Path
) -> None:
    """The score that the launcher gives: here the largest logit after the first word."""

    class Largest:
        files: ClassVar = {"tokenizer": mix / "tokenizer" / "tokenizer.json"}

        def __call__(self, net: Any, tokenizer: Any) -> dict[str, float]:
            net.eval()
            ids = torch.tensor([tokenizer.encode("w2")])
            with torch.no_grad():
                return {"largest": float(net(input_ids=ids).logits.max())}

    settings = dataclasses.replace(tiny, score_every=10)
    run_train(settings, no_wandb, tmp_path / "a", mix, "pivot", 7, Largest())
    scores = [r for r in lines(tmp_path / "a") if r["kind"] == "score"]
    assert [r["step"] for r in scores] == [0, 10, 20, 24]
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a/model")
    tokenizer = load_tokenizer(tmp_path / "a/model")
    last = Largest()(net, tokenizer)["largest"]
    assert scores[-1]["largest"] == pytest.approx(last, abs=1e-5)
    assert "task" in read_manifest(tmp_path / "a").inputs
    # Looking changes nothing.
    weights = [(f / "model/model.safetensors").read_bytes() for f in (tmp_path / "a", unbroken)]
    assert weights[0] == weights[1]


def test_a_missing_or_failing_wandb_stops_nothing(
    mix: Path, tiny: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    short = dataclasses.replace(tiny, duration="1step")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.INFO, logger="pivots"):
        run_train(short, WandbSettings(mode="auto"), tmp_path / "a", mix, "pivot", 0)
    assert "no W&B (not installed" in caplog.text
    with pytest.raises(MissingDependencyError, match=r"semantic-pivots\[wandb\]"):
        run_train(short, WandbSettings(mode="offline"), tmp_path / "b", mix, "pivot", 0)

    class Broken:
        @staticmethod
        def init(**_: Any) -> None:
            raise OSError("no space")

    monkeypatch.setitem(sys.modules, "wandb", Broken)
    run_train(short, WandbSettings(mode="offline"), tmp_path / "c", mix, "pivot", 0)
    verify_outputs(tmp_path / "c")


@pytest.mark.slow
def test_torch_compile(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on CPU needs a C++ compiler: install g++")
    from transformers.models.llama import modeling_llama

    masks = []
    make_mask = modeling_llama.create_causal_mask

    def watched(*args: Any, **kwargs: Any) -> Any:
        masks.append(make_mask(*args, **kwargs))
        return masks[-1]

    plain = dataclasses.replace(tiny, duration="4steps", log_every=1)
    run_train(plain, no_wandb, tmp_path / "plain", mix, "pivot", 7)
    compiled = dataclasses.replace(plain, compile=True)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", watched)
    torch._dynamo.utils.counters.clear()
    run_train(compiled, no_wandb, tmp_path / "compiled", mix, "pivot", 7)
    # Flash kernels take no mask, and must not be given one.
    assert masks
    assert all(mask is None for mask in masks)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    pairs = zip(lines(tmp_path / "compiled"), lines(tmp_path / "plain"), strict=True)
    assert all(mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4) for mine, theirs in pairs)


@pytest.mark.gpu
def test_bf16_on_a_gpu(
    mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    on_cpu = dataclasses.replace(tiny, device="cpu")
    run_train(on_cpu, no_wandb, tmp_path / "cpu", mix, "pivot", 7)
    run_train(tiny, no_wandb, tmp_path / "gpu", mix, "pivot", 7)
    counts = read_manifest(tmp_path / "gpu").counts
    assert counts["device"] == "cuda"
    assert counts["precision"] == "bf16"
    for mine, theirs in zip(lines(tmp_path / "gpu"), lines(tmp_path / "cpu"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=0.05)
