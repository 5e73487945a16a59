"""Bytes of text that tokens stand for: exact, wherever a document is cut."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

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


def byte_level() -> Engine:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator(TEXTS, trainer)
    return engine


def metaspace() -> Engine:
    entries = [
        "<unk>",
        "</s>",
        "\u2581",
        "\u2581cat",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"cat",
    ]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    engine = Engine(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    engine.decoder = decoders.Sequence(
        [decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()]
    )
    engine.add_special_tokens(["</s>"])
    return engine


def prepended() -> Engine:
    engine = metaspace()
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    engine.pre_tokenizer = None  # type: ignore[assignment]
    return engine


@pytest.mark.parametrize("make", [byte_level, metaspace, prepended])
def test_the_space_before_a_document_is_the_tokenizers_own(
    make: Callable[[], Engine], tmp_path: Path
) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = load_tokenizer(tmp_path)
    eos = tokenizer.eos_id
    first, second = (tokenizer.encode(text) for text in ("cat \u732b", "act"))
    tokens = np.array([eos, *first, eos, *second, eos])
    assert text_bytes(tokens, tokenizer) == len("cat \u732b".encode()) + len("act")
    # Behind a cut inside a document a space is the text's.
    parts = [np.array([eos, *first[:-1]]), np.array(first[-2:])]
    assert sum(text_bytes(part, tokenizer) for part in parts) == len("cat \u732b".encode())
    cats = tokenizer.encode("cat cat")
    middle = len(cats) // 2
    assert text_bytes(np.array(cats[middle - 1 :]), tokenizer) == len(" cat")
    # Only where each text gets a space, one that has its own counts it.
    begins_with_one = np.array([eos, *tokenizer.encode(" act"), eos])
    assert text_bytes(begins_with_one, tokenizer) == (4 if make is prepended else 3)


def test_other_tokenizers_are_decoded(mix: Path) -> None:
    tokenizer = load_tokenizer(mix / "tokenizer")
    assert text_bytes(np.array([9, 2, 3, 0, 0, 4, 0, 12]), tokenizer) == len("w2 w3") + 2 + 3
