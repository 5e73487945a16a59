from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mining.common.secret_words import shown_command
from mining.common.stage import begin

KEY = "planted/0123456789"
CONF = f'{{"spark.hadoop.fs.s3a.secret.key": "{KEY}"}}'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--engine.spark.conf", CONF, "--out", "o"], "run --engine.spark.conf ... --out o"),
        (["run", f"--engine.spark.conf={CONF}"], "run --engine.spark.conf=..."),
        (["--corpus.path", "s3://me:pw@host/a@b"], "--corpus.path s3://...@host/a@b"),
        (["--corpus.path", f"https://host/x?key={KEY}"], "--corpus.path https://host/x?key=..."),
        (["--out", os.fsdecode(b"caf\xe9")], r"--out caf\udce9"),
        (["--tokenizer.path", "org/model@main"], "--tokenizer.path org/model@main"),
    ],
)
def test_shown_command(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.setenv("STORE_SECRET", KEY)
    assert shown_command(arguments) == expected


def test_the_record_of_a_run_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pivots", "count", "--engine.spark.conf", CONF])
    run = begin("count", tmp_path / "a", {"k": 1}, {})
    assert run is not None
    run.finish({})
    text = (tmp_path / "a" / "run.json").read_text()
    assert KEY not in text
    assert "--engine.spark.conf ..." in text
