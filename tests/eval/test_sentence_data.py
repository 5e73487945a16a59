"""Reading parallel sentences: both layouts, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.sentence_data import read_sentences
from eval.sentence_settings import SentencesSettings
from mining.common.errors import InputError, SettingsError


def flores(root: Path, files: dict[str, str], split: str = "dev") -> Path:
    (root / split).mkdir(parents=True)
    for name, text in files.items():
        (root / split / f"{name}.{split}").write_bytes(text.encode())
    return root


def test_flores_folders_of_both_generations(tmp_path: Path) -> None:
    # A line separator of Unicode is a part of a sentence, and so is a byte order mark of nothing.
    files = {"eng_Latn": "A\u2028a.\nB.\n", "fra_Latn": "\ufeffUn.\r\nDeux.\r\n"}
    old = flores(tmp_path / "old", {**files, "zho_Hans": "一\n二"})
    new = flores(tmp_path / "new", {**files, "cmn_Hans": "一\n二\n"}, "devtest")
    for path, split in ((old, "dev"), (new, "devtest")):
        found, _ = read_sentences(SentencesSettings(str(path), split, ("en", "fr", "zh")))
        assert found == {"en": ["A\u2028a.", "B."], "fr": ["Un.", "Deux."], "zh": ["一", "二"]}


def test_a_language_that_nobody_listed(tmp_path: Path) -> None:
    path = flores(tmp_path, {"eng_Latn": "A.\nB.\n", "oci_Latn": "C.\nD.\n"})
    settings = SentencesSettings(
        str(path), languages=("en", "oc"), files={"oc": "oci_Latn"}, names={"oc": "Occitan"}
    )
    assert read_sentences(settings)[0]["oc"] == ["C.", "D."]
    assert settings.name("oc") == "Occitan"


def test_tsv_columns_in_any_order_and_quotes_are_text(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text('fr\tid\tenglish\n"Un\t1\tOne"\nDeux\t2\tTwo\nTrois\t3\tThree\n')
    settings = SentencesSettings(
        str(path), languages=("en", "fr"), files={"en": "english"}, max_sentences=2
    )
    assert read_sentences(settings) == ({"en": ['One"', "Two"], "fr": ['"Un', "Deux"]}, 0)


def test_long_sentences_are_left_out_in_every_language(tmp_path: Path) -> None:
    path = flores(tmp_path, {"eng_Latn": "a\nbb\ncccc\nd\ne\n", "fra_Latn": "a\nbbb\nc\nd\ne\n"})
    settings = SentencesSettings(str(path), languages=("en", "fr"), max_chars=2, max_sentences=2)
    assert read_sentences(settings) == ({"en": ["a", "d"], "fr": ["a", "d"]}, 2)
    (path / "dev" / "fra_Latn.dev").write_text("aaa\n" * 4 + "e\n")
    with pytest.raises(InputError, match="found 1 sentences of at most 2 characters"):
        read_sentences(settings)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"eng_Latn": "A\nB\n", "fra_Latn": "C\n"}, r"eng_Latn\.dev 2, fra_Latn\.dev 1"),
        ({"eng_Latn": "A\n\nB\n", "fra_Latn": "C\nD\nE\n"}, r"eng_Latn\.dev:2: an empty line"),
        ({"eng_Latn": "A\nB\n"}, r"no fra_Latn\.dev for the language 'fr' .*1 files"),
        ({"eng_Latn": "A\n", "fra_Latn": "B\n"}, "found 1 sentences, expected at least 2"),
        ({"eng_Latn": "", "fra_Latn": ""}, r"eng_Latn\.dev:1: an empty line"),
    ],
)
def test_damaged_folders_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    path = flores(tmp_path, files)
    with pytest.raises(InputError, match=message):
        read_sentences(SentencesSettings(str(path), languages=("en", "fr")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"en\tzh\nA\tB\n", r"s\.tsv:1: no column 'fr' .* among en, zh"),
        (b"en\tfr\nA\tB\nC\n", r"s\.tsv:3: found 1 columns, expected 2"),
        (b"en\tfr\nA\tB\nC\t \n", r"s\.tsv:3: the sentence of 'fr' is empty"),
        (b"en\tfr\nA\t\xff\n", r"s\.tsv: not UTF-8 at byte 8"),
        (b"en\tfr\n", "found 0 sentences"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "s.tsv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=message):
        read_sentences(SentencesSettings(str(path), languages=("en", "fr")))


def test_missing_places_are_named(tmp_path: Path) -> None:
    flores(tmp_path, {"eng_Latn": "A\nB\n"}, "devtest")
    with pytest.raises(InputError, match=r"no part 'dev' .*devtest"):
        read_sentences(SentencesSettings(str(tmp_path)))
    with pytest.raises(InputError, match="no such file or folder"):
        read_sentences(SentencesSettings(str(tmp_path / "nothing")))
    with pytest.raises(SettingsError, match="path: found null"):
        read_sentences(SentencesSettings())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"languages": ("en",)}, "languages: .*at least two"),
        ({"languages": ("en", "xx")}, "languages: .*sentences.names"),
        ({"directions": ("en-de",)}, "directions: .*pairs of en, fr"),
        ({"directions": ("en-fr", "en-fr")}, "directions: .*twice"),
        ({"max_sentences": 1}, "max_sentences: found 1"),
        ({"length_factor": 0.0}, "length_factor"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_settings_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SentencesSettings(**fields)  # type: ignore[arg-type]


@pytest.mark.shared_data
def test_the_shared_sentences_are_whole(shared: Path) -> None:
    found, _ = read_sentences(SentencesSettings(str(shared / "parallel" / "pud.tsv")))
    assert {lang: len(lines) for lang, lines in found.items()} == dict.fromkeys(
        ("en", "fr", "zh", "ja"), len(found["en"])
    )
    assert len(found["en"]) > 400
