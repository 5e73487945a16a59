"""Which items are asked, settings that are refused, models that cannot be loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eval.items import read_doc_freq, select_items
from eval.models import load_model, model_input, model_name, resolve_device
from eval.settings import AttributeSettings, EvaluateSettings, TraceSettings
from mining.common.errors import InputError, SettingsError
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.common.task import read_task


def test_subsamples_are_nested_and_the_same_in_every_direction(
    word_task: Any, tmp_path: Path
) -> None:
    task = read_task(word_task(tmp_path, 30, ("en", "fr", "zh")))
    chosen = {}
    for n in (5, 10):
        for source, target in task.directions():
            items = select_items(task, source, target, n)
            assert sum(item.identical for item in items) == 1
            chosen[n, source, target] = {i.concept.id for i in items if not i.identical}
    assert len({frozenset(v) for k, v in chosen.items() if k[0] == 5}) == 1
    assert chosen[5, "en", "fr"] < chosen[10, "zh", "en"]
    assert len(select_items(task, "en", "fr", None)) == 30


def test_both_words_must_be_frequent_enough(word_task: Any, tmp_path: Path) -> None:
    task = read_task(word_task(tmp_path, 4))
    rows = [
        {"concept": f"c{i}", "lang": lang, "doc_freq": n}
        for i, counts in enumerate([(9, 9), (9, 1), (1, 9), (5, 5)])
        for lang, n in zip(("en", "fr"), counts, strict=True)
    ]
    words = tmp_path / "words"
    run = begin("words", words, {}, {})
    assert run is not None
    write_table(words / "words.parquet", pa.Table.from_pylist(rows))
    run.finish({})
    found = read_doc_freq(words, 5)
    items = select_items(task, "en", "fr", None, found, 5)
    assert [item.concept.id for item in items] == ["c0", "c3"]
    assert read_doc_freq(words, None) is None
    with pytest.raises(SettingsError, match="min_doc_freq: found 5"):
        read_doc_freq(None, 5)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (EvaluateSettings, "draws", 0),
        (EvaluateSettings, "forms", ("target",)),
        (EvaluateSettings, "forms", ("source", "source")),
        (EvaluateSettings, "frequency_bands", (10, 1)),
        (EvaluateSettings, "frequency_bands", (0, 1)),
        (EvaluateSettings, "batch_tokens", 0),
        (EvaluateSettings, "device", "gpu"),
        (EvaluateSettings, "confidence", 1.0),
        (EvaluateSettings, "min_doc_freq", 0),
        (TraceSettings, "threshold", 0.0),
        (TraceSettings, "top_k", 0),
        (TraceSettings, "examples", -1),
        (AttributeSettings, "pivots", 0),
        (AttributeSettings, "bootstrap_samples", 0),
    ],
)
def test_impossible_settings_name_their_key(kind: Any, key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{key}: found"):
        dataclasses.replace(kind(), **{key: value})


def test_every_setting_is_documented() -> None:
    for kind in (EvaluateSettings, TraceSettings, AttributeSettings):
        for field in dataclasses.fields(kind):
            assert f"        {field.name}: " in (kind.__doc__ or "")


def test_an_unfinished_training_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    run = begin("train", folder, {}, {})
    assert run is not None
    (folder / "model").mkdir()
    with pytest.raises(InputError, match="not finished"):
        model_input(str(folder / "model"), None).identity(None, None)
    run.finish({})
    identity = model_input(str(folder / "model"), None).identity(None, None)
    assert identity["stage"] == "train"
    assert model_input(str(folder), None).identity(None, None) == identity


def test_names_hold_no_paths(tmp_path: Path) -> None:
    assert model_name(str(tmp_path), None, {"arm": "pivot", "seed": 3}) == "pivot/3"
    assert model_name(str(tmp_path), None, {}) == tmp_path.name
    assert model_name("some/model", "step1", {}) == "some/model@step1"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_id_is_known_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word_level: Any, tiny_model: Any
) -> None:
    """On a copy of the hub's cache as it lies on disk, without network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "step1").write_text(COMMIT)
    tokenizer = word_level(["a b c"], repository / "snapshots" / COMMIT)
    net = tiny_model("llama", tokenizer.vocab_size)
    net.save_pretrained(repository / "snapshots" / COMMIT)
    name = f"some/model@step1 (commit {COMMIT})"
    assert model_input("some/model", "step1").identity(None, None) == {"name": name}
    loaded = load_model("some/model", "step1", "cpu", "float32")
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    weight = net.get_input_embeddings().weight
    assert loaded.net.get_input_embeddings().weight.equal(weight)
    with pytest.raises(InputError, match=r"other/model: neither a local folder nor a hub"):
        model_input("other/model", None)


def test_folders_without_a_model_are_errors(tmp_path: Path, word_level: Any) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(str(tmp_path), None, "cpu", "auto")
    with pytest.raises(InputError, match=r"model: no such folder; train the model first"):
        model_input(str(tmp_path / "train" / "arm" / "0" / "model"), None)
    word_level(["a"], tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(InputError, match="not a causal language model"):
        load_model(str(tmp_path), None, "cpu", "auto")


def test_a_missing_device_is_an_error() -> None:
    import torch

    assert resolve_device("cpu", "auto") == (torch.device("cpu"), torch.float32)
    assert resolve_device("cpu", "bfloat16")[1] == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            resolve_device("cuda", "auto")
