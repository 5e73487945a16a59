from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.writers import JsonlWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.common.errors import InputError, MismatchError, SettingsError
from mining.common.shards import write_table
from mining.common.stage import begin, read_manifest
from mining.common.token_file import open_token_file
from mining.common.tokenizer import load_tokenizer
from mining.engine_settings import EngineSettings
from mining.kernels.proportion import count_pivots
from mining.kernels.select import fill_budget
from mining.mix import describe_arms, language_budgets, run_mix, select_documents
from mining.score import run_score
from mining.settings import (
    CorpusSettings,
    MixSettings,
    ScoreSettings,
    TokenizeSettings,
)
from mining.steps import PivotFilter, RecordReader
from mining.tokenize import run_tokenize
from tests.conftest import folder_bytes

ONE = EngineSettings(workers=1)
WORDS = [f"w{i}" for i in range(30)]
PIVOTS = {"w0", "w1", "w2"}


@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6),
    mask=st.lists(st.booleans(), max_size=8),
)
def test_count_pivots_equals_a_plain_loop(documents: list[list[int]], mask: list[bool]) -> None:
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    tokens = np.array([t for d in documents for t in d], dtype=np.uint32)
    found = count_pivots(tokens, offsets, np.array(mask, dtype=bool))
    assert found.tolist() == [sum(t < len(mask) and mask[t] for t in d) for d in documents]


@given(
    sizes=st.lists(st.integers(1, 9), max_size=12), budget=st.integers(0, 60), order=st.randoms()
)
def test_fill_budget_takes_a_prefix_and_cuts_the_last(
    sizes: list[int], budget: int, order: Any
) -> None:
    indices = list(range(len(sizes)))
    order.shuffle(indices)
    taken, lengths = fill_budget(np.array(indices, np.int64), np.array(sizes, np.int64), budget)
    assert taken.tolist() == indices[: len(taken)]
    assert lengths.sum() == min(budget, sum(sizes))
    assert all(n == sizes[i] for i, n in list(zip(taken, lengths, strict=True))[:-1])
    assert all(0 < n <= sizes[i] for i, n in zip(taken, lengths, strict=True))


def table(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": [f"d{i}" for i in range(n)],
            "lang": rng.choice(["en", "fr", "zh"], n),
            "source": rng.choice(["a", "b", "fixed"], n, p=[0.5, 0.4, 0.1]),
            "group": [None if i % 3 else f"g{i // 6}" for i in range(n)],
            "n_tokens": rng.integers(5, 40, n),
            "proportion": rng.integers(0, 5, n) / 10,
        }
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_arms_share_budget_languages_and_validation(seed: int) -> None:
    documents = table(600, seed)
    mix = MixSettings(
        budget_tokens=2000,
        languages={"fr": 0.3, "zh": 0.3},
        always_sources=("fixed",),
        min_document_tokens=8,
        max_document_tokens=30,
        validation_share=0.1,
        max_validation_tokens=300,
    )
    chosen = select_documents(documents, mix, seed=1)
    shuffled = documents.sample(frac=1, random_state=seed)
    again = select_documents(shuffled.reset_index(drop=True), mix, seed=1)
    lang = documents["lang"].to_numpy()
    group = documents["group"].fillna(documents["id"]).to_numpy()
    fixed = set(np.flatnonzero((documents["source"] == "fixed").to_numpy()).tolist())
    held = {i for name, s in chosen.items() if name.startswith("validation/") for i in s.rows}
    held_groups = {group[i] for i in held}
    for arm in mix.arms:
        rows, sizes, always = chosen[arm].rows, chosen[arm].sizes, chosen[arm].always
        assert len(set(rows.tolist())) == len(rows)
        assert sizes[~always].sum() == 2000
        assert set(rows[always].tolist()) == fixed
        assert not held_groups & {group[i] for i in rows[~always]}
        if arm != "original":
            for code, budget in {"fr": 600, "zh": 600, "en": 800}.items():
                assert sizes[~always & (lang[rows] == code)].sum() == budget
        # The same documents in the same order, whatever the order of the shards.
        ids = shuffled["id"].to_numpy()[again[arm].rows].tolist()
        assert ids == documents["id"].to_numpy()[rows].tolist()
    p = documents["proportion"].to_numpy()

    def mean(arm: str, code: str) -> float:
        here = ~chosen[arm].always & (lang[chosen[arm].rows] == code)
        return float(np.average(p[chosen[arm].rows[here]], weights=chosen[arm].sizes[here]))

    for code in ("fr", "zh"):
        assert mean("low-pivot", code) < mean("random", code) < mean("pivot", code)
    # The fill-up language is drawn at random in every arm: the same documents.
    fills = [
        frozenset(chosen[arm].rows[~chosen[arm].always & (lang[chosen[arm].rows] == "en")].tolist())
        for arm in ("random", "pivot", "low-pivot")
    ]
    assert len(set(fills)) == 1


def test_budget_rules() -> None:
    shares = {"fr": 0.5, "zh": 0.5}
    even = language_budgets(MixSettings(budget_tokens=101), ["a", "b"])
    assert even == {"a": 51, "b": 50}
    assert language_budgets(MixSettings(budget_tokens=101, languages=shares), []) == {
        "fr": 51,
        "zh": 50,
    }
    with pytest.raises(SettingsError, match="fill_language"):
        language_budgets(
            MixSettings(budget_tokens=100, languages={"fr": 0.5}, fill_language=None), []
        )
    documents = table(100, 0)
    mix = MixSettings(budget_tokens=100_000, validation_share=0.1)
    with pytest.raises(SettingsError, match=r"mix\.budget_tokens: the whole corpus needs 100000"):
        select_documents(documents, mix, seed=1)


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
    attributes = [
        json.loads(line)
        for path in sorted((score / "attributes").glob("*.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    assert {a["id"]: a["attributes"]["pivot_proportion"][0][2] for a in attributes} == {
        row["id"]: row["proportion"] for row in rows
    }

    settings = MixSettings(budget_tokens=800, min_document_tokens=1, validation_share=0.1)
    run_mix(settings, tmp_path / "mix", tokens, score, tokenizer, seed=3)
    run_mix(settings, tmp_path / "mix2", tokens, score, tokenizer, seed=3)
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


def test_nothing_to_draw_and_unknown_sources_are_said() -> None:
    documents = table(50, 0)
    with pytest.raises(InputError, match="min_document_tokens"):
        select_documents(documents, MixSettings(arms=("random",), min_document_tokens=99), 0)
    with pytest.raises(SettingsError, match="no document has the source nowhere"):
        select_documents(documents, MixSettings(always_sources=("fixed", "nowhere")), 0)


def test_pool_share_is_of_what_may_be_drawn() -> None:
    documents = table(600, 1)
    documents["lang"] = "en"
    mix = MixSettings(arms=("random",), always_sources=("fixed",), max_document_tokens=20)
    mix = dataclasses.replace(mix, budget_tokens=1, validation_share=0.2)
    with pytest.raises(SettingsError) as caught:
        select_documents(documents, dataclasses.replace(mix, budget_tokens=10**9), 0)
    most = int(str(caught.value).split("give only ")[1].split()[0])
    mix = dataclasses.replace(mix, budget_tokens=most)
    report = describe_arms(documents, select_documents(documents, mix, 0), mix, 0)
    share = report["arms"]["random"]["languages"]["en"]["pool_share"]
    assert share == pytest.approx(mix.max_pool_share, abs=1e-3)
