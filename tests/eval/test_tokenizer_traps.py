"""What tokenizers do to prompts, from a tokenizer.json on disk to the likelihoods of answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors

from eval.models import LanguageModel, load_model
from eval.prompts import Encoded, encode_answers, is_bare_space
from eval.scoring import Scorer

BYTES = [f"<0x{value:02X}>" for value in range(256)]
Load = Callable[..., LanguageModel]


@pytest.fixture
def load(tmp_path: Path, tiny_model: Any) -> Load:
    """Saves a tokenizer and a tiny Llama as a model folder, and loads it as evaluate does."""

    def make(engine: Engine, config: dict[str, Any] | None = None) -> LanguageModel:
        size = 1 + max(engine.get_vocab(with_added_tokens=True).values())
        tiny_model("llama", size).save_pretrained(tmp_path)
        engine.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config or {}), "utf-8")
        return load_model(str(tmp_path), None, "cpu", "float32")

    return make


def byte_fallback() -> Engine:
    """SentencePiece's kind: a visible space, and bytes for characters that no piece holds."""
    pieces = ["▁", "▁English", "▁Chinese", ":", "犬", "▁dog", "\n"]
    scored = [("<unk>", 0.0), *((piece, -20.0) for piece in BYTES), *((p, -2.0) for p in pieces)]
    engine = Engine(models.Unigram(scored, unk_id=0, byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return engine


def word_level(*words: str) -> Engine:
    engine = Engine(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return engine


@torch.inference_mode()
def plain(model: LanguageModel, member: Encoded) -> float:
    logits = model.net(input_ids=torch.tensor([member.ids])).logits[0]
    log_probs = torch.log_softmax(logits, dim=-1)
    places = range(member.n_context, len(member.ids))
    return sum(float(log_probs[place - 1, member.ids[place]]) for place in places)


def check_scores(model: LanguageModel, members: list[Encoded]) -> None:
    found = Scorer(model, True, None).log_probs(members)
    np.testing.assert_allclose(found, [plain(model, m) for m in members], atol=1e-4)


def test_byte_fallback_and_a_bare_space(load: Load) -> None:
    model = load(byte_fallback(), {"eos_token": "▁"})
    tokenizer = model.tokenizer
    prompt = "English: dog\nChinese:"
    # The two words share their first two bytes, a piece each.
    members = encode_answers(tokenizer, [prompt] * 3, [" 狗", " 狐", " 犬"])
    pieces = [[tokenizer.engine.id_to_token(t) for t in member.answer] for member in members]
    assert pieces == [
        ["▁", "<0xE7>", "<0x8B>", "<0x97>"],
        ["▁", "<0xE7>", "<0x8B>", "<0x90>"],
        ["▁", "犬"],
    ]
    assert is_bare_space(tokenizer, members[0].answer[0])
    assert not is_bare_space(tokenizer, members[0].answer[1])
    for member, word in zip(members, "狗狐犬", strict=True):
        assert tokenizer.decode(member.ids) == f"{prompt} {word}"
    check_scores(model, members)


def test_a_merge_over_the_border_is_scored_as_one_token(load: Load) -> None:
    vocab = {token: i for i, token in enumerate(["<unk>", "a", "b", ":", "Ġ", ":Ġ", ":Ġb"])}
    engine = Engine(models.BPE(vocab=vocab, merges=[(":", "Ġ"), (":Ġ", "b")]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    model = load(engine, {"eos_token": "<unk>"})
    members = encode_answers(model.tokenizer, ["aba:"] * 2, [" b", " a"])
    pieces = [[model.tokenizer.engine.id_to_token(t) for t in member.answer] for member in members]
    # The merged token holds the prompt's colon, so it is predicted from what is before the colon.
    assert pieces == [[":Ġb"], [":Ġ", "a"]]
    assert [member.n_context for member in members] == [3, 3]
    check_scores(model, members)


def test_neither_beginning_nor_end_token_is_needed(load: Load) -> None:
    model = load(word_level("?", "en", "dog", "fr", "chien", "chat"))
    assert model.tokenizer.end_of_text is None
    check_scores(model, encode_answers(model.tokenizer, ["en dog fr"] * 2, [" chien", " chat"]))


def test_a_beginning_token_is_not_added(load: Load) -> None:
    engine = word_level("?", "<s>", "</s>", "en", "dog", "fr", "chien")
    engine.add_special_tokens(["<s>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    model = load(engine, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    member = encode_answers(model.tokenizer, ["en dog fr"], [" chien"])[0]
    assert member == Encoded((3, 4, 5, 6), 3)


@pytest.mark.parametrize("pad_token", ["<pad>", None])
def test_padding_on_the_left_is_not_used(pad_token: str | None, load: Load) -> None:
    engine = word_level("?", "<pad>", "en", "dog", "the", "fr", "chien", "chat")
    if pad_token is not None:
        engine.enable_padding(direction="left", pad_id=1, pad_token=pad_token, length=16)
        engine.enable_truncation(3, direction="left")
    model = load(engine, {"padding_side": "left", "pad_token": pad_token, "eos_token": "?"})
    prompts = ["en dog fr", "en the the the dog fr", "fr chat en"]
    members = encode_answers(model.tokenizer, prompts, [" chien", " chat", " dog the"])
    assert [len(member.ids) for member in members] == [4, 7, 5]
    check_scores(model, members)
