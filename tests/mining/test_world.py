"""The generated world: what is planted is there, and what must not be there is not."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.common.errors import SettingsError
from mining.common.files import sha256_file
from mining.common.manifest import read_manifest
from mining.common.seeds import generator
from mining.common.task import Task, read_task
from mining.settings import WorldSettings
from mining.world import run_world
from mining.world_plan import CELLS, TRAIN, plan_world
from mining.world_text import draw_pool, lay_out, pack, pool_sizes, spread

SMALL = WorldSettings(
    topics=4,
    concepts_per_topic=12,
    training_per_topic=8,
    function_words=6,
    neutral_words=8,
    hubs_per_topic=2,
    pivots=30,
    names_per_language=5,
    max_pair_count=20,
    two_token_share=0.25,
    format_passes=2,
    identity_passes=2,
    pool_documents=1201,
    document_tokens=40,
)
SEED = 7


@dataclasses.dataclass
class Written:
    """A world read back from its files, by plain Python."""

    folder: Path
    task: Task
    truth: dict[str, Any]
    records: list[dict[str, Any]]

    def of(self, source: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["source"] == source]


def read_world(folder: Path) -> Written:
    records = []
    for path in sorted((folder / "documents").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            records += [json.loads(line) for line in handle]
    truth = json.loads((folder / "truth.json").read_text("utf-8"))
    return Written(folder, read_task(folder / "task.yaml"), truth, records)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("world") / "out"
    run_world(SMALL, folder, SEED)
    return read_world(folder)


def holds(text: str, word: str) -> bool:
    return f" {word} " in f" {text} "


def test_same_seed_same_bytes(world: Written, tmp_path: Path) -> None:
    run_world(SMALL, tmp_path / "again", SEED)
    run_world(SMALL, tmp_path / "other", SEED + 1)
    first = read_manifest(world.folder, "world").outputs
    assert read_manifest(tmp_path / "again").outputs == first
    other = read_manifest(tmp_path / "other").outputs
    assert all(other[name] != entry for name, entry in first.items() if name != "task.yaml")
    assert sha256_file(tmp_path / "again" / "manifest.json") == sha256_file(
        world.folder / "manifest.json"
    )


def test_done_is_not_redone_and_rests_of_a_kill_do_no_harm(world: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_world(SMALL, out, SEED)
    before = (out / "run.json").read_bytes()
    run_world(SMALL, out, SEED)
    assert (out / "run.json").read_bytes() == before
    # As a kill in the middle of the last moves leaves it: no manifest, some files, partial work.
    (out / "manifest.json").unlink()
    (out / "truth.json").unlink()
    (out / ".work" / "new" / "documents").mkdir(parents=True)
    (out / ".work" / "new" / "documents" / "stale.jsonl.gz").write_bytes(b"half")
    run_world(SMALL, out, SEED)
    assert read_manifest(out).outputs == read_manifest(world.folder).outputs


def test_words_are_unique_and_look_as_they_should(world: Written) -> None:
    truth = world.truth
    words = [c.words[lang].split() for c in world.task.concepts for lang in world.task.languages]
    tokens = [
        *chain.from_iterable(words),
        *chain.from_iterable(truth["function_words"].values()),
        *truth["pivots"], *truth["names"], *truth["hubs"], *truth["neutral"],
        *truth["languages"].values(),
    ]  # fmt: skip
    assert len({token.casefold() for token in tokens}) == len(tokens)
    assert {token for r in world.records for token in r["text"].split(" ")} <= set(tokens)
    assert read_manifest(world.folder).counts["vocabulary"] == len(tokens)
    for token in (*truth["pivots"], *truth["hubs"], *truth["neutral"]):
        assert token[:3].isalpha()
        assert token[3:].isdigit()
    assert all(token.isalpha() for token in chain.from_iterable(words))
    long = sum(len(word) == 2 for word in words)
    assert long == round(0.25 * 48) * 3


def test_task_has_the_design(world: Written) -> None:
    task = world.task
    cells = Counter(concept.group for concept in task.concepts)
    assert cells == {TRAIN: 32, **dict.fromkeys(CELLS, 4)}
    assert read_manifest(world.folder).counts["cells"] == cells
    for concept in task.concepts:
        assert world.truth["cells"][concept.id] == concept.group
        assert concept.example == (concept.group == TRAIN)
    per_topic = Counter((c.cls, c.group != TRAIN) for c in task.concepts)
    assert set(per_topic.values()) == {8, 4}
    first = task.concepts[0]
    assert task.prompt("la", "lb", [task.concepts[1]], first.words["la"]) == (
        f"LA {task.concepts[1].words['la']} LB {task.concepts[1].words['lb']} "
        f"LA {first.words['la']} LB"
    )
    assert task.answer_text("x") == " x"
    assert len(task.draw_examples("la", "lb", first, 5, 0, SEED)) == 5


def test_distractors_are_of_the_same_topic_and_as_unseen(tmp_path: Path) -> None:
    settings = dataclasses.replace(WorldSettings(), pool_documents=3, format_passes=1)
    run_world(settings, tmp_path / "out", SEED)
    task = read_task(tmp_path / "out" / "task.yaml")
    by_word = {concept.words["lb"]: concept for concept in task.concepts}
    for concept in task.concepts:
        found = [by_word[word] for word in task.distractors("la", "lb", concept)]
        assert len(found) == 9
        assert {(c.cls, c.pos) for c in found} == {(concept.cls, concept.pos)}


def test_pivots_are_one_to_one_and_names_of_one_language(world: Written) -> None:
    truth = world.truth
    owners = [set(chain(*by_lang.values())) for by_lang in truth["pivots"].values()]
    assert all(set(by_lang) == {"la", "lb", "lc"} for by_lang in truth["pivots"].values())
    assert all(len(owner) == 1 for owner in owners)
    owned = {concept for owner in owners for concept in owner}
    assert len(owned) == len(owners) == SMALL.pivots
    for concept, cell in truth["cells"].items():
        if cell != TRAIN:
            assert (concept in owned) == cell.startswith("p1")
    assert Counter(name["lang"] for name in truth["names"].values()) == dict.fromkeys(
        ("la", "lb", "lc"), 5
    )
    assert not {name["concept"] for name in truth["names"].values()} & owned


def test_documents_are_of_the_length_and_balance_asked_for(world: Written) -> None:
    assert len({record["id"] for record in world.records}) == len(world.records)
    lengths: dict[str, set[int]] = defaultdict(set)
    for record in world.records:
        lengths[record["source"]].add(record["text"].count(" ") + 1)
    assert lengths["pool"] == {40}
    assert max(max(found) for found in lengths.values()) <= 40
    counts = Counter(record["lang"] for record in world.of("pool"))
    assert counts == {"la": 401, "lb": 400, "lc": 400}
    assert pool_sizes(SMALL) == [401, 400, 400]
    for record in world.records:
        assert (record["lang"] == "mul") == (record["source"] in ("codeswitch", "format"))
    manifest = read_manifest(world.folder).counts
    assert manifest["documents"] == len(world.records)
    assert manifest["tokens"] == sum(r["text"].count(" ") + 1 for r in world.records)
    assert manifest["by_source"]["pool"] == {"documents": 1201, "tokens": 1201 * 40}


def test_pool_documents_are_of_one_language_and_topic(world: Written) -> None:
    known: dict[str, tuple[str, str | None]] = {}
    for concept in world.task.concepts:
        for lang, word in concept.words.items():
            known.update(dict.fromkeys(word.split(), (lang, concept.cls)))
    for lang, words in world.truth["function_words"].items():
        known.update(dict.fromkeys(words, (lang, None)))
    for record in world.of("pool"):
        found = [known[token] for token in record["text"].split() if token in known]
        assert {lang for lang, _ in found} == {record["lang"]}
        assert {topic for _, topic in found} <= {None, record["metadata"]["topic"]}
        for token in record["text"].split():
            if token in world.truth["hubs"]:
                assert world.truth["hubs"][token] == record["metadata"]["topic"]


def test_no_word_is_cut(world: Written) -> None:
    pairs = {}
    for concept in world.task.concepts:
        for word in concept.words.values():
            if " " in word:
                first, second = word.split()
                pairs[first] = second
    seconds = {second: first for first, second in pairs.items()}
    for record in world.records:
        tokens = record["text"].split()
        for i, token in enumerate(tokens):
            assert token not in pairs or tokens[i + 1] == pairs[token]
            assert token not in seconds or tokens[i - 1] == seconds[token]


def test_words_meet_their_translations_as_planned(world: Written) -> None:
    for concept in world.task.concepts:
        for a, b in itertools.combinations(world.task.languages, 2):
            met = [
                record["source"]
                for record in world.records
                if holds(record["text"], concept.words[a])
                and holds(record["text"], concept.words[b])
            ]
            if concept.group == TRAIN:
                assert Counter(met)["format"] >= 1
            else:
                planned = world.truth["pair_counts"].get(concept.id, {}).get(f"{a}-{b}", 0)
                assert met == ["codeswitch"] * planned
                assert (planned > 0) == concept.group.endswith("c1")


def test_fixed_documents_hold_no_pivot(world: Written) -> None:
    tied = {*world.truth["pivots"], *world.truth["names"], *world.truth["hubs"]}
    for record in world.records:
        if record["source"] != "pool":
            assert not tied & set(record["text"].split())


def test_format_and_identity_documents_show_each_word_as_often_as_asked(world: Written) -> None:
    names = world.truth["languages"]
    shown = " ".join(r["text"] for r in world.of("format"))
    repeated = " ".join(r["text"] for r in world.of("identity"))
    for concept in world.task.concepts:
        for a, b in world.task.directions():
            line = f"{names[a]} {concept.words[a]} {names[b]} {concept.words[b]}"
            assert shown.count(line) == (2 if concept.group == TRAIN else 0)
        for lang, word in concept.words.items():
            assert f" {repeated} ".count(f" {names[lang]} {word} {names[lang]} {word} ") == 2


def test_pivots_stand_beside_their_words_at_the_documents_rate() -> None:
    settings = dataclasses.replace(SMALL, two_token_share=0.0, document_tokens=64)
    plan = plan_world(settings, SEED)
    for lang in range(3):
        pool = draw_pool(plan, settings, lang, 6000, generator(1, lang))
        mean = settings.pivot_alpha / (settings.pivot_alpha + settings.pivot_beta)
        assert pool.rate.mean() == pytest.approx(mean, abs=0.01)
        assert np.median(pool.rate) == pytest.approx(0.03, abs=0.01)
        assert np.bincount(pool.topic, minlength=4).min() > 1300
        owner = np.full(len(plan.vocabulary), -1)
        for concept in np.flatnonzero(plan.pivots[lang, :, 0] >= 0):
            owner[plan.pivots[lang, concept, 0]] = concept
        with_pivot = plan.words[lang, np.flatnonzero(plan.pivots[lang, :, 0] >= 0), 0]
        is_word = np.isin(pool.tokens, with_pivot)
        is_pivot = owner[pool.tokens] >= 0
        # One pivot per word that brings one: their share follows the rate, document by document.
        share = is_pivot.sum(1) / np.maximum(1, is_word.sum(1))
        assert np.corrcoef(share, pool.rate)[0, 1] > 0.9
        assert is_pivot.sum() / is_word.sum() == pytest.approx(mean, abs=0.02)
        row, column = np.nonzero(is_pivot)
        word = np.append(plan.words[lang, :, 0], -5)[owner[pool.tokens[row, column]]]
        padded = np.pad(pool.tokens, ((0, 0), (1, 1)), constant_values=-9)
        before, after = padded[row, column] == word, padded[row, column + 2] == word
        noise = settings.pivot_noise
        assert (before | after).mean() == pytest.approx(1 - noise, abs=0.015)
        assert before.mean() / (before.mean() + after.mean()) == pytest.approx(0.5, abs=0.03)


def test_names_stand_beside_one_word_and_do_not_follow_the_pivot_rate() -> None:
    settings = dataclasses.replace(SMALL, name_rate=0.3)
    plan = plan_world(settings, SEED)
    pool = draw_pool(plan, settings, 0, 8000, generator(2))
    named = np.flatnonzero(plan.decoys[0] >= 0)
    n_names = np.isin(pool.tokens, plan.decoys[0, named]).sum(1)
    n_words = np.isin(pool.tokens, plan.words[0, named, 0]).sum(1)
    assert n_names.sum() / n_words.sum() == pytest.approx(0.3, abs=0.03)
    some = n_words > 0
    assert abs(np.corrcoef(n_names[some] / n_words[some], pool.rate[some])[0, 1]) < 0.06
    assert not np.isin(plan.decoys[1:][plan.decoys[1:] >= 0], pool.tokens).any()


def test_held_out_words_are_as_frequent_as_training_ones() -> None:
    settings = dataclasses.replace(WorldSettings(), pool_documents=3)
    plan = plan_world(settings, SEED)
    weight = np.empty((3, 320))
    for lang, topic in itertools.product(range(3), range(8)):
        weight[lang, plan.by_rank[lang, topic]] = np.arange(1, 41.0) ** -0.8
    groups = np.asarray(plan.cells)
    overall = np.log(weight).mean()
    for cell in (TRAIN, *CELLS):
        assert np.log(weight[:, groups == cell]).mean() == pytest.approx(overall, abs=0.3)
    # Frequency in one language says nothing about frequency in another, unless it is asked to.
    assert abs(np.corrcoef(np.log(weight[0]), np.log(weight[1]))[0, 1]) < 0.2
    shared = plan_world(dataclasses.replace(settings, shared_frequency=True), SEED)
    assert (shared.by_rank == shared.by_rank[0]).all()


def test_broken_world_keeps_density_and_topics_but_no_tie() -> None:
    settings = dataclasses.replace(WorldSettings(), broken_pivots=True)
    plan = plan_world(settings, SEED)
    for lang in range(3):
        held = plan.pivots[lang, :, 0] >= 0
        assert held.sum() == len(set(plan.pivots[lang, held, 0])) == settings.pivots
        for topic in range(8):
            here = held & (plan.topic == topic)
            assert set(plan.pivots[lang, here, 0]) == set(plan.pivots[0, here, 0])
    both = plan.pivots[0] >= 0
    for a, b in itertools.combinations(range(3), 2):
        assert not (plan.pivots[a, both] == plan.pivots[b, both]).any()


@pytest.mark.parametrize("broken", [False, True])
def test_shared_pivots_belong_to_several_concepts_of_one_topic(broken: bool) -> None:
    settings = dataclasses.replace(
        WorldSettings(), pivots_per_concept=3, concepts_per_pivot=4, broken_pivots=broken
    )
    plan = plan_world(settings, SEED)
    for lang in range(3):
        own = plan.pivots[lang]
        held = np.flatnonzero(own[:, 0] >= 0)
        assert len(held) == settings.pivots
        assert (np.diff(np.sort(own[held], axis=1), axis=1) > 0).all()
        concepts = {p: np.flatnonzero((own == p).any(axis=1)) for p in np.unique(own[held])}
        assert all(len(set(plan.topic[found])) == 1 for found in concepts.values())
        for topic in range(8):
            sizes = [len(found) for found in concepts.values() if plan.topic[found[0]] == topic]
            n = int((plan.topic[held] == topic).sum())
            assert len(sizes) == -(-n * 3 // 4)
            assert sum(sizes) == 3 * n
            assert max(sizes) == 4
            assert min(sizes) >= 2
    same = (np.sort(plan.pivots[0], axis=1) == np.sort(plan.pivots[1], axis=1)).all(axis=1)
    assert same[held].all() != broken
    pool = draw_pool(plan, settings, 0, 4000, generator(1))
    beside = set(pool.tokens[np.isin(pool.tokens, plan.pivots[0][held])].tolist())
    assert beside == set(plan.pivots[0][held].ravel().tolist())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"pivots": 39}, "pivots"),
        ({"pivots": 281}, "pivots"),
        ({"training_per_topic": 40}, "training_per_topic"),
        ({"languages": 7}, "languages"),
        ({"function_share": 0.95}, "function_share"),
        ({"names_per_language": 129}, "names_per_language"),
        ({"max_pair_count": 0}, "max_pair_count"),
        ({"pairs_per_document": 17}, "pairs_per_document"),
        ({"pivot_alpha": 0.0}, "pivot_alpha"),
    ],
)
def test_impossible_settings_name_their_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=f"^{key}: found"):
        dataclasses.replace(WorldSettings(), **changes)


def test_other_shapes_of_world_work(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, languages=6, topics=1, pivots=2, names_per_language=0)
    settings = dataclasses.replace(settings, neutral_share=0.0, hubs_per_topic=0)
    run_world(dataclasses.replace(settings, pool_documents=12), tmp_path / "six", 1)
    assert len(read_task(tmp_path / "six" / "task.yaml").directions()) == 30


@given(st.data())
def test_lay_out_equals_plain_concatenation(data: st.DataObject) -> None:
    n, n_units, slots = (data.draw(st.integers(1, 5)) for _ in range(3))
    width = data.draw(st.integers(1, 12))
    cell = st.integers(-1, 9)
    units = np.array(
        data.draw(st.lists(cell, min_size=n * n_units * slots, max_size=n * n_units * slots)),
        dtype=np.int32,
    ).reshape(n, n_units, slots)
    filler = np.full((n, width), 77, dtype=np.int32)
    expected = []
    for row in units.tolist():
        tokens: list[int] = []
        for unit in row:
            unit = [token for token in unit if token >= 0]
            if len(tokens) + len(unit) > width:
                break
            tokens += unit
        expected.append(tokens + [77] * (width - len(tokens)))
    assert lay_out(units, filler).tolist() == expected


@given(st.lists(st.integers(0, 15), max_size=8), st.integers(1, 5))
def test_spread_deals_each_item_into_different_bins(counts: list[int], per_bin: int) -> None:
    bins = spread(np.array(counts, dtype=np.int64), per_bin)
    assert all(len(set(items)) == len(items) for items in bins)
    assert Counter(chain.from_iterable(bins)) == Counter({i: n for i, n in enumerate(counts) if n})
    assert all(bins)


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=5), max_size=20))
def test_pack_keeps_units_whole_and_in_order(units: list[list[int]]) -> None:
    documents = pack(units, 6)
    assert all(1 <= len(document) <= 6 for document in documents)
    assert list(chain(*documents)) == list(chain(*units))
