from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.dataset import DatatroveFileDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.common.errors import InputError, MismatchError, SettingsError
from mining.common.shards import write_table
from mining.common.stage import begin, read_manifest
from mining.common.token_file import open_token_file
from mining.common.tokenizer import load_tokenizer
from mining.engine_settings import EngineSettings
from mining.kernels.proportion import count_pivots
from mining.kernels.select import Limit, fill_budget, size_bins
from mining.mix import run_mix
from mining.mix_compare import describe_arms
from mining.mix_documents import collect_documents, rank_with_ties
from mining.mix_select import Pool, Selection, language_budgets, make_pool, select_documents
from mining.mix_settings import ARMS, MixSettings
from mining.score import run_score
from mining.settings import CorpusSettings, ScoreSettings, TokenizeSettings
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


@settings(deadline=None)  # the first call compiles
@given(
    sizes=st.lists(st.integers(1, 9), max_size=12),
    budget=st.integers(0, 60),
    order=st.randoms(),
    limits=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=3), max_size=2),
)
def test_fill_budget_equals_a_plain_loop(
    sizes: list[int], budget: int, order: Any, limits: list[list[int]]
) -> None:
    indices = list(range(len(sizes)))
    order.shuffle(indices)
    groups = [[order.randrange(len(left)) for _ in sizes] for left in limits]
    whole = [order.random() < 0.3 for _ in limits]
    given_limits = [
        Limit(np.array(group, np.int32), np.array(left, np.int64), soft)
        for group, left, soft in zip(groups, limits, whole, strict=True)
    ]
    taken, lengths = fill_budget(
        np.array(indices, np.int64), np.array(sizes, np.int64), budget, given_limits
    )
    expected = []
    rest, left = budget, [list(row) for row in limits]
    for i in indices:
        lefts = [row[g[i]] for row, g in zip(left, groups, strict=True)]
        room = min([sizes[i], rest, *(n for n, w in zip(lefts, whole, strict=True) if not w)])
        room = room if all(n > 0 for n in lefts) else 0
        if room > 0:
            expected.append((i, room))
            rest -= room
            for row, g in zip(left, groups, strict=True):
                row[g[i]] -= room
    assert list(zip(taken.tolist(), lengths.tolist(), strict=True)) == expected
    assert [limit.left.tolist() for limit in given_limits] == left
    if not limits:
        assert lengths.sum() == min(budget, sum(sizes))


@given(st.lists(st.integers(1, 1 << 40), min_size=1))
def test_size_bins_are_powers_of_two(sizes: list[int]) -> None:
    assert size_bins(np.array(sizes)).tolist() == [n.bit_length() - 1 for n in sizes]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.text(max_size=2)), unique=True))
def test_equal_hashes_are_told_apart_by_id(rows: list[tuple[int, int, str]]) -> None:
    keys = [np.array([row[k] for row in rows], np.uint64) for k in (0, 1)]
    order = rank_with_ties(keys, lambda index: rows[index][2])
    assert [rows[i] for i in order] == sorted(rows)


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


def pool_of(frame: pd.DataFrame, mix: MixSettings, seed: int, shards: int = 1) -> Pool:
    parts = np.array_split(np.arange(len(frame)), shards)
    tables = [pa.Table.from_pandas(frame.iloc[part], preserve_index=False) for part in parts]
    return make_pool(collect_documents(tables), mix, seed)


def select(
    frame: pd.DataFrame, mix: MixSettings, seed: int, shards: int = 1
) -> dict[str, Selection]:
    return select_documents(pool_of(frame, mix, seed, shards))


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
    chosen = select(documents, mix, seed=1)
    shuffled = documents.sample(frac=1, random_state=seed)
    again = select(shuffled, mix, seed=1, shards=3)
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
        select(documents, mix, seed=1)


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


