"""Fixtures shared by all tests, and the marks for what a machine lacks."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from mining.common.logs import log

REPOSITORY = Path(__file__).resolve().parent.parent
# Tests of W&B say which mode they want; the others have no use for its files.
os.environ.setdefault("WANDB_MODE", "disabled")
# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
SHARED = Path(os.environ.get("PIVOTS_SHARED", REPOSITORY.parent / "shared"))


def _missing(mark: str) -> str | None:
    """Why tests of a mark cannot run here, and what to do; None where they can."""
    if mark == "shared_data" and not (SHARED / "corpus").is_dir():
        return f"no real corpus at {SHARED}/corpus; set PIVOTS_SHARED to the folder that has it"
    if mark == "spark":
        if shutil.which("java") is None:
            return "no Java; install a Java 17 runtime (Debian: openjdk-17-jre-headless)"
        return _not_importable("pyspark", "spark")
    if mark == "deepspeed":
        return _not_importable("deepspeed", "deepspeed")
    if mark == "slurm":
        if shutil.which("sinfo") is None:
            return "no Slurm; install slurm-wlm and munge, run tests/start_slurm.sh as root"
        done = subprocess.run(["sinfo", "-h"], capture_output=True, check=False)
        return None if done.returncode == 0 else "no answer from Slurm; run tests/start_slurm.sh"
    if mark == "gpu":
        import torch

        return None if torch.cuda.is_available() else "no CUDA device; run on a machine with one"
    return None


def _not_importable(module: str, extra: str) -> str | None:
    import importlib.util

    if importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed; pip install 'semantic-pivots[{extra}]'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons: dict[str, str | None] = {}
    for item in items:
        for mark in ("shared_data", "spark", "deepspeed", "slurm", "gpu"):
            if item.get_closest_marker(mark):
                if mark not in reasons:
                    reasons[mark] = _missing(mark)
                if (reason := reasons[mark]) is not None:
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def log_given_back() -> Iterator[None]:
    """Leave the project's logger as it was: the command line takes it for itself."""
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield
    for handler in set(log.handlers) - set(handlers):
        handler.close()
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def shared() -> Path:
    """The folder of real test data."""
    return SHARED


@pytest.fixture
def write_jsonl() -> Callable[[Path, Iterable[dict[str, Any]]], Path]:
    """Writes records as JSONL, gzip-compressed where the name ends in .gz."""

    def write(path: Path, records: Iterable[dict[str, Any]]) -> Path:
        data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """Makes a finished `tokenizer` stage folder whose tokens are white-space words."""

    def make(words: Iterable[str]) -> Path:
        from tokenizers import Tokenizer, models, pre_tokenizers

        from mining.common.stage import begin

        out = tmp_path / "tokenizer"
        vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", *sorted(set(words))])}
        engine = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        engine.add_special_tokens(["<unk>", "</s>"])
        run = begin("tokenizer", out, {}, {})
        assert run is not None
        engine.save(str(out / "tokenizer.json"))
        (out / "tokenizer_config.json").write_text(
            '{"eos_token": "</s>", "unk_token": "<unk>", '
            '"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        run.finish({})
        return out

    return make


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a stage folder (or of all stages below) but those with times and logs."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in ("run.json", "run.log", ".lock", "timings.jsonl")
        and "wandb" not in path.parts
    }
