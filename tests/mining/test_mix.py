from __future__ import annotations

import gzip
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.dataset import DatatroveFileDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.common.errors import InputError, MismatchError
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, write_table
from mining.common.stage import begin
from mining.common.token_file import open_token_file
from mining.common.tokenizer import load_tokenizer
from mining.engine_settings import EngineSettings
from mining.mix import run_mix
from mining.mix_documents import read_documents
from mining.mix_export import document_rows
from mining.mix_settings import MixSettings
from mining.score import run_score
from mining.settings import CorpusSettings, ScoreSettings, TokenizeSettings
from mining.steps import PivotFilter, RecordReader
from mining.tokenize import run_tokenize
from tests.conftest import folder_bytes

ONE = EngineSettings(workers=1)


WORDS = [f"w{i}" for i in range(30)]


PIVOTS = {"w0", "w1", "w2"}


def make_pivots(folder: Path, tokenizer: Path) -> Path:
    """A finished `pivots` folder in which PIVOTS are the pivots."""
    loaded = load_tokenizer(tokenizer)
    ids = [loaded.encode(word)[0] for word in WORDS]
    run = begin("pivots", folder, {}, {})
    assert run is not None
    rows = {"id": pa.array(ids, pa.uint32()), "is_pivot": [w in PIVOTS for w in WORDS]}
    write_table(folder / "pivots.parquet", pa.table(rows))
    run.finish({"unit": "token", "fingerprint": loaded.fingerprint})
    return folder


@pytest.fixture
def stages(
    tmp_path: Path,
    write_jsonl: Callable[[Path, Iterable[dict[str, Any]]], Path],
    word_tokenizer: Callable[[Iterable[str]], Path],
) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    records = [
        {"id": f"d{i}", "text": " ".join(rng.choice(WORDS, rng.integers(5, 30))),
         "lang": "en" if i % 2 else "fr", "source": "s"}
        for i in range(300)
    ]  # fmt: skip
    for k in range(3):
        write_jsonl(tmp_path / "docs" / f"{k}.jsonl.gz", records[k::3])
    tokenizer = word_tokenizer(WORDS)
    corpus = CorpusSettings(path=str(tmp_path / "docs"))
    run_tokenize(TokenizeSettings(), corpus, tmp_path / "tokenize", tokenizer, ONE)
    pivots = make_pivots(tmp_path / "pivots", tokenizer)
    return {
        "tokenizer": tokenizer,
        "tokens": tmp_path / "tokenize",
        "pivots": pivots,
        "docs": tmp_path / "docs",
    }


