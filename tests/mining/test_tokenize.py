from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from mining.common.errors import InputError
from mining.common.manifest import read_manifest
from mining.common.shards import common_info, list_shards, read_shard
from mining.common.tokenizer import load_tokenizer
from mining.documents import FileReader, Record, list_documents
from mining.duplicates import first_occurrences, judge_duplicates
from mining.engine_settings import EngineSettings
from mining.segment import words
from mining.settings import CorpusSettings, TokenizerSettings, TokenizeSettings
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer
from tests.conftest import folder_bytes

Write = Callable[[Path, Iterable[dict[str, Any]]], Path]
ONE = EngineSettings(workers=1)
TEXTS = [
    f"word{i % 7} the {'cat' if i % 2 else 'dog'} sat on mat{i % 11} <s> ok" for i in range(60)
]


def corpus(folder: Path, write: Write, texts: list[str], files: int = 2) -> CorpusSettings:
    for k in range(files):
        records = [
            {"id": f"d{i}", "text": text, "lang": "en" if i % 3 else "fr", "source": "s"}
            for i, text in enumerate(texts)
            if i % files == k
        ]
        write(folder / f"{k}.jsonl.gz", records)
    return CorpusSettings(path=str(folder))


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word"])
def test_trained_tokenizer_has_sentencepieces_ids_and_is_lossless(
    tmp_path: Path, write_jsonl: Write, kind: Any
) -> None:
    docs = corpus(tmp_path / "docs", write_jsonl, TEXTS)
    settings = TokenizerSettings(model_type=kind, vocab_size=350, sample_chars=5000)
    run_tokenizer(settings, docs, tmp_path / "t", seed=1)
    run_tokenizer(settings, docs, tmp_path / "t2", seed=1)
    assert folder_bytes(tmp_path / "t") == folder_bytes(tmp_path / "t2")
    ours = load_tokenizer(tmp_path / "t")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t" / "spm.model"))
    auto = AutoTokenizer.from_pretrained(tmp_path / "t")
    extra = (
        [] if kind == "word" else ["new  lines\nand\ttabs, 你好 <0x41> </s> é", "", " lead", "a "]
    )
    for text in TEXTS + extra:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.encode_batch([text])[0].tolist() == ids
        if "<" not in text:  # text that spells a special token is text for us, not for the library
            assert auto(text, add_special_tokens=False)["input_ids"] == ids
        if kind != "word":
            assert ours.decode(ids) == text
    assert ours.piece(ours.eos_id) == "</s>"
    assert read_manifest(tmp_path / "t").counts["vocab_size"] == ours.vocab_size


