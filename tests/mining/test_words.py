"""The `words` stage against regular expressions, sets and plain numpy."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining import word_postings
from mining.common.errors import MismatchError
from mining.common.logs import log
from mining.common.manifest import read_manifest
from mining.common.seeds import hash64
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.engine_settings import EngineSettings
from mining.kernels.match import fold, word_characters
from mining.settings import CorpusSettings, TokenizeSettings, WordsSettings
from mining.tokenize import run_tokenize
from mining.word_postings import WordFinder
from mining.words import run_words
from tests.conftest import folder_bytes

Write = Callable[[Path, Iterable[dict[str, Any]]], Path]
ONE = EngineSettings(workers=1)
SEED = 5
CONCEPTS = [
    ("cat", {"en": "cat", "fr": "chat", "ja": "猫"}),
    ("table", {"en": "table", "fr": "table", "ja": "表"}),
    ("summer", {"en": "summer", "fr": "été", "ja": "夏"}),
    ("unseen", {"en": "zebra", "fr": "zèbre", "ja": "縞馬"}),
]
TASK = """
format: 1
name: small
version: 1
license: CC-BY-4.0
languages: {en: English, fr: French, ja: Japanese}
instruction: ""
example: "{source} {target}"
query: "{source}"
answer: " {target}"
concepts: concepts.tsv
"""
FILLER = ["the", "of", "und", "sat", "Cats", "cat_food", "3", "!", "rouge", "bleu", "l'été", "ÉTÉ"]
WORDS = ["cat", "Cat", "chat", "table", "Table", "été", "summer", "猫", "表", "夏", "春夏秋"]


def make_documents(n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    documents = []
    for k in range(n):
        chosen = rng.choice(FILLER + WORDS, size=int(rng.integers(1, 12))).tolist()
        text = " ".join(chosen) + f" n{k}"
        documents.append({"id": f"d{k}", "text": text, "lang": ("en", "fr", "ja")[k % 3]})
    return documents


class Setting:
    """A corpus of JSONL files, its tokenizer and token shards, and a task."""

    def __init__(
        self,
        root: Path,
        write: Write,
        tokenizer: Path,
        documents: list[Any],
        n_files: int,
        languages: tuple[str, ...] = (),
    ) -> None:
        for k in range(n_files):
            cut = slice(k * len(documents) // n_files, (k + 1) * len(documents) // n_files)
            write(root / "documents" / f"{k}.jsonl.gz", documents[cut])
        self.corpus = CorpusSettings(path=str(root / "documents"), languages=languages)
        self.tokenizer = tokenizer
        self.tokens = root / "tokenize"
        run_tokenize(TokenizeSettings(), self.corpus, self.tokens, tokenizer, ONE)
        self.task = root / "task.yaml"
        self.task.write_text(TASK, "utf-8")
        rows = [
            "\t".join([name, "noun", "x", *(w[lang] for lang in ("en", "fr", "ja"))])
            for name, w in CONCEPTS
        ]
        header = "\t".join(["id", "pos", "class", "en", "fr", "ja"])
        (root / "concepts.tsv").write_text("\n".join([header, *rows]) + "\n", "utf-8")

    def run(self, settings: WordsSettings, out: Path, engine: EngineSettings = ONE) -> None:
        run_words(settings, out, self.corpus, self.tokens, self.tokenizer, self.task, engine, SEED)


@pytest.fixture
def tokenizer(word_tokenizer: Callable[[Iterable[str]], Path]) -> Path:
    return word_tokenizer([*FILLER, *WORDS])


@pytest.fixture
def setting(tmp_path: Path, write_jsonl: Write, tokenizer: Path) -> Setting:
    return Setting(tmp_path / "corpus", write_jsonl, tokenizer, make_documents(120), 3)


def matches(word: str, text: str, case_sensitive: bool = False) -> bool:
    """A whole-word search with a regular expression; the words here are Latin, or Han and kana."""
    flags = 0 if case_sensitive else re.IGNORECASE
    latin = "A-Za-zÀ-ÖØ-öø-ɏ0-9\u0300-\u036f"
    pattern = re.escape(unicodedata.normalize("NFC", word))
    if re.match(f"[{latin}]", word):
        pattern = f"(?<![{latin}]){pattern}(?![{latin}])"
    return re.search(pattern, unicodedata.normalize("NFC", text), flags) is not None


ALPHABET = [
    "a",
    "b",
    "é",
    "e\u0301",
    "É",
    "A",
    "1",
    "猫",
    "メ",
    "モ",
    "ー",
    " ",
    "-",
    "_",
    "'",
    "。",
]


@settings(max_examples=400)
@given(
    st.lists(
        st.sampled_from(["a", "ab", "é", "aé", "b1", "猫", "メモ", "猫メ", "モー"]),
        min_size=1, max_size=6, unique=True,
    ),
    st.lists(st.sampled_from(ALPHABET), max_size=25).map("".join),
    st.booleans(),
)  # fmt: skip
def test_finder_equals_regular_expressions(words: list[str], text: str, cased: bool) -> None:
    options = WordsSettings(case_sensitive=cased)
    patterns = sorted({fold(word, cased) for word in words})
    found, ends = WordFinder(patterns, options).find([text, "", text])
    assert ends.tolist() == [0, len(found) // 2, len(found) // 2, len(found)]
    here = {patterns[k] for k in found[: ends[1]]}
    assert here == {patterns[k] for k in found[ends[1] :]}
    assert [word for word in words if fold(word, cased) in here] == [
        word for word in words if matches(word, text, cased)
    ]


def test_word_borders() -> None:
    words = ["file", "straße", "中文", "メモ", "tシャツ"]
    finder = WordFinder([fold(word, False) for word in words], WordsSettings())

    def find(text: str) -> list[str]:
        return [words[k] for k in sorted(finder.find([text])[0])]

    assert find("中文file中文") == ["file", "中文"]  # Han is no part of a Latin word
    assert find("profile files file2 xfile") == []
    assert find("FILE") == find("(file)") == find("file_name") == ["file"]
    assert find("STRASSE") == ["straße"]
    assert find("これはメモリ") == ["メモ"]
    assert find("Tシャツを") == ["tシャツ"]
    assert find("aTシャツ") == []
    assert len(WordFinder([], WordsSettings()).find(["anything"])[0]) == 0
    full_width = WordFinder(["file"], WordsSettings(normalize="NFKC"))
    assert full_width.find(["ｆｉｌｅ"])[0].tolist() == [0]
    assert find("ｆｉｌｅ") == []


def test_word_characters() -> None:
    table = word_characters()
    assert all(table[ord(c)] for c in "aZéßжλא한9٣\u0301")
    assert not any(table[ord(c)] for c in "猫メーモ々ไ _-'。 \n")


def read(out: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / f"{name}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("case_sensitive", [False, True])
def test_frequencies_of_words_and_pairs(
    tmp_path: Path, setting: Setting, case_sensitive: bool
) -> None:
    out = tmp_path / "words"
    setting.run(WordsSettings(case_sensitive=case_sensitive), out)
    documents = make_documents(120)

    def postings(word: str, lang: str | None = None) -> set[str]:
        return {
            d["id"]
            for d in documents
            if matches(word, d["text"], case_sensitive) and lang in (None, d["lang"])
        }

    keys = list(itertools.product(CONCEPTS, ("en", "fr", "ja")))
    for row, ((name, words), lang) in zip(read(out, "words"), keys, strict=True):
        assert (row["concept"], row["lang"], row["word"]) == (name, lang, words[lang])
        assert row["doc_freq"] == len(postings(words[lang]))
        assert row["doc_freq_own_lang"] == len(postings(words[lang], lang))
    pairs = read(out, "pairs")
    assert len(pairs) == 4 * 6
    for row in pairs:
        words = dict(CONCEPTS)[row["concept"]]
        a, b = (postings(words[row[key]]) for key in ("source_lang", "target_lang"))
        assert row["source"] == words[row["source_lang"]]
        assert row["target"] == words[row["target_lang"]]
        assert (row["source_doc_freq"], row["target_doc_freq"]) == (len(a), len(b))
        assert row["pair_doc_freq"] == len(a & b)
    counts = read_manifest(out, "words").counts
    assert counts["documents"] == 120
    assert counts["words"] == 12
    assert counts["words_found"] == 9


class Plain:
    """Shares, lifts and pivots of METHOD section 3, a document at a time."""

    def __init__(self, options: WordsSettings, tokenizer: Tokenizer) -> None:
        self.options, self.tokenizer = options, tokenizer
        documents = make_documents(120)
        texts = {d["id"]: d["text"] for d in documents}
        self.tokens = {key: set(tokenizer.encode(text)) for key, text in texts.items()}
        self.n = len(documents)
        self.doc_freq = {
            t: sum(t in found for found in self.tokens.values())
            for t in range(tokenizer.vocab_size)
        }
        self.texts = texts
        self.background = self.shares(list(texts))

    def shares(self, documents: list[str]) -> dict[int, float]:
        sample = sorted(documents, key=lambda d: hash64(SEED, "sample", d))
        sample = sample[: self.options.sample_documents]
        return {
            t: sum(t in self.tokens[d] for d in sample) / len(sample) if sample else 0.0
            for t in range(self.tokenizer.vocab_size)
        }

    def postings(self, word: str) -> list[str]:
        return [d for d, text in self.texts.items() if matches(word, text)]

    def npmi(self, word: str, token: int) -> float:
        n_word = len(self.postings(word))
        both = n_word * self.shares(self.postings(word))[token]
        if both == 0:
            return -1.0
        if both >= self.n:
            return 0.0
        pmi = math.log(both * self.n / (n_word * self.doc_freq[token]))
        return max(-1.0, min(1.0, pmi / -math.log(both / self.n)))

    def pivots(self, w1: str, w2: str) -> list[tuple[int, float]]:
        f1, f2 = self.shares(self.postings(w1)), self.shares(self.postings(w2))
        own = {t for w in (w1, w2) for s in (w, " " + w) for t in self.tokenizer.encode(s)}
        found = []
        for t, n in self.doc_freq.items():
            value = min(f1[t] - self.background[t], f2[t] - self.background[t])
            letters = any(unicodedata.category(c)[0] == "L" for c in self.tokenizer.piece(t))
            if (
                value > 0
                and t not in own
                and t not in self.tokenizer.special_ids
                and n <= self.options.max_doc_share * self.n
                and (letters or self.options.keep_punctuation)
                and min(self.npmi(w1, t), self.npmi(w2, t)) >= self.options.min_npmi
            ):
                found.append((t, value))
        return sorted(found, key=lambda p: (-p[1], p[0]))[: self.options.pivots_per_pair]


@pytest.mark.parametrize(
    "options",
    [
        WordsSettings(max_doc_share=1.0, keep_punctuation=True, min_npmi=-1.0),
        WordsSettings(sample_documents=15, max_doc_share=0.3, pivots_per_pair=4),
        WordsSettings(max_doc_share=0.5, min_npmi=0.02),
    ],
)
def test_lifts_and_pair_pivots(tmp_path: Path, setting: Setting, options: WordsSettings) -> None:
    out = tmp_path / "words"
    setting.run(options, out)
    plain = Plain(options, load_tokenizer(setting.tokenizer))
    n_pivots = 0
    for (name, words), (a, b) in itertools.product(
        CONCEPTS, itertools.permutations(("en", "fr", "ja"), 2)
    ):
        key = (name, a, b)
        rows = [
            row
            for row in read(out, "pair_pivots")
            if (row["concept"], row["source_lang"], row["target_lang"]) == key
        ]
        expected = plain.pivots(words[a], words[b])
        assert [row["token"] for row in rows] == [t for t, _ in expected]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        n_pivots += len(rows)
        f1, f2 = (plain.shares(plain.postings(words[lang])) for lang in (a, b))
        n1, n2 = (len(plain.postings(words[lang])) for lang in (a, b))
        for row, (token, value) in zip(rows, expected, strict=True):
            assert row["pivot"] == pytest.approx(value)
            assert row["text"] == plain.tokenizer.piece(token)
            assert row["source_share"] == pytest.approx(f1[token])
            assert row["target_share"] == pytest.approx(f2[token])
            assert row["background"] == pytest.approx(plain.background[token])
            assert row["path"] == pytest.approx(min(n1 * f1[token], n2 * f2[token]))
    assert n_pivots > 0
    for (name, words), lang in itertools.product(CONCEPTS, ("en", "fr", "ja")):
        shares = plain.shares(plain.postings(words[lang]))
        lifts = {t: shares[t] - plain.background[t] for t in shares}
        best = sorted(
            (t for t in lifts if lifts[t] > 0 and t not in plain.tokenizer.special_ids),
            key=lambda t: (-lifts[t], t),
        )[: options.pivots_per_pair]
        rows = [r for r in read(out, "lifts") if (r["concept"], r["lang"]) == (name, lang)]
        assert [r["token"] for r in rows] == best
        assert [r["lift"] for r in rows] == pytest.approx([lifts[t] for t in best])


def tables(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in folder_bytes(out).items() if name.endswith(".parquet")}


@pytest.mark.slow
def test_same_bytes_however_the_work_is_divided(
    tmp_path: Path, write_jsonl: Write, tokenizer: Path
) -> None:
    found = []
    for n_files, workers in ((1, 1), (4, 1), (4, 2)):
        root = tmp_path / f"{n_files}-{workers}"
        documents = make_documents(120)
        here = Setting(root / "corpus", write_jsonl, tokenizer, documents, n_files)
        options = WordsSettings(sample_documents=10)
        here.run(options, root / "words", EngineSettings(workers=workers))
        found.append(root / "words")
    assert tables(found[0]) == tables(found[1]) == tables(found[2])
    assert folder_bytes(found[1])["manifest.json"] == folder_bytes(found[2])["manifest.json"]


def test_samples_are_counted_in_ranges_that_fit(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.run(WordsSettings(), tmp_path / "whole")
    monkeypatch.setattr("mining.token_counts.MAX_CELLS", 100)
    setting.run(WordsSettings(), tmp_path / "ranges")
    assert folder_bytes(tmp_path / "whole") == folder_bytes(tmp_path / "ranges")


def test_a_killed_run_is_continued_to_the_same_bytes(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.run(WordsSettings(), tmp_path / "whole")
    real = word_postings._search_files
    ranks: list[int] = []

    def dies(rank: int, *args: Any, **names: Any) -> None:
        ranks.append(rank)
        if rank == 1 and len(ranks) == 2:
            raise KeyboardInterrupt
        real(rank, *args, **names)

    monkeypatch.setattr(word_postings, "_search_files", dies)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        setting.run(WordsSettings(), out)
    assert not (out / "manifest.json").exists()
    setting.run(WordsSettings(), out)
    assert ranks == [0, 1, 1, 2]
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_only_documents_of_the_shards_count(
    tmp_path: Path, write_jsonl: Write, tokenizer: Path
) -> None:
    """Duplicates, rejected records and duplicate ids are in the files, but not in the shards."""
    base = [
        {"id": "a", "text": "cat 猫", "lang": "en"},
        {"id": "b", "text": "cat", "lang": "fr"},
    ]
    bad = [
        {"id": "e", "text": "Dog!", "lang": "de"},  # another language; its id comes again
        {"id": "c", "text": "cat", "lang": "en"},  # text stood before
        {"id": "a", "text": "cat chat", "lang": "en"},  # id stood before
        {"id": "d", "lang": "en"},
        {"id": "e", "text": "Cat!", "lang": "ja"},
    ]
    here = Setting(tmp_path / "corpus", write_jsonl, tokenizer, base + bad, 1, ("en", "fr", "ja"))
    here.run(WordsSettings(), tmp_path / "words")
    rows = {(r["concept"], r["lang"]): r for r in read(tmp_path / "words", "words")}
    assert rows["cat", "en"]["doc_freq"] == 3
    assert rows["cat", "en"]["doc_freq_own_lang"] == 1
    assert rows["cat", "fr"]["doc_freq"] == 0
    assert rows["cat", "ja"]["doc_freq"] == 1


def test_a_language_of_the_task_without_documents_is_said(
    tmp_path: Path, write_jsonl: Write, tokenizer: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(log, "propagate", True)
    documents = [d for d in make_documents(40) if d["lang"] != "ja"]
    here = Setting(tmp_path / "corpus", write_jsonl, tokenizer, documents, 2, ("en", "fr", "ja"))
    assert "tokenize: no document in ja, of corpus.languages" in caplog.text
    by_lang = read_manifest(here.tokens, "tokenize").counts["by_lang"]
    assert by_lang.pop("ja") == {"documents": 0, "chars": 0, "tokens": 0}
    assert sum(entry["documents"] for entry in by_lang.values()) == len(documents)
    here.run(WordsSettings(), tmp_path / "words")
    assert "words: no document is in ja, of the task's languages" in caplog.text
    counts = read_manifest(tmp_path / "words", "words").counts
    assert counts["languages_without_documents"] == ["ja"]
    rows = [row for row in read(tmp_path / "words", "words") if row["lang"] == "ja"]
    assert {row["doc_freq_own_lang"] for row in rows} == {0}
    assert len({row["doc_freq"] for row in rows}) > 1  # they stand in documents of others


def test_a_corpus_that_changed_is_refused(
    tmp_path: Path, setting: Setting, write_jsonl: Write
) -> None:
    path = Path(str(setting.corpus.path)) / "1.jsonl.gz"
    documents = make_documents(120)[40:80]
    documents[3]["text"] = documents[3]["text"][:-1] + "~"  # as long as before
    write_jsonl(path, documents)
    with pytest.raises(MismatchError, match="changed since"):
        setting.run(WordsSettings(), tmp_path / "a")
    write_jsonl(path, documents[1:])
    with pytest.raises(MismatchError, match="is not there"):
        setting.run(WordsSettings(), tmp_path / "b")
    write_jsonl(path.with_name("9.jsonl.gz"), documents)
    with pytest.raises(MismatchError, match="4 files"):
        setting.run(WordsSettings(), tmp_path / "c")