def test_nothing_to_draw_and_unknown_sources_are_said() -> None:
    documents = table(50, 0)
    with pytest.raises(InputError, match="min_document_tokens"):
        select(documents, MixSettings(arms=("random",), min_document_tokens=99), 0)
    with pytest.raises(SettingsError, match="no document has the source nowhere"):
        select(documents, MixSettings(always_sources=("fixed", "nowhere")), 0)


def test_pool_share_is_of_what_may_be_drawn() -> None:
    documents = table(600, 1)
    documents["lang"] = "en"
    mix = MixSettings(arms=("random",), always_sources=("fixed",), max_document_tokens=20)
    mix = dataclasses.replace(mix, budget_tokens=1, validation_share=0.2)
    with pytest.raises(SettingsError) as caught:
        select(documents, dataclasses.replace(mix, budget_tokens=10**9), 0)
    most = int(str(caught.value).split("give only ")[1].split()[0])
    mix = dataclasses.replace(mix, budget_tokens=most)
    pool = pool_of(documents, mix, 0)
    report = describe_arms(pool, select_documents(pool))
    share = report["arms"]["random"]["languages"]["en"]["pool_share"]
    assert share == pytest.approx(mix.max_pool_share, abs=1e-3)


DRAWN = MixSettings(
    arms=("random", "pivot", "low-pivot"), budget_tokens=900, validation_share=0.1,
    min_document_tokens=5,
)  # fmt: skip


def by_group(pool: Pool, chosen: Selection, keys: Sequence[npt.NDArray[Any]]) -> Counter[Any]:
    """Tokens by the values of some arrays over all documents."""
    found: Counter[Any] = Counter()
    for row, size in zip(chosen.rows.tolist(), chosen.sizes.tolist(), strict=True):
        found[tuple(int(key[row]) for key in keys)] += size
    return found


def test_thresholds_draw_at_random_on_their_side() -> None:
    documents = table(900, 3)
    p = documents["proportion"].to_numpy()
    chosen = select(documents, dataclasses.replace(DRAWN, min_proportion=0.3), 1)
    assert set(p[chosen["pivot"].rows]) == {0.3, 0.4}  # highest first would take 0.4 only
    assert set(p[chosen["low-pivot"].rows]) == {0.0, 0.1, 0.2}
    wide = dataclasses.replace(DRAWN, top_share=0.45)
    pool = pool_of(documents, wide, 1)
    chosen = select_documents(pool)
    for arm, side in (("pivot", 1), ("low-pivot", -1)):
        rows = chosen[arm].rows
        for code in range(3):
            own = np.flatnonzero(pool.drawable & (pool.documents.lang == code))
            ranked = own[np.argsort(-side * p[own], kind="stable")]
            held = np.cumsum(pool.sizes[ranked])
            border = p[ranked[np.searchsorted(held, 0.45 * held[-1])]]
            taken = p[rows[pool.documents.lang[rows] == code]]
            assert (side * taken >= side * border).all()
            assert len(set(taken)) > 1
    with pytest.raises(SettingsError, match=r"may give only \d+ .*mix.min_proportion 1.0"):
        select(documents, dataclasses.replace(DRAWN, min_proportion=1.0), 1)
    narrow = dataclasses.replace(DRAWN, top_share=0.01)
    with pytest.raises(SettingsError, match=r"may give only \d+ .*mix.top_share 0.01"):
        select(documents, narrow, 1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), match=st.sampled_from([("source",), ("length",), "both"]))
