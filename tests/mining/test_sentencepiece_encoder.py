"""The fast engine gives the ids of tokenizer.json for every text, or is not used."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mining import sentencepiece_encoder
from mining.common.files import read_json, write_json
from mining.common.tokenizer import load_tokenizer
from mining.documents import FileReader, Record, list_documents
from mining.engine_settings import EngineSettings
from mining.sentencepiece_encoder import (
    FRAGMENT_CHARS,
    SentencePieceEncoder,
    cut_text,
    load_encoder,
)
from mining.sentencepiece_json import has_rounded_scores, round_scores
from mining.settings import CorpusSettings, TokenizerSettings, TokenizeSettings
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer
from tests.conftest import folder_bytes

SENTENCES = [
    "The lions stood in the sun, and the nation's relations went on and on.",
    "Les lions se tenaient au soleil ; la relation des nations à l'été.",
    "小さな猫がマットの上に座って、窓から雨を眺めていました。猫は雨が好きです。",
    "我们喜欢学习语言模型，因为它们很有趣。今天天气很好。",
]
# Letters of the sentences in any order have many segmentations, also equally good ones.
ALPHABET = sorted({*"".join(SENTENCES), *" \n\t\0▁<s>é🙂ß"})


@pytest.fixture(scope="module", params=["unigram", "bpe", "word"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(str(request.param))
    rng = np.random.default_rng(0)
    lines = []
    for k in range(200):
        text = " ".join(rng.choice(SENTENCES, 5).tolist()) + f" number {k}  of 200\n"
        lines.append({"id": f"d{k}", "text": text, "lang": "en"})
    (root / "docs").mkdir()
    (root / "docs" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = TokenizerSettings(model_type=request.param, vocab_size=520, sample_chars=100_000)
    run_tokenizer(trained, CorpusSettings(path=str(root / "docs")), root / "tokenizer", seed=1)
    return root


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_ids_are_the_same_for_every_text(folder: Path, data: st.DataObject) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer")
    encoder = load_encoder(folder / "tokenizer", tokenizer, SENTENCES)
    assert encoder is not None
    letters = st.text(st.sampled_from(ALPHABET) | st.characters(codec="utf-8"), max_size=60)
    words = st.lists(st.sampled_from(SENTENCES) | letters, max_size=30).map(" ".join)
    texts = data.draw(st.lists(words, max_size=4))
    for text, ids in zip(texts, encoder.encode_batch(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert ids.dtype == np.uint32


def test_long_texts_and_long_words(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer")
    encoder = SentencePieceEncoder(folder / "tokenizer" / "spm.model", tokenizer)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(SENTENCES, 400).tolist())]
    texts.append("".join(rng.choice(list("relationsいました語言"), 30_000).tolist()))  # no space
    texts.append("\n".join(rng.choice(SENTENCES[2:], 1000).tolist()))  # lines, but no space
    texts += ["\n" * 30_000, "a" * 20_000 + "\n \n", "a" * 10_000 + "\n"]
    texts += ["", " ", "  ", "a" * 199 + "  b", "a" * 200 + "   ", "x " * 3000]
    for text, ids in zip(texts, encoder.encode_batch(texts), strict=True):
        assert ids.tolist() == tokenizer.encode(text)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_ids_are_the_same_wherever_a_text_is_cut(folder: Path, data: st.DataObject) -> None:
    """Lines and batches as short as they can be, and all of it left to the other engine."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    encoder = SentencePieceEncoder(folder / "tokenizer" / "spm.model", tokenizer)
    letters = st.text(st.sampled_from([*ALPHABET, *"\n\n\n\n  "]), max_size=40)
    # What a model spells a newline with, as somebody's text; it has no piece with a newline in it.
    words = st.lists(st.sampled_from([*SENTENCES[2:], "<0x0A>", "\n", "é\n🙂"]) | letters)
    texts = data.draw(st.lists(words.map("".join), max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        max_chars = data.draw(st.sampled_from([0, 20]))
        patch.setattr(encoder, "_max_chars", min(max_chars, encoder._max_chars))
        patch.setattr(sentencepiece_encoder, "LINES_CHARS", data.draw(st.integers(0, 20)))
        patch.setattr("mining.common.tokenizer.CHARS_AT_A_TIME", data.draw(st.integers(1, 50)))
        found = encoder.encode_batch(texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids.tolist() == tokenizer.encode(text)


def test_what_is_encoded_at_a_time_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine takes hundreds of bytes a character: long texts must not come to it whole."""
    sizes: list[int] = []

    class Spy:
        def __init__(self, engine: Any) -> None:
            self.engine = engine

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            sizes.append(sum(map(len, texts)))
            return self.engine.encode_batch_fast(texts, **options)

    plain = load_tokenizer(folder / "tokenizer")
    encoder = SentencePieceEncoder(folder / "tokenizer" / "spm.model", plain)
    for owner, name in ((encoder, "_tokenizer"), (encoder, "_within")):
        tokenizer = getattr(owner, name)
        if tokenizer is None:
            continue  # a word of a model of words goes on across lines
        spied = dataclasses.replace(tokenizer, engine=Spy(tokenizer.engine))
        monkeypatch.setattr(owner, name, spied)
    monkeypatch.setattr("mining.common.tokenizer.CHARS_AT_A_TIME", 30_000)
    lines = (" " if encoder._within is None else "\n").join(SENTENCES[2:] * 3000)
    assert len(lines) > 150_000
    texts = [lines, *SENTENCES * 1000]
    found = encoder.encode_batch(texts)
    spied = dataclasses.replace(plain, engine=Spy(plain.engine))
    spied.encode_batch(texts[1:])
    assert max(sizes) <= 30_000
    assert found[0].tolist() == plain.encode(lines)


@given(st.lists(st.sampled_from(["word", "", " ", "x" * 70, "y" * 199]), max_size=40).map(" ".join))
def test_cuts_fall_between_words(text: str) -> None:
    fragments = cut_text(text)
    assert " ".join(fragments) == text
    assert all(fragment and not fragment.startswith(" ") for fragment in fragments[1:])
    assert all(len(fragment) >= FRAGMENT_CHARS for fragment in fragments[:-1])


def test_tokenize_writes_the_same_bytes_with_either_engine(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, engine = CorpusSettings(path=str(folder / "docs")), EngineSettings(workers=1)
    used = []
    real = SentencePieceEncoder.encode_batch

    def spy(self: SentencePieceEncoder, texts: Any) -> Any:
        used.append(len(texts))
        return real(self, texts)

    monkeypatch.setattr(SentencePieceEncoder, "encode_batch", spy)
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "fast", folder / "tokenizer", engine)
    assert sum(used) > 200
    monkeypatch.setattr("mining.tokenize.load_encoder", lambda *_: None)
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "plain", folder / "tokenizer", engine)
    assert folder_bytes(tmp_path / "fast") == folder_bytes(tmp_path / "plain")


def test_a_model_that_might_give_other_ids_is_not_used(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / "tokenizer" / name).read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert load_encoder(tmp_path, tokenizer, SENTENCES) is None  # no model
    model = (folder / "tokenizer" / "spm.model").read_bytes()
    (tmp_path / "spm.model").write_bytes(model)
    assert load_encoder(tmp_path, tokenizer, SENTENCES) is not None
    monkeypatch.setattr(sentencepiece_encoder, "cut_text", lambda text: [text[:3], text[3:]])
    assert load_encoder(tmp_path, tokenizer, SENTENCES) is None  # the sample differs
    monkeypatch.undo()
    # With the manifest of the stage that made both, nothing is made again as long as they stay.
    (tmp_path / "manifest.json").write_bytes((folder / "tokenizer" / "manifest.json").read_bytes())
    with monkeypatch.context() as patch:
        patch.delattr(sentencepiece_encoder, "to_tokenizer_json")
        assert load_encoder(tmp_path, tokenizer, SENTENCES) is not None
    value = read_json(tmp_path / "tokenizer.json")
    value["normalizer"] = {"type": "NFC"}
    write_json(tmp_path / "tokenizer.json", value)
    assert load_encoder(tmp_path, load_tokenizer(tmp_path), SENTENCES) is None


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_real_documents_have_the_same_ids(tmp_path: Path, shared: Path, kind: Any) -> None:
    corpus = CorpusSettings(path=str(shared / "corpus"))
    trained = TokenizerSettings(model_type=kind, vocab_size=8000, sample_chars=300_000)
    run_tokenizer(trained, corpus, tmp_path / "tokenizer", seed=1)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    encoder = load_encoder(tmp_path / "tokenizer", tokenizer, SENTENCES)
    assert encoder is not None
    for name, path in list_documents(corpus).items():
        reader = itertools.islice(FileReader(path, name, corpus), 0, 1000, 25)
        texts = [record.text for record in reader if isinstance(record, Record)]
        for ours, others in zip(
            encoder.encode_batch(texts), tokenizer.encode_batch(texts), strict=True
        ):
            assert np.array_equal(ours, others)


def test_rounded_scores_stay_as_they_are(folder: Path) -> None:
    model = (folder / "tokenizer" / "spm.model").read_bytes()
    if "unigram" in folder.name:
        assert has_rounded_scores(model)
        assert round_scores(model) == model
