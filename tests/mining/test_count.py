"""The `count` stage on small documents: against scikit-learn, and however the work is divided."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mining import count, pair_bands
from mining.common.errors import InputError, MismatchError
from mining.common.manifest import read_manifest
from mining.common.shards import SCHEMA, ShardInfo, write_shard, write_table
from mining.common.stage import begin
from mining.common.tokenizer import load_tokenizer
from mining.count import choose_items, run_count
from mining.engine_settings import EngineSettings
from mining.kernels import cooccurrence
from mining.settings import (
    CorpusSettings,
    CountSettings,
    TokenizerSettings,
    TokenizeSettings,
)
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer

ONE = EngineSettings(workers=1)
Document = tuple[str, str, list[int]]  # language, source, token ids


def make_tokenizer(folder: Path, n_words: int) -> Path:
    vocabulary = {"<unk>": 0, "</s>": 1, **{f"w{k}": k + 2 for k in range(n_words)}}
    engine = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    return folder


def write_documents(path: Path, documents: Sequence[Document], info: ShardInfo) -> None:
    table = pa.table(
        {
            "id": [f"{path.stem}/{k}" for k in range(len(documents))],
            "lang": pa.array([lang for lang, _, _ in documents], pa.string()),
            "source": pa.array([source for _, source, _ in documents], pa.string()),
            "group": pa.array([None] * len(documents), pa.string()),
            "n_chars": pa.array([len(tokens) for _, _, tokens in documents], pa.int64()),
            "tokens": pa.array([tokens for _, _, tokens in documents], pa.list_(pa.uint32())),
        },
        schema=SCHEMA,
    )
    write_shard(path, table, info)


def make_shards(
    folder: Path, documents: Sequence[Document], tokenizer: Path, n_shards: int, unit: str = "token"
) -> Path:
    """A finished `tokenize` folder; the documents are dealt out to the shards in turn."""
    run = begin("tokenize", folder, {"n_shards": n_shards}, {})
    assert run is not None
    fingerprint = load_tokenizer(tokenizer).fingerprint if unit == "token" else "f" * 64
    names = "tokens" if unit == "token" else "words"
    for k in range(n_shards):
        path = folder / names / f"{k:05d}.parquet"
        write_documents(path, documents[k::n_shards], ShardInfo(unit, fingerprint))
    run.finish({})
    return folder


def random_documents(n_documents: int, n_ids: int, power: float = 1.0) -> list[Document]:
    rng = np.random.default_rng(0)
    weights = np.arange(1, n_ids + 1) ** -power
    documents = []
    for k in range(n_documents):
        size = int(rng.integers(0, 40))
        tokens = rng.choice(n_ids, size=size, p=weights / weights.sum()).tolist()
        documents.append((("en", "fr", "zh")[k % 3], ("web", "book")[k % 2], tokens))
    return documents


def output_bytes(folder: Path) -> dict[str, bytes]:
    names = [*read_manifest(folder).outputs, "manifest.json"]
    return {name: (folder / name).read_bytes() for name in names}


def read_pairs(folder: Path) -> dict[tuple[int, int], int]:
    table = pa.concat_tables([pq.read_table(p) for p in sorted((folder / "pairs").glob("*"))])
    i, j, n = (table.column(name).to_pylist() for name in ("i", "j", "n"))
    assert all(a < b for a, b in zip(i, j, strict=True))
    assert list(zip(i, j, strict=True)) == sorted(zip(i, j, strict=True))
    return dict(zip(zip(i, j, strict=True), n, strict=True))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return make_tokenizer(tmp_path / "tokenizer", 60)


@pytest.mark.parametrize(("top_items", "rows"), [(2, 1), (25, 7), (60, 1), (1000, 512)])
def test_counts_equal_those_of_scikit_learn(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, top_items: int, rows: int
) -> None:
    monkeypatch.setattr(cooccurrence, "band_rows", lambda n_items: rows)
    monkeypatch.setattr(pair_bands, "block_documents", lambda n_items: 7)  # several blocks a task
    documents = random_documents(90, 62)
    tokens = make_shards(tmp_path / "tokenize", documents, tokenizer, 3)
    run_count(CountSettings(top_items=top_items), tmp_path / "out", tokens, tokenizer, ONE)

    kept = [" ".join(str(t) for t in d if t > 1) for _, _, d in documents]  # 0 and 1 are special
    vectorizer = CountVectorizer(binary=True, token_pattern=r"\d+", dtype=np.int64)
    x = vectorizer.fit_transform(kept)
    ids = np.array([int(name) for name in vectorizer.get_feature_names_out()])
    doc_freq = np.asarray(x.sum(axis=0)).ravel()
    order = np.lexsort((ids, -doc_freq))[:top_items]
    products = (x.T @ x).toarray()[np.ix_(order, order)]

    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pydict()
    assert items["item"] == list(range(len(order)))
    assert items["id"] == ids[order].tolist()
    assert items["tokens"] == [[t] for t in items["id"]]
    assert items["text"] == [f"w{t - 2}" for t in items["id"]]
    assert items["doc_freq"] == doc_freq[order].tolist()
    by_language = [items[f"doc_freq_{lang}"] for lang in ("en", "fr", "zh")]
    assert np.sum(by_language, axis=0).tolist() == items["doc_freq"]
    for k, item in enumerate(items["id"]):
        french = sum(item in d for lang, _, d in documents if lang == "fr")
        assert items["doc_freq_fr"][k] == french
    expected = {
        (i, j): int(products[i, j])
        for i in range(len(order))
        for j in range(i + 1, len(order))
        if products[i, j]
    }
    assert read_pairs(tmp_path / "out") == expected
    counts = read_manifest(tmp_path / "out", "count").counts
    assert counts["documents"] == 90
    assert counts["documents_by_language"] == {"en": 30, "fr": 30, "zh": 30}
    assert counts["languages"] == ["en", "fr", "zh"]
    assert (counts["items"], counts["pairs"]) == (len(order), len(expected))


def test_sources_are_the_only_documents_that_count(tmp_path: Path, tokenizer: Path) -> None:
    documents = random_documents(60, 62)
    books = [d for d in documents if d[1] == "book"]
    for name, settings, given in (
        ("all", CountSettings(top_items=20), books),
        ("chosen", CountSettings(top_items=20, sources=("book", "none")), documents),
    ):
        tokens = make_shards(tmp_path / name / "tokenize", given, tokenizer, 2)
        run_count(settings, tmp_path / name / "count", tokens, tokenizer, ONE)
    items = [pq.read_table(tmp_path / n / "count" / "items.parquet") for n in ("all", "chosen")]
    assert items[0].equals(items[1])
    assert read_pairs(tmp_path / "all" / "count") == read_pairs(tmp_path / "chosen" / "count")


@pytest.mark.slow
def test_same_bytes_however_the_work_is_divided(tmp_path: Path) -> None:
    """Map tasks, workers (processes of their own) and shards change no byte of the tables."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 4000)
    documents = random_documents(600, 4000, 0.2)  # enough different items for two bands
    found: dict[str, dict[str, bytes]] = {}
    for n_shards in (3, 4):
        tokens = make_shards(tmp_path / f"tokenize-{n_shards}", documents, tokenizer, n_shards)
        for n_tasks, workers in ((1, 1), (2, 1), (3, 1), (2, 2)):
            if workers == 2 and n_shards == 4:
                continue
            out = tmp_path / f"count-{n_shards}-{n_tasks}-{workers}"
            settings = CountSettings(top_items=3500, map_tasks=n_tasks)
            run_count(settings, out, tokens, tokenizer, EngineSettings(workers=workers))
            found[out.name] = output_bytes(out)
    first = found["count-3-1-1"]
    assert len([name for name in first if name.startswith("pairs/")]) >= 2
    for name, files in found.items():
        for path in files:
            same_inputs = name.startswith("count-3") or path != "manifest.json"
            assert not same_inputs or files[path] == first[path], (name, path)
        assert files.keys() == first.keys()