def test_matched_arms_hold_the_same_tokens_of_each_group(seed: int, match: Any) -> None:
    documents = table(900, seed)
    # Pivots go with source and length: without matching, the arms would differ in both.
    rich = (documents["source"] == "a").to_numpy() * 2 + (documents["n_tokens"] > 15).to_numpy()
    documents["proportion"] += rich / 10
    match = ("source", "length") if match == "both" else match
    mix = dataclasses.replace(DRAWN, match=match, max_document_tokens=36)
    pool = pool_of(documents, mix, seed)
    chosen = select_documents(pool)
    keys = [pool.documents.lang, pool.matched]
    wanted = by_group(pool, chosen["pivot"], keys)
    for arm in mix.arms:
        assert by_group(pool, chosen[arm], keys) == wanted
    held = Counter()
    for row in np.flatnonzero(pool.drawable).tolist():
        held[(int(pool.documents.lang[row]), int(pool.matched[row]))] += int(pool.sizes[row])
    for group, tokens in wanted.items():  # at most one document beyond the share
        assert tokens <= mix.max_pool_share * held[group] + pool.sizes.max()
    report = describe_arms(pool, chosen)
    plain = pool_of(documents, dataclasses.replace(mix, match=()), seed)
    other = describe_arms(plain, select_documents(plain))
    for code in ("en", "fr", "zh"):
        entry = report["arms"]["random"]["languages"][code]
        before = other["arms"]["random"]["languages"][code]
        assert entry["match_deviation"] == 0.0
        assert "match_deviation" not in before
        for name in match:
            assert entry[f"{name}_distance"] == 0.0
            assert before[f"{name}_distance"] > 0.01


def test_a_group_that_has_too_little_is_filled_up_and_said(caplog: Any) -> None:
    documents = table(900, 4)
    # low-pivot may take only documents below the threshold: source "a" has few of them.
    documents.loc[documents["source"] == "a", "proportion"] = 0.4
    documents.loc[documents.index[:40], "proportion"] = 0.0
    mix = dataclasses.replace(DRAWN, match=("source",), min_proportion=0.4)
    pool = pool_of(documents, mix, 1)
    chosen = select_documents(pool)
    assert chosen["low-pivot"].sizes.sum() == 900
    assert (pool.documents.proportion[chosen["low-pivot"].rows] < 0.4).all()
    with caplog.at_level("INFO"):
        arms = describe_arms(pool, chosen)["arms"]
    deviations = [part["match_deviation"] for part in arms["low-pivot"]["languages"].values()]
    assert max(deviations) > 0.1
    assert "low-pivot is not wholly matched with pivot" in caplog.text
    assert {p["match_deviation"] for p in arms["random"]["languages"].values()} == {0.0}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), repeats=st.integers(2, 5), match=st.booleans())
def test_repeats_fill_what_the_pool_share_leaves(seed: int, repeats: int, match: bool) -> None:
    documents = table(300, seed)
    mix = dataclasses.replace(
        DRAWN, budget_tokens=3 * 700, languages={"fr": 1 / 3, "zh": 1 / 3}, max_pool_share=0.2,
        max_repeats=repeats, match=("source",) if match else (),
    )  # fmt: skip
    pool = pool_of(documents, mix, seed)
    most = {
        code: int(0.2 * pool.sizes[pool.drawable & (pool.documents.lang == code)].sum())
        for code in range(3)
    }
    if repeats * min(most.values()) < 700:
        with pytest.raises(SettingsError, match=f"mix.max_repeats {repeats}"):
            select_documents(pool)
        return
    try:
        chosen = select_documents(pool)
    except SettingsError:
        assert match  # what a group may give is a little less in all
        return
    shuffled = documents.sample(frac=1, random_state=seed)
    again = select(shuffled, mix, seed, shards=2)
    ids, other_ids = documents["id"].tolist(), shuffled["id"].tolist()
    for arm in mix.arms:
        rows, sizes, number = chosen[arm].rows, chosen[arm].sizes, chosen[arm].repeats
        for code in range(3):
            here = pool.documents.lang[rows] == code
            assert sizes[here].sum() == 700
            assert sizes[here & (number == 0)].sum() <= max(most[code], 0)
        times = Counter(rows.tolist())
        assert max(times.values()) <= repeats
        for row, n in times.items():
            assert sorted(number[rows == row].tolist()) == list(range(n))
        assert [ids[row] for row in rows] == [other_ids[row] for row in again[arm].rows]


