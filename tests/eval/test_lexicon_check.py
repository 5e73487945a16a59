"""The check of a task against dictionaries, and the pairs that it calls ambiguous."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.lexicon_check import agreement, main
from eval.lexicon_index import LexiconIndex, ambiguous_pairs, fold_word
from eval.lexicons import Entry
from mining.common.task import Concept, Task, read_task

ENTRIES = [
    Entry("en", "bank", "fr", "banque", "noun", 1, ""),
    Entry("fr", "rive", "en", "Bank", "noun", 1, ""),
    Entry("ja", "勉強", "en", "study", "noun", 1, ""),
    Entry("en", "shore", "fr", "côte", "", 1, ""),
]


def concept(name: str, fr: str, ja: str, pos: str = "noun", **alternatives: str) -> Concept:
    words = {"en": name, "fr": fr, "ja": ja}
    extra = {lang: tuple(filter(None, [alternatives.get(f"{lang}_alt")])) for lang in words}
    return Concept(name, pos, "place", words, extra)


def task(*concepts: Concept) -> Task:
    languages = {"en": "English", "fr": "French", "ja": "Japanese"}
    return Task("t", 1, "CC0-1.0", languages, "", "", "", " {target}", concepts)


def test_words_are_folded_for_look_ups() -> None:
    assert fold_word("E\u0301TUDE ", "fr") == "\u00e9tude"
    assert fold_word("勉強する", "ja") == fold_word("勉強", "ja")
    assert fold_word("する", "ja") == "する"
    assert fold_word("する", "zh") == "する"


def test_agreement_counts_known_words_in_both_directions_of_entries() -> None:
    found = agreement(
        task(
            concept("bank", "banque", "銀行"),
            concept("shore", "rive", "岸", fr_alt="Côte"),
            concept("study", "étude", "勉強する", "verb"),
        ),
        LexiconIndex(ENTRIES),
        "en",
        "fr",
    )
    # `study` is not known in French.
    assert (found.known, found.main, found.any_form) == (2, 1, 2)
    assert [(c.id, listed) for c, listed in found.disagreements] == [("shore", ("côte",))]
    japanese = agreement(
        task(concept("study", "étude", "勉強する")), LexiconIndex(ENTRIES), "en", "ja"
    )
    assert (japanese.known, japanese.main) == (1, 1)


def test_ambiguous_pairs_follow_every_language() -> None:
    bank, shore = concept("bank", "banque", "銀行"), concept("shore", "rive", "岸")
    verb = concept("stream", "rive", "流れる", "verb")
    found = ambiguous_pairs([bank, shore, verb], ["en", "fr", "ja"], LexiconIndex(ENTRIES))
    # Only en bank - fr rive is listed; the verb is of another part of speech.
    assert found == {
        ("en", "fr", "bank", "shore"): "direct",
        ("fr", "en", "shore", "bank"): "direct",
        ("en", "ja", "bank", "shore"): "through",  # bank means shore, so 岸 may translate it
        ("ja", "fr", "bank", "shore"): "through",  # rive means bank, so it may translate 銀行
        ("fr", "ja", "shore", "bank"): "through",
        ("ja", "en", "shore", "bank"): "through",
    }


def test_ambiguous_pairs_go_through_alternatives() -> None:
    bank = concept("bank", "banque", "銀行")
    shore = concept("shore", "littoral", "岸", fr_alt="rive")
    found = ambiguous_pairs([bank, shore], ["en", "fr"], LexiconIndex(ENTRIES))
    assert set(found) == {("en", "fr", "bank", "shore"), ("fr", "en", "shore", "bank")}


@pytest.mark.shared_data
def test_command_on_the_shipped_task(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("eval/tasks/words.yaml")
    avoid = tmp_path / "avoid.tsv"
    lexicons = ["--lexicons", str(shared / "lexicons")]
    assert main([str(path), *lexicons, "--avoid", str(avoid)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["languages"]["fr"] == {"known": 1585, "main": 1466, "main_or_alternative": 1526}
    assert last["languages"]["ja"] == {"known": 1989, "main": 1910, "main_or_alternative": 1971}
    lines = avoid.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + sum(last["ambiguous_pairs"].values())
    ids = {c.id for c in read_task(path).concepts}
    assert {field for line in lines[1:] for field in line.split("\t")[2:4]} <= ids


def test_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "eval/tasks/words.yaml"
    assert main([path, "--lexicons", str(tmp_path)]) == 3
    assert "no dictionary named like en-fr.tsv" in capsys.readouterr().err
    (tmp_path / "en-fr.tsv").write_text("source\ttarget\tpos\tsense\na\tb\t\tx\n")
    assert main([path, "--lexicons", str(tmp_path)]) == 3
    assert "en-fr.tsv:2: sense is 'x'" in capsys.readouterr().err
    assert main([path, "--lexicons", str(tmp_path), "--pivot", "de"]) == 3
    assert "--pivot de" in capsys.readouterr().err