def test_score_and_mix_from_shards_to_token_files(tmp_path: Path, stages: dict[str, Path]) -> None:
    tokens, tokenizer = stages["tokens"], stages["tokenizer"]
    score = tmp_path / "score"
    run_score(ScoreSettings(), score, tokens, stages["pivots"], ONE)
    texts = {
        record["id"]: record["text"].split()
        for path in sorted(stages["docs"].glob("*"))
        for record in map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    }
    rows = pq.read_table(score / "scores").to_pylist()
    assert len(rows) == 300
    for row in rows:
        words = texts[row["id"]]
        assert row["n_tokens"] == len(words)
        assert row["n_pivots"] == sum(word in PIVOTS for word in words)
        assert row["proportion"] == row["n_pivots"] / row["n_tokens"]
    # Scores of words do not say how many tokens a document has: the shards do.
    shards = list_shards(tokens / "tokens")
    lengths = [read_documents(shards, score, unit).n_tokens.tolist() for unit in ("token", "word")]
    assert lengths[0] == lengths[1] == [row["n_tokens"] for row in rows]
    attributes = [
        json.loads(line)
        for path in sorted((score / "attributes").glob("*.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    assert {a["id"]: a["attributes"]["pivot_proportion"][0][2] for a in attributes} == {
        row["id"]: row["proportion"] for row in rows
    }

    settings = MixSettings(budget_tokens=800, min_document_tokens=1, validation_share=0.1)
    corpus = CorpusSettings(path=str(stages["docs"]))
    for name in ("mix", "mix2"):
        run_mix(settings, tmp_path / name, corpus, tokens, score, tokenizer, ONE, seed=3)
    assert folder_bytes(tmp_path / "mix") == folder_bytes(tmp_path / "mix2")
    loaded = load_tokenizer(tmp_path / "mix" / "tokenizer")
    for arm in settings.arms:
        ids, ends = open_token_file(tmp_path / "mix" / arm / "tokens.ds", loaded.vocab_size)
        assert len(ids) == 800
        chosen = pq.read_table(tmp_path / "mix" / arm / "documents.parquet").to_pylist()
        start = 0
        for row, end in zip(chosen, ends.tolist(), strict=True):
            words = [loaded.piece(int(i)) for i in ids[start : end - 1]]
            assert words == texts[row["id"]][: len(words)]
            assert ids[end - 1] == loaded.eos_id
            assert end - start == row["n_tokens"]
            start = end
    counts = read_manifest(tmp_path / "mix", "mix").counts
    assert counts["arms"]["pivot"]["languages"]["fr"]["tokens"] == 400
    assert counts["overlap"]["pivot"]["pivot"] == 1.0


def test_scores_of_another_tokenizer_are_refused(tmp_path: Path, stages: dict[str, Path]) -> None:
    run = begin("pivots", tmp_path / "p", {}, {})
    assert run is not None
    run.finish({"unit": "token", "fingerprint": "other"})
    with pytest.raises(MismatchError, match="other"):
        run_score(ScoreSettings(), tmp_path / "s", stages["tokens"], tmp_path / "p", ONE)


def test_datatrove_users_can_filter_their_own_pipeline(
    tmp_path: Path, stages: dict[str, Path]
) -> None:
    bad = stages["docs"] / "zz.jsonl"
    bad.write_bytes(b'{"id": "x"}\n')
    LocalPipelineExecutor(
        [
            RecordReader(str(stages["docs"]), quarantine=str(tmp_path / "bad")),
            PivotFilter(str(stages["pivots"]), str(stages["tokenizer"]), min_proportion=0.2),
            JsonlWriter(str(tmp_path / "rich"), compression=None),
        ],
        tasks=2,
        workers=1,
        logging_dir=str(tmp_path / "logs"),
    ).run()
    kept = [
        json.loads(line)
        for path in (tmp_path / "rich").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert 0 < len(kept) < 300
    for row in kept:
        words = row["text"].split()
        share = sum(word in PIVOTS for word in words) / len(words)
        assert share >= 0.2
        assert row["metadata"]["pivot_proportion"] == pytest.approx(share)
    lines = (tmp_path / "bad" / "zz.jsonl.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["no text"]


@settings(max_examples=25)
@given(n=st.integers(1, 60), group=st.integers(1, 20), data=st.data())
def test_rows_of_an_arm_are_read_from_their_row_groups(n: int, group: int, data: Any) -> None:
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first + 1, n))
    columns = {name: [f"{name}{i}" for i in range(n)] for name in ("id", "lang", "source")}
    numbers = {"n_tokens": range(n), "proportion": [i / n for i in range(n)], "other": range(n)}
    table = pa.table({**columns, **{name: list(values) for name, values in numbers.items()}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.parquet"
        pq.write_table(table, path, row_group_size=group)
        found = document_rows(path, first, last)
    assert found.to_pylist() == table.drop_columns("other").slice(first, last - first).to_pylist()


def test_a_damaged_page_of_an_arms_documents_is_named(tmp_path: Path) -> None:
    """A bit that flips in a number would else be exported as another number."""
    path = tmp_path / "documents.parquet"
    columns: dict[str, Any] = {name: [f"{name}{i}" for i in range(9)] for name in ("id", "lang")}
    columns |= {"source": ["s"] * 9, "n_tokens": list(range(9)), "proportion": [0.5] * 9}
    pq.write_table(
        pa.table(columns), path, compression="none", use_dictionary=False, write_page_checksum=True
    )
    data = bytearray(path.read_bytes())
    place = data.index(b"lang4") + 4
    data[place] ^= 1
    path.write_bytes(bytes(data))
    assert pq.read_table(path)["lang"].to_pylist()[4] == "lang5"  # nobody else notices
    with pytest.raises(InputError, match=re.escape(f"{path}: is damaged")):
        document_rows(path, 2, 6)


def test_exported_text_is_what_other_readers_find(
    tmp_path: Path, stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mining.mix_export.PART_TOKENS", 300)
    tokens, tokenizer = stages["tokens"], stages["tokenizer"]
    score, out = tmp_path / "score", tmp_path / "mix"
    run_score(ScoreSettings(), score, tokens, stages["pivots"], ONE)
    corpus = CorpusSettings(path=str(stages["docs"]))
    mix = MixSettings(
        arms=("random", "pivot"), budget_tokens=1500, max_pool_share=0.2, max_repeats=3,
        min_document_tokens=1, validation_share=0.1, export=("jsonl", "parquet"),
    )  # fmt: skip
    run_mix(mix, out, corpus, tokens, score, tokenizer, ONE, seed=3)
    texts = {
        record["id"]: record["text"]
        for path in stages["docs"].glob("*")
        for record in map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    }
    loaded = load_tokenizer(out / "tokenizer")
    for arm in mix.arms:
        files = sorted(str(path) for path in (out / arm / "jsonl").iterdir())
        assert len(files) == 5
        chosen = pq.read_table(out / arm / "documents.parquet").to_pylist()
        # What is cut to end-of-text alone has no text.
        exported = [row for row in chosen if row["n_tokens"] > 1]
        assert any(row["repeat"] for row in chosen)
        loads = [
            datasets.load_dataset(kind, data_files=names, split="train", cache_dir=str(tmp_path))
            for kind, names in (
                ("json", files),
                ("parquet", sorted(str(path) for path in (out / arm / "parquet").iterdir())),
            )
        ]
        assert loads[0].to_list() == loads[1].to_list()
        read = list(JsonlReader(str(out / arm / "jsonl")).run())
        assert [(d.id, d.text) for d in read] == [(r["id"], r["text"]) for r in loads[0]]
        ids, ends = open_token_file(out / arm / "tokens.ds", loaded.vocab_size)
        # As OLMo's memmap reads it, and by datatrove's own reader.
        assert np.array_equal(np.fromfile(out / arm / "tokens.ds", "<u2"), ids)
        windows = DatatroveFileDataset(str(out / arm / "tokens.ds"), seq_len=99, token_size=2)
        assert len(windows) == 15
        for k in range(len(windows)):  # it has no end of its own
            assert windows[k]["input_ids"].tolist() == ids[100 * k : 100 * k + 100].tolist()
        borders = itertools.pairwise([0, *ends.tolist()])
        long = [(start, end) for start, end in borders if end > start + 1]
        for row, given_row, (start, end) in zip(loads[0], exported, long, strict=True):
            assert {k: row[k] for k in row if k != "text"} == {k: given_row[k] for k in row
                                                               if k != "text"}  # fmt: skip
            assert loaded.encode(row["text"]) == ids[start : end - 1].tolist()
            whole = end - start - 1 == len(texts[row["id"]].split())
            assert row["text"] == texts[row["id"]] if whole else row["text"] in texts[row["id"]]
    assert "documents" in read_manifest(out, "mix").inputs
    first = next(iter(stages["docs"].glob("*")))
    first.write_bytes(gzip.compress(gzip.decompress(first.read_bytes()).replace(b"w1 ", b"w2 ", 1)))
    with pytest.raises(MismatchError, match="changed since"):
        run_mix(mix, tmp_path / "other", corpus, tokens, score, tokenizer, ONE, seed=3)