def test_repeats_stand_evenly_around_the_order() -> None:
    documents = table(3000, 5)
    documents["lang"] = "en"
    mix = dataclasses.replace(DRAWN, budget_tokens=30_000, max_pool_share=0.2, max_repeats=4)
    chosen = select(documents, dataclasses.replace(mix, arms=("random",)), 1)["random"]
    n = len(chosen.rows)
    for row in np.unique(chosen.rows)[:50]:
        places = np.flatnonzero(chosen.rows == row)
        if len(places) > 1:
            gaps = np.diff([*places, places[0] + n])
            assert abs(gaps - n / len(places)).max() < 0.1 * n
    assert (chosen.repeats > 0).any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), match=st.booleans())
def test_no_source_gives_more_than_its_share(seed: int, match: bool) -> None:
    documents = table(900, seed)
    documents["proportion"] += (documents["source"] == "a") * 1.0
    mix = dataclasses.replace(
        DRAWN, arms=ARMS, max_source_share=0.5, match=("length",) if match else ()
    )
    pool = pool_of(documents, mix, seed)
    chosen = select_documents(pool)
    by_lang = [pool.documents.lang, pool.documents.source]
    for arm in mix.arms:
        keys = by_lang[1:] if arm == "original" else by_lang
        most = 450 if arm == "original" else 150
        assert chosen[arm].sizes.sum() == 900
        assert max(by_group(pool, chosen[arm], keys).values()) <= most
    assert max(by_group(pool, chosen["pivot"], by_lang).values()) == 150
    one = dataclasses.replace(mix, max_source_share=0.3)
    with pytest.raises(SettingsError, match=r"may give only \d+ .*mix.max_source_share 0.3"):
        select(documents, one, seed)


def test_budgets_in_tokens_beside_shares() -> None:
    mix = MixSettings(
        budget_tokens=1000, languages={"fr": 0.25}, language_tokens={"zh": 301}, fill_language="en"
    )
    assert language_budgets(mix, []) == {"fr": 250, "zh": 301, "en": 449}
    exact = MixSettings(budget_tokens=10, language_tokens={"zh": 3, "en": 7}, fill_language=None)
    assert language_budgets(exact, []) == {"zh": 3, "en": 7}
    short = MixSettings(budget_tokens=11, language_tokens={"zh": 3, "en": 7})
    with pytest.raises(SettingsError, match="leave 1 tokens"):
        language_budgets(short, [])
    documents = table(600, 0)
    chosen = select(documents, dataclasses.replace(DRAWN, language_tokens={"zh": 301}), 0)
    rows, sizes = chosen["pivot"].rows, chosen["pivot"].sizes
    lang = documents["lang"].to_numpy()[rows]
    assert {str(code): sizes[lang == code].sum() for code in set(lang)} == {"zh": 301, "en": 599}


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"top_share": 0.0}, "top_share"),
        ({"min_proportion": 1.5}, "min_proportion"),
        ({"top_share": 0.2, "min_proportion": 0.1}, "min_proportion: found 0.1, expected null"),
        ({"max_source_share": 2.0}, "max_source_share"),
        ({"max_repeats": 0}, "max_repeats"),
        ({"match": ("source", "source")}, "match"),
        ({"match": ("source",), "arms": ("random",)}, "match: .* the arm pivot"),
        ({"export": ("jsonl", "jsonl")}, "export"),
        ({"languages": {"fr": 0.5}, "language_tokens": {"fr": 5}}, "language_tokens.*both for fr"),
        ({"language_tokens": {"fr": 0}}, "language_tokens"),
        ({"budget_tokens": 10, "languages": {"fr": 0.5}, "language_tokens": {"zh": 6}},
         "language_tokens: .* at most 5"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        MixSettings(**wrong)


def test_an_id_that_stands_twice_is_refused() -> None:
    documents = table(60, 0)
    documents.loc[7, "id"] = documents.loc[31, "id"]
    with pytest.raises(InputError, match="two documents have the id 'd31'"):
        select(documents, dataclasses.replace(DRAWN, budget_tokens=30), 0)


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