def test_a_killed_run_is_continued_to_the_same_bytes(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooccurrence, "band_rows", lambda n_items: 10)
    tokens = make_shards(tmp_path / "tokenize", random_documents(80, 62), tokenizer, 4)
    settings = CountSettings(top_items=40, map_tasks=3)
    run_count(settings, tmp_path / "whole", tokens, tokenizer, ONE)
    out = tmp_path / "killed"
    reached: list[int] = []

    def dies(rank: int, *args: object, **names: object) -> None:
        reached.append(rank)
        if len(reached) == 2:
            # A half-written file, as SIGKILL leaves it.
            (out / "pairs").mkdir(exist_ok=True)
            (out / "pairs" / f".00000.parquet.{os.getpid()}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        real(rank, *args, **names)

    for step in ("_count_frequencies", "index_documents", "write_bands"):
        real = getattr(count, step)
        reached.clear()
        with monkeypatch.context() as patch:
            patch.setattr(count, step, dies)
            with pytest.raises(KeyboardInterrupt):
                run_count(settings, out, tokens, tokenizer, ONE)
        assert not (out / "manifest.json").exists()
        assert any((out / ".work").rglob("completions/*"))
    run_count(settings, out, tokens, tokenizer, ONE)
    assert output_bytes(out) == output_bytes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["frequencies", "pairs"])
