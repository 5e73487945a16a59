"""`build-task` end to end: what becomes a concept, what is dropped and why, the same bytes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from eval.build_draft import distractors_at_least
from eval.build_filters import add_classes
from eval.build_settings import BuildTaskSettings, JudgeSettings, LexiconSource
from eval.build_sources import is_single_word
from eval.build_task import run_build_task
from eval.lexicon_join import Candidate
from mining.common.errors import InputError, SettingsError
from mining.common.manifest import read_manifest
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.common.task import read_task
from tests.conftest import REPOSITORY, folder_bytes

GERMAN = REPOSITORY / "tests" / "data" / "german.tsv"
EN_DE = {"en": "English", "de": "German"}


def build(out: Path, sources: list[Path], mined: dict[str, Path] | None = None, **more: Any) -> Any:
    settings = BuildTaskSettings(tuple(LexiconSource(str(p)) for p in sources), **more)
    run_build_task(settings, out, mined or {}, out.parent / "cache")
    return read_task(out / "task.yaml")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def reasons(out: Path) -> dict[str, int]:
    found = Counter(row["reason"] for row in table(out / "dropped.tsv"))
    counts = read_manifest(out, "build-task").counts
    assert counts["dropped"] == found
    assert counts["candidates"] == counts["concepts"] + sum(found.values())
    return dict(found)


def test_list_of_a_new_language(tmp_path: Path) -> None:
    task = build(tmp_path / "a", [GERMAN], languages=EN_DE, name="german")
    assert len(task.concepts) == 50
    assert reasons(tmp_path / "a") == {}
    rabbit = next(c for c in task.concepts if c.id == "rabbit")
    assert (rabbit.words["de"], rabbit.cls) == ("Kaninchen", "animal")
    assert "bunny" in rabbit.alternatives["en"]
    for source, target in task.directions():
        for concept in task.concepts:
            words = set(task.distractors(source, target, concept))
            siblings = {c.words[target] for c in task.concepts if c.cls == concept.cls}
            assert len(words) == 9
            assert words < siblings
    build(tmp_path / "b", [GERMAN], languages=EN_DE, name="german")
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_lists_as_people_write_them(tmp_path: Path) -> None:
    """A byte order mark, line ends of Windows, other names of parts of speech, other columns."""
    plain = GERMAN.read_text("utf-8")
    theirs = tmp_path / "theirs.tsv"
    changed = plain.replace("\tnoun\t", "\tNoun\t").replace("\n", "\r\n")
    theirs.write_bytes(b"\xef\xbb\xbf" + changed.encode())
    for name, path in (("a", GERMAN), ("b", theirs)):
        build(tmp_path / name, [path], languages=EN_DE)
    tables = [(tmp_path / name / "concepts.tsv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    with pytest.raises(InputError, match=r"german\.tsv: no column es with words"):
        build(tmp_path / "c", [GERMAN], languages={"en": "English", "es": "Spanish"})
    theirs.write_text(plain.replace("\tde\t", "\ten\t", 1), "utf-8")
    with pytest.raises(InputError, match=r"theirs\.tsv:1: found the columns .* none twice"):
        build(tmp_path / "d", [theirs], languages=EN_DE)


def write_words(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{a} {b}\n" for a, b in pairs), "utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> list[Path]:
    """Dictionaries in MUSE's layout of twelve words a-l, and some that go wrong."""
    words = [(f"en{c}", f"de{c}") for c in "abcdefghijkl"]
    forth = [*words, ("oneway", "hin"), ("Name", "Name"), ("ena2", "dea"), ("r2d2", "x")]
    back = [(b, a) for a, b in words] + [("Name", "Name"), ("dea", "ena2")]
    first = write_words(tmp_path / "en-de.txt", forth)
    with first.open("a", encoding="utf-8") as handle:
        handle.write("three words here\n")
    return [first, write_words(tmp_path / "de-en.txt", back)]