def test_given_tokenizer_is_taken_as_it_is(
    tmp_path: Path, write_jsonl: Write, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    given_folder = word_tokenizer(["a", "b"])
    settings = TokenizerSettings(path=str(given_folder))
    run_tokenizer(settings, CorpusSettings(), tmp_path / "t", seed=1)
    same = (load_tokenizer(tmp_path / "t").fingerprint, load_tokenizer(given_folder).fingerprint)
    assert same[0] == same[1]


def test_too_large_a_vocabulary_is_a_clear_error(tmp_path: Path, write_jsonl: Write) -> None:
    docs = corpus(tmp_path / "docs", write_jsonl, ["a b"] * 3)
    settings = TokenizerSettings(model_type="bpe", vocab_size=10)
    with pytest.raises(InputError, match="vocab_size"):
        run_tokenizer(settings, docs, tmp_path / "t", seed=1)


def messy(folder: Path) -> CorpusSettings:
    """Two files with every kind of trouble."""
    folder.mkdir()

    def record(i: str, text: str, lang: str | None = "en") -> bytes:
        value = {"id": i, "text": text} | ({"lang": lang} if lang else {})
        return json.dumps(value).encode() + b"\n"

    (folder / "a.jsonl").write_bytes(
        record("1", "the cat sat")
        + b'{"id": "broken\n'
        + record("2", "the dog sat")
        + record("1", "another text under a used id")
        + record("3", "the cat sat")  # duplicate text
        + record("4", "x", "de")  # other language
        + record("5", "")
    )
    (folder / "b.jsonl").write_bytes(
        record("2", "id of another file")
        + b'{"id": "7", "text": "\xff"}\n'
        + record("8", "the dog sat")
        + record(
            "9",
            "Ceci est une phrase en fran\u00e7ais, assez longue pour la reconna\u00eetre.",
            None,
        )
        + b'{"id": "10"}\n'
    )
    (folder / "empty.jsonl").write_bytes(b"")
    return CorpusSettings(path=str(folder), languages=("en", "fr"))


def test_accounts_reconcile_and_quarantine_names_the_place(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    docs = messy(tmp_path / "docs")
    tokenizer = word_tokenizer(["the", "cat", "dog", "sat"])
    run_tokenize(TokenizeSettings(words=True), docs, tmp_path / "o", tokenizer, ONE)
    counts = read_manifest(tmp_path / "o", "tokenize").counts
    assert counts["records"] == 12
    assert counts["documents"] == 3
    assert counts["quarantined"] == {
        "invalid JSON": 1,
        "duplicate id": 2,
        "invalid UTF-8": 1,
        "no text": 1,
    }
    assert counts["dropped"] == {"duplicate text": 2, "language": 1, "too short": 1}
    assert counts["languages_identified"] == 1
    for entry in counts["files"].values():
        bad = sum(entry["quarantined"].values()) + sum(entry["dropped"].values())
        assert entry["records"] == entry["documents"] + bad
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "o" / "quarantine").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [(r["file"], r["line"], r["reason"]) for r in lines] == [
        ("a.jsonl", 2, "invalid JSON"),
        ("a.jsonl", 4, "duplicate id"),
        ("b.jsonl", 1, "duplicate id"),
        ("b.jsonl", 2, "invalid UTF-8"),
        ("b.jsonl", 5, "no text"),
    ]
    assert lines[0]["raw"] == '{"id": "broken'
    assert "used id" in lines[1]["raw"]
    assert "raw_base64" in lines[3]
    shards = list_shards(tmp_path / "o" / "tokens")
    assert common_info(shards).fingerprint == load_tokenizer(tokenizer).fingerprint
    documents = [
        (i, lang)
        for s in shards
        for b in read_shard(s)
        for i, lang in zip(b.id, b.lang, strict=True)
    ]
    assert documents == [("1", "en"), ("2", "en"), ("9", "fr")]
    recorded = read_manifest(tmp_path / "o").inputs["documents"]["files"]
    assert all(len(entry["sha256"]) == 64 for entry in recorded.values())


def test_workers_change_nothing(
    tmp_path: Path, write_jsonl: Write, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    docs = corpus(tmp_path / "docs", write_jsonl, TEXTS, files=5)
    tokenizer = word_tokenizer(w for text in TEXTS for w in text.split())
    settings = TokenizeSettings(words=True)
    run_tokenize(settings, docs, tmp_path / "one", tokenizer, ONE)
    run_tokenize(settings, docs, tmp_path / "two", tokenizer, EngineSettings(workers=2))
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_word_shards_hold_the_words_of_the_text(
    tmp_path: Path, write_jsonl: Write, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    texts = ["The cat, the CAT and a dog.", "我喜欢猫。我喜欢狗。", "cat 猫 once"]
    docs = corpus(tmp_path / "docs", write_jsonl, texts)
    tokenizer = word_tokenizer(["x"])
    settings = TokenizeSettings(words=True, word_min_doc_freq=2)
    run_tokenize(settings, docs, tmp_path / "o", tokenizer, ONE)
    vocabulary = pq.read_table(tmp_path / "o" / "words" / "vocabulary.parquet").to_pylist()
    names = {row["id"]: row["word"] for row in vocabulary} | {0: "?"}
    expected: Counter[str] = Counter()
    found = {}
    for shard in list_shards(tmp_path / "o" / "words"):
        for batch in read_shard(shard):
            for d, identifier in enumerate(batch.id):
                ids = batch.tokens[batch.offsets[d] : batch.offsets[d + 1]]
                found[identifier] = [names[int(i)] for i in ids]
    for name, path in list_documents(docs).items():
        for record in FileReader(path, name, docs):
            assert isinstance(record, Record)
            segments = words(record.text, record.lang or "en")
            expected.update(set(segments))
            assert len(found[record.id]) == len(segments)
    frequent = {w: n for w, n in expected.items() if n >= 2}
    assert {row["word"]: row["doc_freq"] for row in vocabulary} == frequent
    order = [(-row["doc_freq"], row["word"]) for row in vocabulary]
    assert order == sorted(order)
    assert words("The cat, the CAT and a dog.", "en") == [
        "the",
        "cat",
        "the",
        "cat",
        "and",
        "a",
        "dog",
    ]


def test_a_given_tokenizer_is_known_by_its_own_files(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    """A model's weights beside it are neither hashed nor a reason to run again."""
    given_folder = tmp_path / "model"
    given_folder.mkdir()
    made = word_tokenizer(["x"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (given_folder / name).write_bytes((made / name).read_bytes())
    settings = TokenizerSettings(path=str(given_folder))
    run_tokenizer(settings, CorpusSettings(), tmp_path / "t", seed=0)
    before = folder_bytes(tmp_path / "t")
    (given_folder / "model.safetensors").write_bytes(b"weights")
    run_tokenizer(settings, CorpusSettings(), tmp_path / "t", seed=0)
    assert folder_bytes(tmp_path / "t") == before
    (given_folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer\.json"):
        run_tokenizer(settings, CorpusSettings(), tmp_path / "t", seed=0)


def test_a_vocabulary_with_gaps_is_as_large_as_its_largest_id(tmp_path: Path) -> None:
    engine = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 9, "a": 70_000}, unk_token="<unk>"))
    engine.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == 70_001


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["00009.parquet", "99999.parquet", "100000.parquet"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in list_shards(tmp_path)] == names


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_first_occurrences_equal_a_set(keys: list[tuple[int, int]]) -> None:
    seen: set[tuple[int, int]] = set()
    expected = []
    for key in keys:
        expected.append(key not in seen)
        seen.add(key)
    array = np.array(keys, dtype=np.uint64).reshape(-1, 2)
    assert first_occurrences(array).tolist() == expected


@pytest.mark.parametrize(
    ("change", "near", "workers"),
    [("appended", False, 1), ("cut", False, 1), ("same rows", False, 2), ("appended", True, 1)],
)
def test_a_file_that_changes_between_two_readings_is_named(
    tmp_path: Path,
    word_tokenizer: Callable[[Iterable[str]], Path],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    near: bool,
    workers: int,
) -> None:
    """Duplicate ids are read a second time, as are texts that are compared."""

    def record(i: str, text: str) -> str:
        return json.dumps({"id": i, "text": text, "lang": "en"}) + "\n"

    path = tmp_path / "docs" / "a.jsonl"
    path.parent.mkdir()
    whole = record("x", "t0") + record("y", "t1") + record("x", "t2")
    path.write_text(whole)
    changed = {
        "appended": whole + record("z", "appended"),
        "cut": record("x", "t0"),
        "same rows": whole.replace("t2", "t3"),
    }[change]

    def judge(*arguments: Any) -> None:
        judge_duplicates(*arguments)
        path.write_text(changed)

    settings = TokenizeSettings(near_duplicates=near)
    docs, out = CorpusSettings(path=str(path.parent)), tmp_path / "o"
    tokenizer, engine = word_tokenizer(["t0"]), EngineSettings(workers=workers)
    with monkeypatch.context() as patch:
        patch.setattr("mining.tokenize.judge_duplicates", judge)
        with pytest.raises(InputError, match=r"a\.jsonl.*: changed while it was read; run the"):
            run_tokenize(settings, docs, out, tokenizer, engine)
    assert not (out / "manifest.json").exists()
    run_tokenize(settings, docs, out, tokenizer, engine)
    run_tokenize(settings, docs, tmp_path / "new", tokenizer, engine)
    assert folder_bytes(out) == folder_bytes(tmp_path / "new")
