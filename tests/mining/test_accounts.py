"""Sources and languages without end: what is kept of them is bounded, and the accounts add up."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mining import accounts
from mining.common.errors import InputError
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, read_shard
from mining.engine_settings import EngineSettings
from mining.langid import MAX_LANGUAGES
from mining.settings import CorpusSettings, TokenizerSettings, TokenizeSettings
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer
from tests.conftest import folder_bytes

Write = Callable[[Path, Iterable[dict[str, Any]]], Path]
ONE = EngineSettings(workers=1)
SUMS = ("documents", "chars", "tokens")


@pytest.fixture
def tokenizer(word_tokenizer: Callable[[Iterable[str]], Path]) -> Path:
    return word_tokenizer(["a", "b"])


def by_source(folder: Path) -> dict[str, dict[str, int]]:
    """What the documents of a `tokenize` folder come to by source, added up one by one."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for path in list_shards(folder / "tokens"):
        for batch in read_shard(path):
            ends = batch.offsets[1:] - batch.offsets[:-1]
            for source, chars, tokens in zip(batch.source, batch.n_chars, ends, strict=True):
                for name, number in zip(SUMS, (1, int(chars), int(tokens)), strict=True):
                    found[source][name] += number
    return dict(found)


@pytest.mark.parametrize("at_a_time", [3, 20, 1 << 18])
def test_the_manifest_names_the_largest_sources_and_sums_up_the_others(
    tmp_path: Path,
    write_jsonl: Write,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_a_time: int,
) -> None:
    draw = random.Random(1)
    names = [*(f"https://example.org/{k}" for k in range(40)), "other_sources", "été"]
    for part in range(4):
        records = [
            {
                # Some are in quarantine or dropped in the end.
                "id": f"d{draw.randrange(1000)}",
                "text": "a " * draw.randrange(20) + "b" * draw.randrange(30),
                "lang": draw.choice(["en", "fr"]),
                "source": draw.choice(names),
            }
            for _ in range(60 * part)  # none in the first
        ]
        write_jsonl(tmp_path / "docs" / f"{part}.jsonl", records)
    corpus = CorpusSettings(path=str(tmp_path / "docs"))
    monkeypatch.setattr(accounts, "SOURCES_SHOWN", 7)
    monkeypatch.setattr(accounts, "PART_SOURCES_AT_A_TIME", at_a_time)
    monkeypatch.setattr(accounts, "SOURCES_AT_A_TIME", at_a_time)
    monkeypatch.setattr(accounts, "ROWS_PER_GROUP", 5)
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "out", tokenizer, ONE)
    counts = read_manifest(tmp_path / "out", "tokenize").counts

    all_sources = by_source(tmp_path / "out")
    ranked = sorted(all_sources, key=lambda name: (-all_sources[name]["tokens"], name))
    assert len(ranked) > 30
    assert counts["by_source"] == {name: all_sources[name] for name in ranked[:7]}
    others = {key: sum(all_sources[name][key] for name in ranked[7:]) for key in SUMS}
    assert counts["other_sources"] == {"sources": len(ranked) - 7, **others}
    for key in SUMS:
        assert counts[key] == sum(entry[key] for entry in counts["by_lang"].values())
        shown = sum(entry[key] for entry in counts["by_source"].values())
        assert counts[key] == shown + counts["other_sources"][key]

    monkeypatch.setattr(accounts, "SOURCES_SHOWN", len(ranked))
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "all", tokenizer, ONE)
    counts = read_manifest(tmp_path / "all", "tokenize").counts
    assert counts["by_source"] == all_sources
    assert "other_sources" not in counts


def test_a_source_for_each_document_leaves_a_small_manifest(
    tmp_path: Path, write_jsonl: Write, tokenizer: Path
) -> None:
    for part in range(2):
        records = (
            {"id": f"{part}-{k}", "text": f"a {part} {k}", "lang": "en", "source": f"s{k}/{part}"}
            for k in range(2500)
        )
        write_jsonl(tmp_path / "docs" / f"{part}.jsonl", records)
    corpus = CorpusSettings(path=str(tmp_path / "docs"))
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "one", tokenizer, ONE)
    assert (tmp_path / "one" / "manifest.json").stat().st_size < 30_000
    counts = read_manifest(tmp_path / "one", "tokenize").counts
    shown = sorted(f"s{k}/{part}" for k in range(2500) for part in range(2))
    assert sorted(counts["by_source"]) == shown[: accounts.SOURCES_SHOWN]  # ties go by name
    assert counts["other_sources"]["documents"] == 5000 - accounts.SOURCES_SHOWN
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "two", tokenizer, EngineSettings(workers=2))
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def write_languages(folder: Path, write: Write, n: int, files: int) -> CorpusSettings:
    for part in range(files):
        records = [
            {"id": f"{k}", "text": f"a b {k}", "lang": f"x{k}"}
            for k in range(n)
            if k % files == part
        ]
        write(folder / f"{part}.jsonl", records)
    return CorpusSettings(path=str(folder))


@pytest.mark.parametrize("files", [1, 3])
def test_more_languages_than_a_corpus_has_are_an_error(
    tmp_path: Path, write_jsonl: Write, tokenizer: Path, files: int
) -> None:
    corpus = write_languages(tmp_path / "many", write_jsonl, MAX_LANGUAGES + 1, files)
    message = r"257 languages in .*corpus\.languages.*corpus\.lang_field"
    with pytest.raises(InputError, match=message):
        run_tokenize(TokenizeSettings(), corpus, tmp_path / "out", tokenizer, ONE)
    with pytest.raises(InputError, match=message):
        run_tokenizer(TokenizerSettings(vocab_size=300), corpus, tmp_path / "t", seed=1)
    # Either remedy helps, with the same output.
    some = CorpusSettings(path=corpus.path, languages=("x1", "x2"))
    run_tokenize(TokenizeSettings(), some, tmp_path / "out", tokenizer, ONE)
    assert set(read_manifest(tmp_path / "out", "tokenize").counts["by_lang"]) == {"x1", "x2"}
    identified = CorpusSettings(path=corpus.path, lang_field=None)
    run_tokenize(TokenizeSettings(), identified, tmp_path / "out", tokenizer, ONE)
    counts = read_manifest(tmp_path / "out", "tokenize").counts
    assert counts["languages_identified"] == MAX_LANGUAGES + 1


def test_as_many_languages_as_may_be(tmp_path: Path, write_jsonl: Write, tokenizer: Path) -> None:
    corpus = write_languages(tmp_path / "docs", write_jsonl, MAX_LANGUAGES, 2)
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "out", tokenizer, ONE)
    counts = read_manifest(tmp_path / "out", "tokenize").counts
    assert len(counts["by_lang"]) == MAX_LANGUAGES
