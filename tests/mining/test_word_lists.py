"""Word and pair lists of the `words` stage, and words as token sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from mining.common.errors import InputError
from mining.common.manifest import read_manifest
from mining.common.stage import begin
from mining.common.tokenizer import load_tokenizer
from mining.engine_settings import EngineSettings
from mining.settings import CorpusSettings, TokenizeSettings, WordsSettings
from mining.tokenize import run_tokenize
from mining.word_lists import read_pairs, read_words
from mining.words import run_words
from tests.conftest import SHARED

Write = Callable[[Path, Iterable[dict[str, Any]]], Path]
ONE = EngineSettings(workers=1)
TASK = """
format: 1
name: small
version: 1
license: CC-BY-4.0
languages: {en: English, ja: Japanese}
instruction: ""
example: "{source} {target}"
query: "{source}"
answer: " {target}"
concepts: concepts.tsv
"""
TEXTS = [
    ("en", "the cat sat on the table"),
    ("en", "a Cat and a dog"),
    ("en", "concatenate dogs"),
    ("ja", "猫が犬を見た"),
    ("ja", "猫 cat"),
    ("ja", "黒猫は大きい"),
]


def byte_level_tokenizer(folder: Path, texts: list[str], n_pieces: int) -> Path:
    """A finished `tokenizer` folder of a byte-level BPE, as the reference's models have."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces, special_tokens=["</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator(texts, trainer)
    run = begin("tokenizer", folder, {}, {})
    assert run is not None
    engine.save(str(folder / "tokenizer.json"))
    run.finish({})
    return folder


def write_task(root: Path, concepts: list[tuple[str, str]]) -> Path:
    (root / "task.yaml").write_text(TASK, "utf-8")
    rows = [f"c{k}\tnoun\tx\t{en}\t{ja}" for k, (en, ja) in enumerate(concepts)]
    table = "\n".join(["id\tpos\tclass\ten\tja", *rows])
    (root / "concepts.tsv").write_text(table + "\n", "utf-8")
    return root / "task.yaml"


