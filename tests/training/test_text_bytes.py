"""Bytes of text that tokens stand for: exact, wherever a document is cut."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.sentencepiece_json import to_tokenizer_json
from training.text_bytes import text_bytes

TEXTS = [
    "the cat sleeps, the dog runs",
    "le chat dort",
    "猫は眠る。犬は走る。",
    "  two  spaces\n\tcode",
]
texts = st.lists(
    st.text(st.sampled_from("the catsdog 猫は眠。\n<>0xé😀 "), max_size=12), min_size=1, max_size=4
)


@functools.cache
def tokenizers(folder: Path) -> list[Tokenizer]:
    """SentencePiece with byte fallback, and byte-level BPE, trained on TEXTS."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3), model_writer=model, model_type="bpe", vocab_size=310,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    engines = [to_tokenizer_json(model.getvalue(), "bpe")[0], Engine(models.BPE())]
    engines[1].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engines[1].decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engines[1].train_from_iterator(TEXTS, trainer)
    found = []
    for number, engine in enumerate(engines):
        place = folder / str(number)
        place.mkdir()
        engine.save(str(place / "tokenizer.json"))
        (place / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        found.append(load_tokenizer(place))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.mark.parametrize("kind", [0, 1], ids=["sentencepiece", "byte-level"])
@given(texts, st.data())
def test_the_bytes_of_the_text(
    folder: Path, kind: int, documents: list[str], data: st.DataObject
) -> None:
    tokenizer = tokenizers(folder)[kind]
    ids = [tokenizer.eos_id]
    for text in documents:
        ids += [*tokenizer.encode(text), tokenizer.eos_id]
    tokens = np.array(ids)
    total = sum(len(text.encode()) for text in documents)
    assert text_bytes(tokens, tokenizer) == total
    # Anywhere, also inside a character: the parts add up.
    cut = data.draw(st.integers(1, len(tokens)))
    parts = text_bytes(tokens[:cut], tokenizer) + text_bytes(tokens[cut - 1 :], tokenizer)
    assert parts == total


def test_other_tokenizers_are_decoded(mix: Path) -> None:
    tokenizer = load_tokenizer(mix / "tokenizer")
    assert text_bytes(np.array([9, 2, 3, 0, 0, 4, 0, 12]), tokenizer) == len("w2 w3") + 2 + 3
