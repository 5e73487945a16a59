from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mining.common.errors import SettingsError
from mining.common.secret_words import mask_urls, refuse_secret_urls, shown_command, url_secret
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


@pytest.mark.parametrize(
    "url",
    [
        "http://me:pl4nted@h/v1",
        "simplecache::http://me:pl4nted@h/x",
        "zip://a.csv::s3://me:pl4nted@b/x@y",
        "k8s://https://me:pl4nted@h:6443",
        "s3://AK:se/pl4nted@b/x",
        "http://me:?pl4nted@h",
        "http://me:x@pl4nted@h/",
        "sftp+x://u:pl4nted@h",
        "hdfs://me:pl4nted@host:9000/x",
        "https://pl4nted@h/",
        "https://h/x?a=1&X-Amz-Signature=pl4nted",
        "https://h/x?X%2DAmz%2DSecurity%2DToken=pl4nted",
        "https://h/x?sv=2022&sig=pl4nted&se=1",
        "https://h/x?accessToken=pl4nted",
        "https://h/x#access_token=pl4nted",
    ],
)
def test_secrets_of_urls_are_refused_and_never_shown(url: str) -> None:
    for value in (url, {"k": [url]}, ("x", f"curl {url} -O")):
        with pytest.raises(SettingsError, match=r"^corpus\.\S+: found a .*fsspec's conf") as error:
            refuse_secret_urls(value, "corpus.path")
        assert "pl4nted" not in str(error.value)
    assert "pl4nted" not in mask_urls(f"cannot read '{url}': status 403")
    # As pathlib writes a URL.
    assert "pl4nted" not in mask_urls(f"{Path(url)}: no such file")


def test_blanks_in_a_password_hide_no_url() -> None:
    with pytest.raises(SettingsError, match="a password in the URL"):
        refuse_secret_urls("http://me:pl4 nted@h/x")


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@me.dfs.core.windows.net/x",
        "hdfs://me@host:9000/x@y",
        "hf://datasets/me/corpus@main/x",
        "http://h:8000/a@b",
        "http://[::1]:8000/a@b",
        "zip://a.csv::https://h/x@y",
        "k8s://https://kubernetes.example:6443",
        "git+ssh://git@github.com/x",
        "https://$USER:${MY_TOKEN}@h/?token=$MY_TOKEN",
        "https://h/x?page=3&sort=key",
        "file:///a@b/c:d@e",
        "org/model@main",
        "a:b@c",
    ],
)
def test_urls_without_secrets_are_left_alone(url: str) -> None:
    refuse_secret_urls(url, "path")
    assert mask_urls(f"cannot read {url}") == f"cannot read {url}"


@pytest.mark.parametrize("piece", ["a://", "http://a:b", ":", "a", "?a=", "a://b:c/"])
def test_long_texts_are_looked_through_at_once(piece: str) -> None:
    text = "x://" + piece * (200_000 // len(piece))
    start = time.monotonic()
    url_secret(text)
    mask_urls(text)
    assert time.monotonic() - start < 20
