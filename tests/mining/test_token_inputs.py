"""Documents that are token ids already: our own mixes, datatrove's files, OLMo-like memmaps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mining import token_inputs
from mining.common.errors import InputError, SettingsError
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, read_shard, write_table
from mining.common.stage import begin
from mining.common.token_file import write_token_file
from mining.common.tokenizer import load_tokenizer
from mining.count import run_count
from mining.documents import Rejected
from mining.engine_settings import EngineSettings
from mining.inputs import open_readers
from mining.mix import run_mix
from mining.mix_settings import MixSettings
from mining.score import run_score
from mining.settings import (
    CorpusSettings,
    CountSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
)
from mining.token_settings import TokenFilesSettings
from mining.tokenize import run_tokenize
from mining.train_tokenizer import run_tokenizer
from mining.words import run_words
from tests.conftest import folder_bytes

Write = Callable[[Path, Iterable[dict[str, Any]]], Path]
ONE = EngineSettings(workers=1)
Shard = list[tuple[str, str, list[int]]]
SENTENCES = {
    "en": "The small cat sat on the mat number {} and looked out of the window at the rain.",
    "fr": "Le petit chat est assis sur le tapis numéro {} et regarde la pluie par la fenêtre.",
    "ja": "小さな猫が{}番のマットの上に座って、窓から雨を眺めていました。",
}


def read_tokens(folder: Path) -> Shard:
    """Every document of a `tokenize` folder in order: id, language, tokens."""
    return [
        (batch.id[d], batch.lang[d], batch.tokens[batch.offsets[d] : batch.offsets[d + 1]].tolist())
        for shard in list_shards(folder / "tokens")
        for batch in read_shard(shard)
        for d in range(len(batch))
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in three languages through `tokenizer`, `tokenize`, `score` and `mix`."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "docs").mkdir()
    languages = list(SENTENCES)
    with (root / "docs" / "a.jsonl").open("w") as handle:
        for k in range(120):
            lang = languages[k % 3]
            text = SENTENCES[lang].format(k)
            handle.write(json.dumps({"id": f"d{k}", "text": text, "lang": lang}) + "\n")
    corpus = CorpusSettings(path=str(root / "docs"))
    trained = TokenizerSettings(model_type="bpe", vocab_size=420, sample_chars=20_000)
    run_tokenizer(trained, corpus, root / "tokenizer", seed=1)
    run_tokenize(TokenizeSettings(words=True), corpus, root / "tokenize", root / "tokenizer", ONE)
    run = begin("pivots", root / "pivots", {}, {})
    assert run is not None
    rows = {"id": pa.array([7], pa.uint32()), "is_pivot": [True]}
    write_table(root / "pivots" / "pivots.parquet", pa.table(rows))
    run.finish({"unit": "token", "fingerprint": load_tokenizer(root / "tokenizer").fingerprint})
    run_score(ScoreSettings(), root / "score", root / "tokenize", root / "pivots", ONE)
    mix = MixSettings(
        arms=("original",), budget_tokens=2500, max_pool_share=1.0, validation_share=0.1
    )
    run_mix(
        mix, root / "mix", corpus, root / "tokenize", root / "score", root / "tokenizer", ONE, 1
    )
    return root


def arm_corpus(root: Path, layout: Any) -> CorpusSettings:
    return CorpusSettings(
        path=str(root / "mix" / "original"), token_files=TokenFilesSettings(layout=layout)
    )


@pytest.mark.parametrize("layout", ["ds", "memmap"])
def test_a_mix_comes_back_as_the_token_shards_it_was_made_of(
    tmp_path: Path, mixed: Path, layout: str
) -> None:
    out = tmp_path / "tokenize"
    corpus = arm_corpus(mixed, layout)
    run_tokenize(TokenizeSettings(words=True), corpus, out, mixed / "tokenizer", ONE)
    first = {i: (lang, tokens) for i, lang, tokens in read_tokens(mixed / "tokenize")}
    chosen = pq.read_table(mixed / "mix" / "original" / "documents.parquet").to_pylist()
    found = read_tokens(out)
    assert [i for i, _, _ in found] == [f"tokens.ds/{row}" for row in range(len(chosen))]
    whole = 0
    for row, (_, lang, tokens) in zip(chosen, found, strict=True):
        expected_lang, expected = first[row["id"]]
        assert tokens == expected[: row["n_tokens"] - 1]
        if tokens == expected:  # the last document is cut, and may be too short to tell
            whole += 1
            assert lang == expected_lang
    assert whole >= len(chosen) - 1
    tokenizer = load_tokenizer(mixed / "tokenizer")
    n_chars = [n for s in list_shards(out / "tokens") for b in read_shard(s) for n in b.n_chars]
    assert n_chars == [len(tokenizer.decode(tokens)) for _, _, tokens in found]
    counts = read_manifest(out, "tokenize").counts
    assert counts["languages_identified"] == counts["records"] == counts["documents"]
    languages = pq.read_table(out / "languages").to_pylist()
    assert [(r["id"], r["lang"]) for r in languages] == [(i, lang) for i, lang, _ in found]
    assert all(0.3 < r["confidence"] <= 1.001 for r in languages[:-1])
    assert len(read_manifest(out).inputs["documents"]["files"]) == (2 if layout == "ds" else 1)


def test_all_later_stages_run_on_token_files(tmp_path: Path, mixed: Path) -> None:
    """Counts and words of the token files are those of the same documents as text."""
    chosen = pq.read_table(mixed / "mix" / "original" / "documents.parquet")["id"].to_pylist()[:-1]
    lines = (mixed / "docs" / "a.jsonl").read_text().splitlines()
    texts = {record["id"]: record for record in map(json.loads, lines)}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_text("".join(json.dumps(texts[i]) + "\n" for i in chosen))
    loaded = load_tokenizer(mixed / "tokenizer")
    tokens = loaded.encode_batch([texts[i]["text"] for i in chosen])
    (tmp_path / "ds").mkdir()
    write_token_file(tmp_path / "ds" / "a.ds", tokens, loaded.vocab_size, loaded.eos_id)
    task = Path(__file__).parents[2] / "eval" / "tasks" / "words.yaml"
    corpora = {
        "docs": CorpusSettings(path=str(tmp_path / "docs")),
        "ds": CorpusSettings(
            path=str(tmp_path / "ds"), token_files=TokenFilesSettings(layout="ds")
        ),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, corpus in corpora.items():
        shards, tokenizer = tmp_path / f"tokenize-{name}", mixed / "tokenizer"
        run_tokenize(TokenizeSettings(words=True), corpus, shards, tokenizer, ONE)
        count, words = tmp_path / f"count-{name}", tmp_path / f"words-{name}"
        for unit in ("token", "word"):
            run_count(CountSettings(unit=unit), count / unit, shards, tokenizer, ONE)  # type: ignore[arg-type]
        run_words(WordsSettings(), words, corpus, shards, tokenizer, task, ONE, 1)
        found[name] = {
            path.relative_to(folder).as_posix(): pq.read_table(path)
            for folder in (count, words)
            for path in sorted(folder.rglob("*.parquet"))
            # Those depend on samples, and samples on ids.
            if path.name not in ("lifts.parquet", "pair_pivots.parquet")
        }
    assert len(found["ds"]) == 6
    assert found["docs"].keys() == found["ds"].keys()
    for name, table in found["docs"].items():
        assert table.equals(found["ds"][name]), name


def olmo_files(folder: Path, vocab_size: int) -> tuple[list[npt.NDArray[np.uint16]], int]:
    """Three raw files whose lengths are no multiples of the sequence length, in two folders."""
    rng = np.random.default_rng(3)
    arrays = []
    for name, n in (("web/part-1.npy", 8 * 5 + 3), ("web/part-0.npy", 7), ("books/b.npy", 8 * 4)):
        array = rng.integers(0, vocab_size, n).astype("<u2")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        array.tofile(folder / name)
        arrays.append(array)
    return arrays, 8


def write_order(folder: Path, numbers: Iterable[int]) -> str:
    path = folder / "global_indices.npy"
    np.array(list(numbers), dtype="<u4").tofile(path)
    return str(path)


@pytest.mark.parametrize("listing", ["txt", "yaml"])
@pytest.mark.parametrize("remote", [False, True])
def test_training_steps_give_the_sequences_that_the_model_saw(
    tmp_path: Path,
    word_tokenizer: Callable[[Iterable[str]], Path],
    monkeypatch: pytest.MonkeyPatch,
    listing: str,
    remote: bool,
) -> None:
    monkeypatch.setattr(token_inputs, "BATCH_SEQUENCES", 2)
    monkeypatch.setattr("mining.inputs.SEQUENCES_PER_SHARD", 3)
    tokenizer = word_tokenizer([f"w{k}" for k in range(30)])
    arrays, length = olmo_files(tmp_path / "olmo", 32)
    names = ["web/part-1.npy", "web/part-0.npy", "books/b.npy"]
    # Written anew from the definition: each file's whole sequences, one file after another.
    sequences = [a[k * length : (k + 1) * length] for a in arrays for k in range(len(a) // length)]
    assert len(sequences) == 9
    permutation = np.random.default_rng(5).permutation(9).tolist()
    order = write_order(tmp_path, permutation)
    if listing == "txt":
        files = tmp_path / "files.txt"
        files.write_text("\n".join(names) + "\n")
    else:
        files = tmp_path / "train.yaml"
        files.write_text("data:\n  paths:\n" + "".join(f"    - {name}\n" for name in names))
    path = str(tmp_path / "olmo")
    memory = fsspec.filesystem("memory")
    if remote:
        memory.put(path, "/pivots-olmo", recursive=True)
        path = "memory://pivots-olmo"
    corpus = CorpusSettings(
        path=path,
        deduplicate=False,
        token_files=TokenFilesSettings(
            layout="sequences",
            files=str(files),
            sequence_length=length,
            order=order,
            first_step=1,
            steps=3,
            step_sequences=2,
        ),
    )
    out = tmp_path / "tokenize"
    try:
        run_tokenize(TokenizeSettings(), corpus, out, tokenizer, ONE)
    finally:
        if remote:
            memory.rm("/pivots-olmo", recursive=True)
    seen = permutation[2:8]
    assert [(i, t) for i, _, t in read_tokens(out)] == [
        (str(s), sequences[s].tolist()) for s in seen
    ]
    assert len(list_shards(out / "tokens")) == 2
    manifest = read_manifest(out, "tokenize")
    assert manifest.counts["records"] == manifest.counts["documents"] == 6
    assert set(manifest.counts["by_source"]) <= {"web/part-1", "books/b"}
    recorded = manifest.inputs["documents"]["files"]
    assert recorded["web/part-0.npy"] == {"bytes": 14}  # too short for a sequence: not read
    assert len(recorded["token_files.order"]["sha256"]) == 64
    # Recorded by what was read: another place, another time, the same manifest.
    assert "modified" not in str(recorded)


def test_sequences_without_an_order_are_taken_as_they_lie(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    tokenizer = word_tokenizer([f"w{k}" for k in range(30)])
    arrays, length = olmo_files(tmp_path / "olmo", 32)
    corpus = CorpusSettings(
        path=str(tmp_path / "olmo"),
        deduplicate=False,
        token_files=TokenFilesSettings(layout="sequences", sequence_length=length),
    )
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "one", tokenizer, ONE)
    by_name = [arrays[2], arrays[1], arrays[0]]
    expected = [a[k * length : (k + 1) * length] for a in by_name for k in range(len(a) // length)]
    assert [t for _, _, t in read_tokens(tmp_path / "one")] == [s.tolist() for s in expected]
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "two", tokenizer, EngineSettings(workers=2))
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_wrong_orders_and_lists_are_clear_errors(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    tokenizer = word_tokenizer([f"w{k}" for k in range(30)])
    olmo_files(tmp_path / "olmo", 32)

    def read(**given: Any) -> None:
        values = {"layout": "sequences", "sequence_length": 8, "step_sequences": 2, **given}
        token_files = TokenFilesSettings(**values)
        corpus = CorpusSettings(path=str(tmp_path / "olmo"), token_files=token_files)
        for reader in open_readers(corpus, tokenizer):
            list(reader)

    with pytest.raises(InputError, match=r"sequence 9, but the 3 token files hold 9"):
        read(order=write_order(tmp_path, [1, 9]))
    with pytest.raises(SettingsError, match="positions 4 to 12, but the order has 9"):
        read(first_step=2, steps=4)
    np.save(tmp_path / "saved.npy", np.arange(4, dtype=np.uint32))
    with pytest.raises(InputError, match="NumPy header"):
        read(order=str(tmp_path / "saved.npy"))
    with pytest.raises(InputError, match=r"missing\.txt"):
        read(files=str(tmp_path / "missing.txt"))
    (tmp_path / "list.txt").write_text("web/part-9.npy\n")
    with pytest.raises(InputError, match=r"part-9\.npy: no such token file"):
        read(files=str(tmp_path / "list.txt"))
    (tmp_path / "bad.yaml").write_text("data: []\n")
    with pytest.raises(InputError, match=r"data\.paths"):
        read(files=str(tmp_path / "bad.yaml"))
    with pytest.raises(SettingsError, match="order"):
        TokenFilesSettings(layout="ds", order="x")
    token_files = TokenFilesSettings(layout="memmap")
    corpus = CorpusSettings(path=str(tmp_path / "olmo"), token_files=token_files)
    with pytest.raises(SettingsError, match=r"tokenizer\.path"):
        run_tokenizer(TokenizerSettings(), corpus, tmp_path / "t", seed=1)


def test_bad_documents_of_token_files_go_to_quarantine(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    tokenizer = word_tokenizer([f"w{k}" for k in range(8)])  # 10 ids, end-of-text is 1
    ids = [2, 3, 1, 4, 77, 1, 1, 5, 6, 1, 2, 3, 1, 7]
    folder = tmp_path / "raw"
    folder.mkdir()
    np.array(ids, dtype="<u2").tofile(folder / "a.bin")
    with (folder / "a.bin").open("ab") as handle:
        handle.write(b"\x03")
    np.save(folder / "b.npy", np.array(ids))
    corpus = CorpusSettings(path=str(folder), token_files=TokenFilesSettings(layout="memmap"))
    out = tmp_path / "out"
    run_tokenize(TokenizeSettings(), corpus, out, tokenizer, ONE)
    assert [(i, t) for i, _, t in read_tokens(out)] == [
        ("a.bin/0", [2, 3]),
        ("a.bin/3", [5, 6]),
        ("a.bin/5", [7]),
    ]
    counts = read_manifest(out, "tokenize").counts
    assert counts["records"] == 8
    assert counts["dropped"] == {"too short": 1, "duplicate text": 1}
    bad = [
        json.loads(line)
        for path in sorted((out / "quarantine").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [(r["file"], r["line"], r["reason"]) for r in bad] == [
        ("a.bin", 2, "id outside the vocabulary"),
        ("a.bin", 7, "truncated file"),
        ("b.npy", 1, "not a raw token file"),
    ]


@pytest.mark.parametrize(
    ("change", "reason", "n_good"),
    [(-1, "truncated file", 1), (+1, "damaged file", 2), (0, None, 2)],
)
def test_a_ds_file_that_its_index_does_not_fit(
    tmp_path: Path,
    word_tokenizer: Callable[[Iterable[str]], Path],
    change: int,
    reason: str | None,
    n_good: int,
) -> None:
    tokenizer = word_tokenizer([f"w{k}" for k in range(8)])
    np.array([2, 3, 1, 4, 5, 1] + [9] * change, dtype="<u2").tofile(tmp_path / "a.ds")
    if change < 0:
        (tmp_path / "a.ds").write_bytes((tmp_path / "a.ds").read_bytes()[:-2])
    np.array([3, 6], dtype="<u8").tofile(tmp_path / "a.ds.index")
    corpus = CorpusSettings(
        path=str(tmp_path / "a.ds"), token_files=TokenFilesSettings(layout="ds")
    )
    items = list(open_readers(corpus, tokenizer)[0])
    bad = [item.reason for item in items if isinstance(item, Rejected)]
    assert bad == ([reason] if reason else [])
    assert len(items) - len(bad) == n_good
    (tmp_path / "a.ds.index").unlink()
    with pytest.raises(InputError, match="memmap"):
        list(open_readers(corpus, tokenizer)[0])


@pytest.mark.shared_data
def test_real_documents_as_token_files(tmp_path: Path, shared: Path) -> None:
    """Tokens come back to the id, and most languages from the spelled text."""
    (tmp_path / "docs").mkdir()
    for lang in ("en", "fr", "ja", "zh"):
        path = shared / "corpus" / lang / "debian-handbook-00000.jsonl.gz"
        (tmp_path / "docs" / f"{lang}.jsonl.gz").write_bytes(path.read_bytes())
    text = CorpusSettings(path=str(tmp_path / "docs"))
    trained = TokenizerSettings(model_type="bpe", vocab_size=4000, sample_chars=200_000)
    run_tokenizer(trained, text, tmp_path / "tokenizer", seed=1)
    run_tokenize(TokenizeSettings(), text, tmp_path / "text", tmp_path / "tokenizer", ONE)
    first = read_tokens(tmp_path / "text")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "raw").mkdir()
    tokens = [np.array(t, dtype=np.uint32) for _, _, t in first]
    write_token_file(tmp_path / "raw" / "a.ds", tokens, loaded.vocab_size, loaded.eos_id)
    raw = CorpusSettings(
        path=str(tmp_path / "raw"), token_files=TokenFilesSettings(layout="memmap")
    )
    run_tokenize(TokenizeSettings(), raw, tmp_path / "again", tmp_path / "tokenizer", ONE)
    again = read_tokens(tmp_path / "again")
    assert [t for _, _, t in again] == [t for _, _, t in first]
    n_chars = [
        [n for s in list_shards(tmp_path / f / "tokens") for b in read_shard(s) for n in b.n_chars]
        for f in ("text", "again")
    ]
    assert n_chars[0] == n_chars[1]
    same = sum(a[1] == b[1] for a, b in zip(first, again, strict=True))
    assert same >= 0.9 * len(first) > 100


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(0, 4), max_size=40),
    read_bytes=st.integers(1, 9),
    limit=st.integers(1, 30),
)
def test_memmaps_split_like_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, ids: list[int], read_bytes: int, limit: int
) -> None:
    """Whatever the borders of the pieces read; records over the limit are told by length alone."""
    import io

    from mining.lines import LongRecord
    from mining.remote import HashingStream

    monkeypatch.setattr(token_inputs, "READ_BYTES", read_bytes)
    stream = HashingStream(io.BytesIO(np.array(ids, dtype="<u2").tobytes()))
    found = list(token_inputs._split_at(stream, np.dtype("<u2"), 1, limit))
    expected: list[list[int]] = [[]]
    for i in ids:
        expected[-1].append(i)
        if i == 1:
            expected.append([])
    if not expected[-1]:
        expected.pop()
    assert len(found) == len(expected)
    for item, document in zip(found, expected, strict=True):
        if isinstance(item, LongRecord):
            assert item.n_bytes == 2 * len(document) > limit
        else:
            assert isinstance(item, bytes)
            assert np.frombuffer(item, "<u2").tolist() == document
