from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.common.errors import InputError, SettingsError
from mining.mix_compare import describe_arms
from mining.mix_documents import collect_documents, rank_with_ties
from mining.mix_select import Pool, Selection, language_budgets, make_pool, select_documents
from mining.mix_settings import ARMS, MixSettings


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


@settings(max_examples=25)
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
    with pytest.raises(
        SettingsError, match=r"mix\.budget_tokens: arm original: the whole corpus needs 1"
    ):
        select(documents, mix, seed=1)


def test_nothing_to_draw_and_unknown_sources_are_said() -> None:
    documents = table(50, 0)
    with pytest.raises(InputError, match="min_document_tokens"):
        select(documents, MixSettings(arms=("random",), min_document_tokens=99), 0)
    shares = {"fr": 0.5, "de": 0.5}
    with pytest.raises(SettingsError, match="arm random: de needs 10 tokens, but may give only 0"):
        select(documents, MixSettings(budget_tokens=20, languages=shares, arms=("random",)), 0)
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


@settings(max_examples=10)
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


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), repeats=st.integers(1, 4), share=st.floats(0.1, 0.4))
def test_filling_up_keeps_to_the_pool_share_of_groups_and_repeats_evenly(
    seed: int, repeats: int, share: float
) -> None:
    """low-pivot has little of one source below the threshold, and takes the rest from others."""
    documents = table(900, seed)
    rare = (documents["source"] == "a") & (documents.index >= 60)
    documents.loc[rare, "proportion"] = 0.4
    mix = dataclasses.replace(
        DRAWN, match=("source",), min_proportion=0.2, max_pool_share=share, max_repeats=repeats,
    )  # fmt: skip
    pool = pool_of(documents, mix, seed)
    try:
        chosen = select_documents(pool)["low-pivot"]
    except SettingsError:
        return  # the groups have too little for some arm
    assert chosen.sizes.sum() == 900
    assert chosen.repeats.max() < repeats
    first = chosen.repeats == 0
    keys = [pool.documents.lang, pool.matched]
    new = dataclasses.replace(
        chosen, rows=chosen.rows[first], sizes=chosen.sizes[first], always=chosen.always[first],
        repeats=chosen.repeats[first],
    )  # fmt: skip
    held: Counter[Any] = Counter()
    for row in np.flatnonzero(pool.drawable).tolist():
        held[(int(pool.documents.lang[row]), int(pool.matched[row]))] += int(pool.sizes[row])
    for group, tokens in by_group(pool, new, keys).items():
        assert tokens <= share * held[group] + pool.sizes.max()
    assert (pool.documents.proportion[chosen.rows] < 0.2).all()
    # A document's places are numbered from 0, without gaps.
    for row in np.unique(chosen.rows):
        own = np.sort(chosen.repeats[chosen.rows == row])
        assert own.tolist() == list(range(len(own)))


@pytest.mark.parametrize("match", [(), ("source",)])
def test_random_twice_is_random_and_as_many_tokens_more(match: Any) -> None:
    documents = table(900, 2)
    mix = dataclasses.replace(DRAWN, arms=("random", "pivot", "random-twice"), match=match)
    pool = pool_of(documents, mix, 1)
    chosen = select_documents(pool)
    assert chosen["random-twice"].sizes.sum() == 2 * chosen["random"].sizes.sum() == 1800
    rows = {arm: set(chosen[arm].rows.tolist()) for arm in mix.arms}
    if not match:
        assert rows["random"] < rows["random-twice"]
    for code in range(3):
        here = {arm: pool.documents.lang[one.rows] == code for arm, one in chosen.items()
                if arm in mix.arms}  # fmt: skip
        tokens = {arm: int(chosen[arm].sizes[own].sum()) for arm, own in here.items()}
        assert tokens == {"random": 300, "pivot": 300, "random-twice": 600}


@settings(max_examples=25)
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


@settings(max_examples=10)
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