class World:
    """A few documents with their token shards, a task of one concept and two lists."""

    def __init__(self, root: Path, write: Write) -> None:
        documents = [{"id": str(k), "text": t, "lang": la} for k, (la, t) in enumerate(TEXTS)]
        write(root / "documents" / "0.jsonl", documents[:4])
        write(root / "documents" / "1.jsonl", documents[4:])
        self.corpus = CorpusSettings(path=str(root / "documents"))
        texts = [text for _, text in TEXTS] * 3
        self.tokenizer = byte_level_tokenizer(root / "tokenizer", texts, 330)
        self.tokens = root / "tokenize"
        run_tokenize(TokenizeSettings(), self.corpus, self.tokens, self.tokenizer, ONE)
        self.task = write_task(root, [("cat", "猫")])
        self.words, self.pairs = root / "words.tsv", root / "pairs.tsv"
        self.words.write_text("en\tdog\nen\tCat\n\nja\t犬\nen\tzebra\n", "utf-8")
        self.pairs.write_text("en\tdog\tja\t犬\nen\tdog\ten\tcat\nja\t犬\tja\t猫\n", "utf-8")

    def run(self, out: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
        chosen = WordsSettings(word_list=str(self.words), pair_list=str(self.pairs), **options)
        run_words(chosen, out, self.corpus, self.tokens, self.tokenizer, self.task, ONE, 0)
        return {path.stem: pq.read_table(path).to_pylist() for path in out.glob("*.parquet")}


@pytest.fixture
def world(tmp_path: Path, write_jsonl: Write) -> World:
    return World(tmp_path, write_jsonl)


def test_lists_are_counted_beside_the_task(world: World, tmp_path: Path) -> None:
    tables = world.run(tmp_path / "words")
    listed = {row["word"]: row for row in tables["listed_words"]}
    assert list(listed) == ["dog", "Cat", "犬", "zebra", "cat", "猫"]
    assert {word: row["doc_freq"] for word, row in listed.items()} == {
        "dog": 1, "Cat": 3, "犬": 1, "zebra": 0, "cat": 3, "猫": 3
    }  # fmt: skip
    assert listed["cat"]["doc_freq_own_lang"] == 2
    assert listed["cat"]["doc_freq_tokens"] is None
    assert [row["pair_doc_freq"] for row in tables["listed_pairs"]] == [0, 1, 1]
    assert [row["source_lang"] for row in tables["listed_pairs"]] == ["en", "en", "ja"]
    assert [row["pair_doc_freq"] for row in tables["pairs"]] == [1, 1]
    assert [row["word"] for row in tables["words"]] == ["cat", "猫"]
    manifest = read_manifest(tmp_path / "words", "words")
    assert manifest.counts["listed_words"] == 6
    assert manifest.counts["listed_pairs"] == 3
    assert {"word_list", "pair_list"} <= set(manifest.inputs)


def holds(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[k : k + len(part)] == part for k in range(len(tokens)))


def test_token_sequences_beside_the_text(world: World, tmp_path: Path) -> None:
    """Both ways, counted by hand: the reference's tokens are case-sensitive and know no borders."""
    tables = world.run(tmp_path / "both", matching="both")
    tokenizer = load_tokenizer(world.tokenizer)
    texts = [text for _, text in TEXTS]

    def by_tokens(spellings: list[str]) -> set[int]:
        return {
            k
            for k, text in enumerate(texts)
            for word in spellings
            for form in (word, " " + word)
            if holds(tokenizer.encode(text), tokenizer.encode(form))
        }

    by_text = {"cat": {0, 1, 4}, "猫": {3, 4, 5}, "dog": {1}, "犬": {3}, "zebra": set()}
    spellings = {word: [word] for word in by_text} | {"cat": ["cat", "Cat"]}
    found = {word: by_tokens(forms) for word, forms in spellings.items()}
    for row in tables["listed_words"]:
        key = row["word"].lower()
        assert row["doc_freq"] == len(by_text[key])
        assert row["doc_freq_tokens"] == len(found[key])
    for row in tables["listed_pairs"]:
        assert row["pair_doc_freq_tokens"] == len(found[row["source"]] & found[row["target"]])
    report = read_manifest(tmp_path / "both").counts["token_matching"]
    for lang, words in (("en", ("cat", "dog", "zebra")), ("ja", ("猫", "犬"))):
        text = sum(len(by_text[w]) for w in words)
        both = sum(len(by_text[w] & found[w]) for w in words)
        assert (report[lang]["text"], report[lang]["both"]) == (text, both)
        assert report[lang]["recall"] == pytest.approx(both / text)
        assert report[lang]["words"] == len(words)
    only = world.run(tmp_path / "tokens", matching="tokens")
    for a, b in zip(only["listed_words"], tables["listed_words"], strict=True):
        assert a["doc_freq"] == b["doc_freq_tokens"]
    assert "documents" not in read_manifest(tmp_path / "tokens").inputs
    text = world.run(tmp_path / "text")
    assert [r["doc_freq"] for r in text["words"]] == [r["doc_freq"] for r in tables["words"]]
    assert text["lifts"] == tables["lifts"]


def test_bad_lines_of_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text("en\tdog\n\nen dog\n", "utf-8")
    with pytest.raises(InputError, match=r"list.tsv:3: found 'en dog', expected language, word"):
        read_words(path)
    path.write_text("en\tdog\tja\t\n", "utf-8")
    with pytest.raises(InputError, match=r"list.tsv:1: .*language, word, language, word"):
        read_pairs(path)
    path.write_bytes(b"en\t\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_words(path)


@pytest.mark.shared_data
@pytest.mark.slow
def test_real_words_as_token_sequences(tmp_path: Path, write_jsonl: Write) -> None:
    """On real text, token sequences miss words of Chinese and Japanese far more often."""
    import gzip
    import json

    documents = []
    for path in sorted((SHARED / "corpus").glob("*/python-docs-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents += [json.loads(line) for _, line in zip(range(120), lines, strict=False)]
    write_jsonl(tmp_path / "documents" / "0.jsonl", documents)
    corpus = CorpusSettings(path=str(tmp_path / "documents"))
    texts = [document["text"] for document in documents]
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer", texts, 8000)
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "tokenize", tokenizer, ONE)
    words = ["file", "list", "word", "type", "result", "fichier", "liste", "mot", "résultat"]
    listed = [("en" if k < 5 else "fr", word) for k, word in enumerate(words)]
    listed += [("ja", word) for word in ("文字", "結果", "方法", "値", "場合", "型", "例")]
    listed += [("zh", word) for word in ("文件", "结果", "方法", "值", "类型", "列表", "例")]
    path = tmp_path / "words.tsv"
    path.write_text("".join(f"{lang}\t{word}\n" for lang, word in listed), "utf-8")
    out = tmp_path / "words"
    task = write_task(tmp_path, [("file", "文字")])
    options = WordsSettings(word_list=str(path), matching="both", case_sensitive=True)
    run_words(options, out, corpus, tmp_path / "tokenize", tokenizer, task, ONE, 0)
    report = read_manifest(out).counts["token_matching"]
    spaced = np.mean([report[lang]["recall"] for lang in ("en", "fr")])
    unspaced = np.mean([report[lang]["recall"] for lang in ("zh", "ja")])
    assert unspaced < spaced - 0.1
    table = pq.read_table(out / "listed_words.parquet").to_pydict()
    for word, found in zip(table["word"], table["doc_freq"], strict=True):
        if ord(word[0]) > 0x3000:
            assert found == sum(word in text for text in set(texts))
