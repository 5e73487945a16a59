"""What a model writes after a prompt: drawn by seed, prompts of validation documents, the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.models import LanguageModel, wrap_model
from eval.sample import run_sample, validation_prompts, write_on
from eval.sample_settings import SampleSettings
from launch.cli import main
from mining.common.errors import InputError, SettingsError
from mining.common.manifest import read_manifest
from mining.common.stage import begin
from mining.common.token_file import write_token_file
from mining.common.tokenizer import Tokenizer

EN = ["the cat sleeps", "a small dog runs after the cat", "we eat bread in the evening"]
ZH = ["猫在睡觉", "小狗追着猫跑", "我们晚上吃面包"]
LONG = SampleSettings(prompt_tokens=3, new_tokens=12, per_language=2)


@pytest.fixture
def tokenizer(byte_bpe: Callable[..., Tokenizer]) -> Tokenizer:
    return byte_bpe([*EN, *ZH], 300)


@pytest.fixture
def model(tokenizer: Tokenizer, tiny_model: Any) -> LanguageModel:
    net = tiny_model("llama", tokenizer.vocab_size, seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.15)
    return wrap_model(net, tokenizer, "tiny")


@pytest.fixture
def mix(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    folder = tmp_path / "mix"
    run = begin("mix", folder, {}, {})
    assert run is not None
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "tokenizer" / name).write_bytes((tmp_path / "byte-bpe" / name).read_bytes())
    for lang, texts in (("en", EN), ("zh", ZH)):
        documents = tokenizer.encode_batch([texts[0], "", *texts[1:]])
        path = folder / "validation" / f"{lang}.ds"
        write_token_file(path, documents, tokenizer.vocab_size, tokenizer.eos_id)
    run.finish({})
    return folder


def test_the_likeliest_tokens_and_the_end_of_text(model: LanguageModel) -> None:
    greedy = SampleSettings(temperature=0.0, new_tokens=10)
    ids = model.tokenizer.encode(EN[0])
    new: list[int] = []
    with torch.inference_mode():
        for _ in range(10):
            new.append(int(model.net(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
    expected = model.tokenizer.decode([*ids, *new]).removeprefix(EN[0]).rstrip("\ufffd")
    assert write_on(model, EN[0], greedy, 0) == expected
    model.net.generation_config.eos_token_id = [new[4]]
    first = new.index(new[4])
    expected = model.tokenizer.decode([*ids, *new[:first]])
    found = write_on(model, EN[0], greedy, 0)
    assert (EN[0] + found).startswith(expected.rstrip("\ufffd"))
    assert len(found) < len(model.tokenizer.decode(new))


def test_a_seed_draws_the_same_and_leaves_other_draws_alone(model: LanguageModel) -> None:
    settings = SampleSettings(new_tokens=12, temperature=1.5, top_p=1.0)
    before = torch.random.get_rng_state()
    found = [write_on(model, EN[0], settings, seed) for seed in (1, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert torch.equal(torch.random.get_rng_state(), before)
    # Among few enough there is no choice left.
    narrow = SampleSettings(new_tokens=12, temperature=1.5, top_p=1e-6)
    greedy = SampleSettings(new_tokens=12, temperature=0.0)
    assert write_on(model, EN[0], narrow, 5) == write_on(model, EN[0], greedy, 0)


def test_prompts_that_do_not_fit_and_logits_that_are_no_numbers(model: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"has \d+ tokens, expected at least one and room"):
        write_on(model, EN[1] * 60, LONG, 0)
    with torch.no_grad():
        model.net.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not numbers"):
        write_on(model, EN[0], LONG, 0)


def test_prompts_begin_validation_documents(mix: Path) -> None:
    found = list(validation_prompts(LONG, mix, 7))
    assert [prompt.lang for prompt in found] == ["en", "en", "zh", "zh"]
    texts = {"en": [EN[0], "", *EN[1:]], "zh": [ZH[0], "", *ZH[1:]]}
    for prompt in found:
        assert prompt.document is not None
        text = texts[prompt.lang or ""][prompt.document]
        assert prompt.text
        assert prompt.reference
        assert text.startswith(prompt.text + prompt.reference)
    assert found == list(validation_prompts(LONG, mix, 7))
    drawn = {tuple(p.document for p in validation_prompts(LONG, mix, seed)) for seed in range(9)}
    assert len(drawn) > 1
    with pytest.raises(InputError, match=r"no validation documents in fr .*there are en, zh"):
        list(validation_prompts(SampleSettings(languages=("fr",)), mix, 7))


def test_text_and_lines(model: LanguageModel, mix: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.net.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((mix / "tokenizer" / name).read_bytes())
    label = {"arm": "mine", "seed": 0}
    text = run_sample(LONG, tmp_path / "a", str(folder), None, mix, 7, label)
    assert (tmp_path / "a/samples.txt").read_text() == text
    rows = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    assert [row["lang"] for row in rows] == ["en", "en", "zh", "zh"]
    for row in rows:
        assert set(row) == {"text", "lang", "document", "reference", "written"}
        assert f"{row['lang']}, validation document {row['document']}\n{row['text']}[>>>]" in text
    manifest = read_manifest(tmp_path / "a", "sample")
    assert set(manifest.inputs) == {"mix", "model"}
    # Done before: the same, without writing anything.
    assert run_sample(LONG, tmp_path / "a", str(folder), None, mix, 7, label) == text
    own = ["--sample.prompts", json.dumps(EN), "--models", json.dumps({"mine": str(folder)})]
    where = ["--only", '["mine"]', "--out", str(tmp_path / "b"), "--sample.new_tokens", "3"]
    assert main(["sample", *own, *where]) == 0
    (path,) = (tmp_path / "b").rglob("samples.jsonl")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == EN
    assert set(read_manifest(path.parent).inputs) == {"model"}


@pytest.mark.parametrize("change", [{"temperature": -1.0}, {"top_p": 0.0}, {"prompts": ("",)}])
def test_range_errors_name_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        SampleSettings(**change)