def test_sigkill_leaves_no_lock_and_no_worker(tmp_path: Path, step: str) -> None:
    """The real signal, to the main process alone, while its workers are at work."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 3000)
    tokens = make_shards(tmp_path / "tokenize", random_documents(800, 3000, 0.2), tokenizer, 8)
    settings = CountSettings(top_items=2000, map_tasks=8)
    out = tmp_path / "killed"
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from mining.count import run_count\n"
        "from mining.engine_settings import EngineSettings\n"
        "from mining.settings import CountSettings\n"
        "if __name__ == '__main__':\n"
        f"    paths = Path({str(out)!r}), Path({str(tokens)!r}), Path({str(tokenizer)!r})\n"
        "    engine = EngineSettings(workers=2)\n"
        "    run_count(CountSettings(top_items=2000, map_tasks=8), *paths, engine)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], cwd=Path(count.__file__).parents[1])
    limit = time.monotonic() + 120
    while not list((out / ".work").glob(f"{step}-8*/tasks/completions/*")):
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    run_count(settings, out, tokens, tokenizer, ONE)  # BusyError if a child kept the lock
    run_count(settings, tmp_path / "whole", tokens, tokenizer, ONE)
    assert output_bytes(out) == output_bytes(tmp_path / "whole")


def test_word_items(tmp_path: Path, tokenizer: Path) -> None:
    documents = [("en", "web", [0, 1, 2, 2]), ("fr", "web", [2, 1, 0]), ("fr", "web", [2])]
    tokens = make_shards(tmp_path / "tokenize", documents, tokenizer, 2, unit="word")
    vocabulary = pa.table(
        {
            "id": pa.array([1, 2], pa.uint32()),
            "word": ["w7", "?!"],
            "doc_freq": pa.array([2, 3], pa.uint64()),
        }
    )
    write_table(tokens / "words" / "vocabulary.parquet", vocabulary)
    out = tmp_path / "count"
    run_count(CountSettings(unit="word"), out, tokens, tokenizer, ONE)
    items = pq.read_table(out / "items.parquet").to_pydict()
    assert items["id"] == [2, 1]  # 0 stands for all rare words and is never an item
    assert items["text"] == ["?!", "w7"]
    assert items["tokens"] == [[0], [9]]
    assert items["has_letter"] == [False, True]
    assert read_pairs(out) == {(0, 1): 2}


def test_inputs_that_cannot_be_counted(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_shards(tmp_path / "tokenize", random_documents(10, 62), tokenizer, 1)
    other = make_tokenizer(tmp_path / "other", 61)
    with pytest.raises(MismatchError, match="tokenizer"):
        run_count(CountSettings(), tmp_path / "a", tokens, other, ONE)
    with pytest.raises(InputError, match="no document"):
        run_count(CountSettings(sources=("radio",)), tmp_path / "b", tokens, tokenizer, ONE)
    make_shards(tmp_path / "words", [("en", "web", [1])], tokenizer, 1, unit="word")
    with pytest.raises(InputError, match="no such file"):
        run_count(CountSettings(unit="word"), tmp_path / "c", tmp_path / "words", tokenizer, ONE)
    bad = make_shards(tmp_path / "bad", [("en", "web", [99])], tokenizer, 1)
    with pytest.raises(InputError, match="id 99"):
        run_count(CountSettings(), tmp_path / "d", bad, tokenizer, ONE)
    empty = make_shards(tmp_path / "empty", [], tokenizer, 1)
    with pytest.raises(InputError, match="no document"):
        run_count(CountSettings(), tmp_path / "e", empty, tokenizer, ONE)


@pytest.mark.shared_data
def test_real_documents_count_as_scikit_learn_counts_them(tmp_path: Path, shared: Path) -> None:
    """A sample of every file of the real corpus, through the real tokenizer and shards."""
    folder = tmp_path / "documents"
    folder.mkdir()
    texts = []
    for number, path in enumerate(sorted((shared / "corpus").rglob("*.jsonl.gz"))):
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            records = [json.loads(line) for line in itertools.islice(handle, 12)]
        for record in records:
            record["text"] = record["text"][:3000]
        texts += [record["text"] for record in records]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{number:02d}.jsonl").write_text(lines)
    corpus = CorpusSettings(path=str(folder))
    trained = TokenizerSettings(model_type="bpe", vocab_size=4000, sample_chars=200_000)
    run_tokenizer(trained, corpus, tmp_path / "tokenizer", seed=1)
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "tokenize", tmp_path / "tokenizer", ONE)
    out = tmp_path / "count"
    settings = CountSettings(top_items=1500, map_tasks=3)
    run_count(settings, out, tmp_path / "tokenize", tmp_path / "tokenizer", ONE)

    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    encoded = [t.tolist() for t in tokenizer.encode_batch(list(dict.fromkeys(texts)))]
    vectorizer = CountVectorizer(analyzer=lambda tokens: tokens, binary=True, dtype=np.int64)
    x = vectorizer.fit_transform(encoded)
    ids = vectorizer.get_feature_names_out().astype(np.int64)
    doc_freq = np.asarray(x.sum(axis=0)).ravel()
    ordinary = ~np.isin(ids, sorted(tokenizer.special_ids))
    x, ids, doc_freq = x[:, ordinary], ids[ordinary], doc_freq[ordinary]
    order = np.lexsort((ids, -doc_freq))[:1500]
    items = pq.read_table(out / "items.parquet")
    assert items["id"].to_pylist() == ids[order].tolist()
    assert items["doc_freq"].to_pylist() == doc_freq[order].tolist()
    products = np.triu((x[:, order].T @ x[:, order]).toarray(), k=1)
    i, j = np.nonzero(products)
    table = pa.concat_tables([pq.read_table(p) for p in sorted((out / "pairs").glob("*"))])
    assert np.array_equal(table["i"].to_numpy(), i)
    assert np.array_equal(table["j"].to_numpy(), j)
    assert np.array_equal(table["n"].to_numpy(), products[i, j])
    assert len(i) > 100_000


def test_choose_items_breaks_ties_by_id() -> None:
    doc_freq = np.array([9, 3, 5, 5, 0, 3], dtype=np.uint64)
    excluded = np.array([True, False, False, False, False, False])
    assert choose_items(doc_freq, excluded, 3).tolist() == [2, 3, 1]
    assert choose_items(doc_freq, excluded, 10).tolist() == [2, 3, 1, 5]
