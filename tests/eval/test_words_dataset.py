"""The shipped word list: what its data card says is true, checked also against dictionaries."""

from __future__ import annotations

import csv
import itertools
import re
import unicodedata
from collections import Counter

import pytest

from eval.lexicon_check import agreement, read_folder, same_class
from eval.lexicon_index import LexiconIndex, ambiguous_pairs
from eval.surface import form_difficulty
from launch.pipeline import find_task
from mining.common.task import N_DISTRACTORS, Task, read_task
from tests.conftest import REPOSITORY, SHARED

TASK = find_task("words")
LANGS = ("en", "fr", "zh", "ja")
MIN_CLASS = 13  # a concept and at least twelve siblings
CARD = REPOSITORY / "docs" / "WORDS.md"


@pytest.fixture(scope="module")
def task() -> Task:
    return read_task(TASK)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (TASK.parent / "words.tsv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_size_and_parts_of_speech(task: Task) -> None:
    assert len(task.concepts) == 2000
    assert tuple(task.languages) == LANGS
    shares = Counter(concept.pos for concept in task.concepts)
    assert set(shares) == {"noun", "verb", "adj"}
    assert 0.5 <= shares["noun"] / 2000 <= 0.7
    assert min(shares.values()) >= 250
    card = CARD.read_text(encoding="utf-8")
    for pos, name in (("noun", "nouns"), ("verb", "verbs"), ("adj", "adjectives")):
        assert f"{shares[pos]:,} {name}" in card
    classes = Counter((concept.pos, concept.cls) for concept in task.concepts)
    assert f"{len(classes)} classes of {min(classes.values())} to {max(classes.values())}" in card
    assert min(classes.values()) >= MIN_CLASS, classes.most_common()[-3:]
    assert len({cls for _, cls in classes}) == len(classes)


def test_words_are_single_and_normalised(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert re.fullmatch(r"[a-z][a-z-]*", row["id"])
        for lang in LANGS:
            forms = [row[lang], *filter(None, row[f"{lang}_alt"].split(";"))]
            assert len(set(forms)) == len(forms), (row["id"], lang)
            for form in forms:
                assert unicodedata.normalize("NFC", form) == form
                assert form == form.strip()
            word = row[lang]
            assert not re.search(r"\s", word), (row["id"], word)
            names = [unicodedata.name(letter) for letter in word if letter not in "-'"]
            scripts = {name.split()[0] for name in names}
            if lang in ("en", "fr"):
                assert scripts == {"LATIN"}, (row["id"], word)
                assert word == word.lower()
            elif lang == "zh":
                assert scripts == {"CJK"}, (row["id"], word)
            else:
                known = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"}
                assert scripts <= known, (row["id"], word)


def test_identical_and_homonymous_words_are_marked(rows: list[dict[str, str]]) -> None:
    counts = {lang: Counter(row[lang].casefold() for row in rows) for lang in LANGS}
    for row in rows:
        pairs = [f"{a}-{b}" for a, b in itertools.combinations(LANGS, 2) if row[a] == row[b]]
        assert row["identical"] == ";".join(pairs), row["id"]
        shared = [lang for lang in LANGS if counts[lang][row[lang].casefold()] > 1]
        assert row["homonym"] == ";".join(shared), row["id"]
    marks = Counter(mark for row in rows for mark in row["identical"].split(";") if mark)
    card = CARD.read_text(encoding="utf-8")
    for pair, count in marks.items():
        assert f"| {pair.replace('-', ', ')} | {count} | {count / len(rows):.1%} |" in card


def test_nine_distractors_of_the_same_class_none_of_them_right(task: Task) -> None:
    owner = {lang: {(c.pos, c.cls, c.words[lang]): c for c in task.concepts} for lang in LANGS}
    for source, target in task.directions():
        for concept in task.concepts:
            words = task.distractors(source, target, concept)
            assert len(words) == len(set(words)) == N_DISTRACTORS, (concept.id, source, target)
            assert not {word.casefold() for word in words} & concept.forms(target)
            for word in words:
                sibling = owner[target].get((concept.pos, concept.cls, word))
                assert sibling is not None, (concept.id, word)
                assert not sibling.forms(source) & concept.forms(source)


def test_what_letters_alone_give_away(task: Task) -> None:
    card = CARD.read_text(encoding="utf-8")
    names = {
        ("en", "fr"): "English to French",
        ("fr", "en"): "French to English",
        ("zh", "ja"): "Chinese and Japanese, both ways",
        ("ja", "zh"): "Chinese and Japanese, both ways",
    }
    for source, target in task.directions():
        found = [
            form_difficulty(
                [c.words[source], *task.distractors(target, source, c)], c.words[target]
            )
            for c in task.concepts
            if c.words[source] != c.words[target]
        ]
        mean = sum(value for value in found if value is not None) / len(found)
        name = names.get((source, target), "any other direction")
        assert f"| {name} | {mean:.2f} |" in card


@pytest.fixture(scope="module")
def index() -> LexiconIndex:
    return LexiconIndex(read_folder(SHARED / "lexicons"))


@pytest.mark.shared_data
@pytest.mark.parametrize("lang", ["fr", "ja"])
def test_dictionaries_agree(task: Task, index: LexiconIndex, lang: str) -> None:
    found = agreement(task, index, "en", lang)
    assert found.known > 1500
    assert found.main / found.known >= 0.9
    card = CARD.read_text(encoding="utf-8")
    for share in (found.main, found.any_form):
        assert f"{share:,} ({share / found.known:.1%})" in card


@pytest.mark.shared_data
def test_no_distractor_is_a_listed_translation(task: Task, index: LexiconIndex) -> None:
    pairs = ambiguous_pairs(task.concepts, task.languages, index)
    assert same_class(task, pairs).keys() == task.avoid
    for source, target in task.directions():
        for concept in task.concepts[::7]:
            listed = index.translations(source, target, concept.words[source])
            chosen = {word.casefold() for word in task.distractors(source, target, concept)}
            assert not chosen & set(listed), concept.id