def test_pairs_are_joined_and_what_is_dropped_is_told(pairs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    task = build(out, pairs, languages=EN_DE, pos=("word",))
    # `ena2` has a digit and is no candidate at all, as `r2d2`; no part of speech is known.
    assert {c.id for c in task.concepts} == {f"en{c}" for c in "abcdefghijkl"}
    assert {c.pos for c in task.concepts} == {"word"}
    assert reasons(out) == {"no translation": 1, "capitalised": 1}
    (bad,) = table(out / "quarantine.tsv")
    assert (bad["file"], bad["line"], bad["raw"]) == ("000-en-de.txt", "17", "three words here")
    counts = read_manifest(out).counts["sources"]
    assert [(c["format"], c["entries"], c["not_single_words"]) for c in counts] == [
        ("pairs", 14, 2),
        ("pairs", 13, 1),
    ]
    more = build(tmp_path / "all", pairs, languages=EN_DE, pos=("word",), single_words=False,
                 back_translation=False, lower_case=())  # fmt: skip
    assert {c.id for c in more.concepts} == {c.id for c in task.concepts} | {
        "oneway", "Name", "r2d2",
    }  # fmt: skip
    assert [r["detail"] for r in table(tmp_path / "all" / "dropped.tsv")] == [
        "de: dea is the word of ena"
    ]


def test_nothing_left_says_why(pairs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"en-de: 14, de-en: 13\) .*: 13, .* \(part of speech: word\)",
    ):
        build(tmp_path / "out", pairs, languages=EN_DE)
    with pytest.raises(InputError, match=r"distractors: 9, beyond.* \(too few distractors: 8 in"):
        build(tmp_path / "two", [write_words(pairs[0], [(f"a{c}", f"b{c}") for c in "abcdefghij"])],
              languages=EN_DE, pos=("word",), back_translation=False, min_distractors=9,
              max_concepts=9)  # fmt: skip
    with pytest.raises(InputError, match="no such file"):
        build(tmp_path / "three", [tmp_path / "nothing.txt"], languages=EN_DE)
    with pytest.raises(SettingsError, match=r"build_task\.sources"):
        build(tmp_path / "four", [], languages=EN_DE)
    with pytest.raises(SettingsError, match=r"build_task\.languages"):
        build(tmp_path / "five", pairs)


def test_dictionaries_fill_in_and_mark_ambiguity(tmp_path: Path) -> None:
    """A list with classes lacks a language; the dictionary has it, and says cat may be Hund."""
    lines = ["id\tpos\tclass\ten", *(f"x{c}\tnoun\tthing\ten{c}" for c in "abcdefghijklm")]
    listed = tmp_path / "list.tsv"
    listed.write_text("\n".join([*lines, "xz\tnoun\tthing\tunknown", "\tnoun\tthing\tx"]), "utf-8")
    rows = [f"en{c}\tde{c}\tnoun\t1" for c in "abcdefghijklm"] + ["ena\tdeb\tnoun\t2"]
    back = [f"de{c}\ten{c}\tnoun\t1" for c in "abcdefghijklm"]
    for name, content in (("en-de.tsv", rows), ("de-en.tsv", back)):
        header = "source\ttarget\tpos\tsense"
        (tmp_path / name).write_text("\n".join([header, *content]) + "\n", "utf-8")
    out = tmp_path / "out"
    sources = [listed, tmp_path / "en-de.tsv", tmp_path / "de-en.tsv"]
    task = build(out, sources, languages=EN_DE)
    assert {(c.id, c.words["de"], c.cls) for c in task.concepts} == {
        (f"x{c}", f"de{c}", "thing") for c in "abcdefghijklm"
    }
    assert reasons(out) == {"no translation": 1}
    assert [r["reason"] for r in table(out / "quarantine.tsv")] == ["id is empty"]
    assert task.avoid == {("en", "de", "xa", "xb"), ("de", "en", "xb", "xa")}
    assert "deb" not in task.distractors("en", "de", task.concepts[0])
    strict = build(tmp_path / "strict", sources, languages=EN_DE, max_senses=1)
    assert "xa" not in {c.id for c in strict.concepts}
    assert reasons(tmp_path / "strict") == {"no translation": 1, "too many senses": 1}


def test_distractors_are_counted_as_readers_of_the_task_take_them(tmp_path: Path) -> None:
    """Words that many have as an alternative: once they are taken, those others cannot be."""
    rows = [f"p{i}\tnoun\tthing\tenp{i}\tdep{i}\t" for i in range(9)]
    rows += [f"m{i}\tnoun\tthing\tenm{i}\tdem{i}\tdep{i % 2}" for i in range(14)]
    listed = tmp_path / "list.tsv"
    listed.write_text("\n".join(["id\tpos\tclass\ten\tde\tde_alt", *rows]), "utf-8")
    task = build(tmp_path / "out", [listed], languages=EN_DE, single_words=False,
                 min_distractors=0)  # fmt: skip
    bound = distractors_at_least(task)
    n = {(a, b, c.id): len(task.distractors(a, b, c))
         for a, b in task.directions() for c in task.concepts}  # fmt: skip
    assert min(n.values()) < 9
    assert all(n[key] >= min(9, bound[key]) for key in n)
    plain = build(tmp_path / "plain", [GERMAN], languages=EN_DE)
    assert min(distractors_at_least(plain).values()) >= 9  # so that nothing has to be ordered


def write_counts(folder: Path, doc_freq: dict[str, dict[str, int]], pairs: Any = ()) -> Path:
    run = begin("count", folder, {}, {})
    assert run is not None
    words = list(doc_freq)
    langs = sorted({lang for counts in doc_freq.values() for lang in counts})
    columns: dict[str, Any] = {"text": words}
    columns["doc_freq"] = [sum(doc_freq[w].values()) for w in words]
    for lang in langs:
        columns[f"doc_freq_{lang}"] = [doc_freq[w].get(lang, 0) for w in words]
    write_table(folder / "items.parquet", pa.table(columns))
    i, j, n = (np.array([p[k] for p in pairs], dtype=np.uint32) for k in range(3)) if pairs else (
        np.zeros(0, np.uint32) for _ in range(3)
    )  # fmt: skip
    write_table(folder / "pairs" / "00000.parquet", pa.table({"i": i, "j": j, "n": n}))
    run.finish({"documents": 1000, "unit": "word"})
    return folder


def test_frequencies_choose_and_filter(pairs: list[Path], tmp_path: Path) -> None:
    with pairs[0].open("a") as handle, pairs[1].open("a") as other:
        handle.write("ena dea-neu\n")
        other.write("dea-neu ena\n")
    freq = {f"{lang}{c}": {lang: 10} for lang in EN_DE for c in "abcdefghijkl"}
    freq |= {"dea-neu": {"de": 50}, "del": {"de": 2}}
    count = write_counts(tmp_path / "count", freq)
    task = build(tmp_path / "out", pairs, {"count": count}, languages=EN_DE, pos=("word",),
                 frequencies="count", min_doc_freq={"de": 5}, min_distractors=5)  # fmt: skip
    assert {c.words["de"] for c in task.concepts} == {"dea-neu", *(f"de{c}" for c in "bcdefghijk")}
    rare = [r for r in table(tmp_path / "out" / "dropped.tsv") if r["reason"] == "rare"]
    assert [r["detail"] for r in rare] == ["de: del in 2 documents"]

    run = begin("words", tmp_path / "words", {}, {})
    assert run is not None
    rows = [{"lang": "de", "word": "DEa", "doc_freq": 9, "doc_freq_own_lang": 7}]
    write_table(tmp_path / "words" / "words.parquet", pa.Table.from_pylist(rows))
    run.finish({})
    with pytest.raises(InputError, match=r"rare: 11, .*too few distractors: 1 \(rare: de: "):
        build(tmp_path / "few", pairs, {"words": tmp_path / "words"}, languages=EN_DE,
              pos=("word",), frequencies="words", min_doc_freq={"de": 7})  # fmt: skip


def test_counts_of_tokens_are_refused(pairs: list[Path], tmp_path: Path) -> None:
    run = begin("count", tmp_path / "count", {}, {})
    assert run is not None
    run.finish({"documents": 10, "unit": "token"})
    with pytest.raises(InputError, match="counts tokens, expected words"):
        build(tmp_path / "out", pairs, {"count": tmp_path / "count"}, languages=EN_DE,
              frequencies="count")  # fmt: skip


def test_classes_come_from_the_counts(tmp_path: Path) -> None:
    """Two topics of 13 words, mixed in the list; words of a topic share documents."""
    names = [f"w{chr(97 + i)}" for i in range(26)]
    listed = tmp_path / "list.tsv"
    lines = ["id\tpos\tclass\ten\tde", *(f"{n}\tnoun\t\ten{n}\tde{n}" for n in names)]
    listed.write_text("\n".join(lines), "utf-8")
    items = [f"{lang}{n}" for n in names for lang in ("en", "de")]
    same_topic = [
        (i, j, 60 if (i // 2) % 2 == (j // 2) % 2 else 1 + (i + j) % 3)
        for i in range(len(items))
        for j in range(i + 1, len(items))
    ]
    freq = {item: {item[:2]: 200} for item in items}
    count = write_counts(tmp_path / "count", freq, same_topic)
    task = build(tmp_path / "out", [listed], {"count": count}, languages=EN_DE,
                 frequencies="count", dimensions=4)  # fmt: skip
    classes: dict[str, set[str]] = {}
    for concept in task.concepts:
        classes.setdefault(concept.cls, set()).add(concept.id)
    assert sorted(classes) == ["noun-001", "noun-002"]
    assert {frozenset(members) for members in classes.values()} == {
        frozenset(names[0::2]),
        frozenset(names[1::2]),
    }


def test_given_classes_stay_and_without_vectors_the_part_of_speech_is_the_class() -> None:
    candidates = [Candidate("noun", {}, {}, cls="animal"), Candidate("verb", {}, {})]
    assert [c.cls for c in add_classes(candidates, None, 13)] == ["animal", "verb"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dog", True), ("mother-in-law", True), ("aujourd'hui", True), ("コーヒー", True),
        ("हिन्दी", True), ("two words", False), ("-ing", False), ("r2d2", False), ("", False),
        ("3", False), ("é", True), ("d'", False), ("می\u200cخواهم", True), ("\u200cخ", False),
    ],
)  # fmt: skip
def test_single_words(word: str, expected: bool) -> None:
    assert is_single_word(word) == expected


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"languages": {"en": "English"}}, "languages"),
        ({"languages": EN_DE, "pivot": "fr"}, "pivot"),
        ({"languages": {"en": "English", "id": "Indonesian"}}, "languages"),
        ({"languages": {"en": "English", False: "Norwegian"}}, "languages"),
        ({"min_doc_freq": {"en": 5}}, "frequencies"),
        ({"languages": EN_DE, "frequencies": "count", "min_doc_freq": {"fr": 5}}, "min_doc_freq"),
        ({"max_senses": 0}, "max_senses"),
        ({"min_distractors": 10}, "min_distractors"),
        ({"pos": ()}, "pos"),
    ],
)
def test_impossible_settings(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as error:
        BuildTaskSettings(**wrong)
    assert error.value.key == key


def test_judge_needs_a_model() -> None:
    with pytest.raises(SettingsError, match="a name where url is set"):
        JudgeSettings(url="http://localhost/v1")
    with pytest.raises(SettingsError, match="http://"):
        JudgeSettings(url="localhost:8000", model="m")


def pivots(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_new_language_through_the_command_line(
    tmp_path: Path, byte_bpe: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    """A list of 50 German words: built, then scored, without a line of code."""
    config = str(REPOSITORY / "configs" / "smoke" / "build_task_de.yaml")
    out = tmp_path / "run"
    done = pivots("build-task", "--config", config, "--out", str(out))
    assert done.returncode == 0, done.stderr
    path = out / "build-task" / "task.yaml"
    assert done.stdout.strip() == f"task: {path}"
    assert pivots("verify", str(out / "build-task")).returncode == 0

    tokenizer = byte_bpe(["dog Hund English German"], 280)
    model = tmp_path / "byte-bpe"
    tiny_model("llama", tokenizer.vocab_size).save_pretrained(model)
    done = pivots(
        "evaluate", "--out", str(out), "--task", str(path), "--only", '["tiny"]',
        "--models", json.dumps({"tiny": str(model)}), "--evaluate.draws", "1",
        "--evaluate.examples", "2", "--evaluate.bootstrap_samples", "20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    items = pd.read_parquet(out / "evaluate" / "tiny" / "0" / "items.parquet")
    assert len(items) == 100
    assert Counter(zip(items["source_lang"], items["target_lang"], strict=True)) == {
        ("en", "de"): 50,
        ("de", "en"): 50,
    }
    assert (items["n_distractors"] == 9).all()
    assert items["score"].notna().all()


@pytest.mark.shared_data
@pytest.mark.slow
def test_three_languages_from_real_dictionaries(shared: Path, tmp_path: Path) -> None:
    """FreeDict and EDICT join into over 1,000 concepts that agree with the list we wrote."""
    sources = sorted((shared / "lexicons").rglob("*.tsv"))
    languages = {"en": "English", "fr": "French", "ja": "Japanese"}
    out = tmp_path / "out"
    task = build(out, sources, languages=languages)
    assert len(task.concepts) >= 1000
    reasons(out)
    for lang in languages:
        assert len({c.words[lang].casefold() for c in task.concepts}) == len(task.concepts)
    ours = {
        (c.words["en"], c.pos): c
        for c in read_task(REPOSITORY / "eval" / "tasks" / "words.yaml").concepts
    }
    both = [(c, ours[c.id, c.pos]) for c in task.concepts if (c.id, c.pos) in ours]
    best = [
        c.words[lang].casefold() in mine.forms(lang) for c, mine in both for lang in ("fr", "ja")
    ]
    assert len(both) > 100
    assert np.mean(best) > 0.9
