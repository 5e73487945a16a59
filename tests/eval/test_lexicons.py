"""Readers of dictionaries: what they yield, what they quarantine, how they tell formats."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.glosses import gloss_words
from eval.lexicons import BadLine, Entry, detect_format, languages_of, read_entries
from mining.common.errors import InputError

WORDS = st.text(st.sampled_from("abcäéñ犬猫書くв"), min_size=1, max_size=6)


def entries(path: Path, name: str, *languages: str | None) -> list[Entry | BadLine]:
    first, second = languages or (None, None)
    return list(read_entries(path, name, first, second))


@given(
    rows=st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["\t", " ", "  ", " \t "])), min_size=1),
    bad=st.sampled_from(["one", "a b c", "a\tb\tc", "\tb", "a\t"]),
    place=st.integers(0, 20),
)
def test_pairs(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    bad: str,
    place: int,
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "en-de.txt"
    lines = [f"{a}{gap}{b}" for a, b, gap in rows]
    place = min(place, len(lines))
    lines.insert(place, bad)
    path.write_text("\n".join(lines) + "\n\n", "utf-8")
    found = entries(path, "pairs", "en", "de")
    (wrong,) = (item for item in found if isinstance(item, BadLine))
    assert (wrong.line, wrong.raw) == (place + 1, bad)
    assert [(e.source, e.target) for e in found if isinstance(e, Entry)] == [
        (a, b) for a, b, _ in rows
    ]


GLOSS = st.lists(
    st.tuples(
        st.sampled_from(["", "to ", "a ", "the "]),
        st.text("bcdfgh", min_size=2, max_size=5),
        st.sampled_from(["", " (of sth)", " [note]"]),
    ),
    min_size=1,
    max_size=3,
)


@given(
    words=st.lists(
        st.tuples(
            WORDS, WORDS, st.sampled_from(["gou3", "Bei3 jing1"]), st.lists(GLOSS, min_size=1)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_cedict_equals_what_the_lines_were_made_from(
    tmp_path_factory: pytest.TempPathFactory,
    words: list[tuple[str, str, str, list[list[tuple[str, str, str]]]]],
) -> None:
    path = tmp_path_factory.mktemp("cedict") / "cedict_ts.u8"
    lines, expected = ["# CC-CEDICT"], []
    for traditional, simplified, pinyin, glosses in words:
        # A note at a sense of its own, which counts as a sense but translates nothing.
        texts = ["; ".join(a + word + z for a, word, z in parts) for parts in glosses]
        lines.append(f"{traditional} {simplified} [{pinyin}] /{'/'.join(texts)}/CL:個|个[ge4]/")
        for sense, parts in enumerate(glosses, start=1):
            for before, word, _ in parts:
                pos = "name" if pinyin[0] == "B" else "verb" if before == "to " else ""
                expected.append(Entry("zh", simplified, "en", word, pos, sense, ""))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert detect_format(path) == "cedict"
    assert entries(path, "cedict") == expected


def test_cedict_quarantines_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "cedict.txt"
    path.write_text("狗 狗 [gou3] /dog/\n貓 猫 [mao1]\n", "utf-8")
    assert detect_format(path) == "cedict"
    good, bad = entries(path, "cedict")
    assert isinstance(good, Entry)
    assert good.target == "dog"
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.raw) == (2, "貓 猫 [mao1]")


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        ("to run (a business)", [("run", True)]),
        ("dog; hound", [("dog", False), ("hound", False)]),
        ("the (big (red)) dog", [("dog", False)]),
        ("fig. foundation", [("foundation", False)]),
        ("CL:隻|只[zhi1],條|条[tiao2]", []),
        ("see 開花|开花[kai1 hua1]", []),
        ("see", [("see", False)]),
        ("old variant of 狗[gou3]", []),
        ("surname Ma", []),
        ("(idiom)", []),
        ("also pr. [zhe2]", []),
        ("to see; see also 看", [("see", True)]),
        ("an apple", [("apple", False)]),
        ("used as a prefix", []),
    ],
)
def test_glosses(gloss: str, expected: list[tuple[str, bool]]) -> None:
    assert list(gloss_words(gloss)) == expected


def test_table_and_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "en-fr.tsv"
    lines = [b"source\ttarget\tpos\tsense", b"dog\tchien\tnoun\t1", b"cat\tchat\tn\t0", b"a\tb"]
    lines += [b"\tx\t\t1", b"caf\xe9\tcaf\t\t1", b"eat\tmanger\tVerb\t2", b""]
    path.write_bytes(b"\r\n".join(lines))
    assert detect_format(path) == "table"
    assert languages_of(path) == ("en", "fr")
    found = entries(path, "table", "en", "fr")
    assert [e for e in found if isinstance(e, Entry)] == [
        Entry("en", "dog", "fr", "chien", "noun", 1, ""),
        Entry("en", "eat", "fr", "manger", "verb", 2, ""),
    ]
    bad = [item for item in found if isinstance(item, BadLine)]
    assert [(b.line, b.reason.split(",")[0]) for b in bad] == [
        (3, "sense is '0'"),
        (4, "found 2 columns"),
        (5, "a word is empty"),
        (6, "not UTF-8 at byte 3"),
    ]
    assert bad[-1].raw.startswith("caf\\xe9")


WIKTEXTRACT = [
    {
        "word": "bank", "lang_code": "en", "pos": "noun",
        "senses": [
            {"glosses": ["An institution"]},
            {"glosses": ["river edge"], "translations": [{"code": "de", "word": "Ufer"}]},
        ],
        "translations": [
            {"code": "de", "word": "Bank", "sense": "institution"},
            {"code": "cmn", "word": "銀行 / 银行", "sense": "institution"},
            {"lang_code": "fr", "word": "rive", "sense": "edge of river"},
            {"code": "fr", "sense": "no word"},
            {"code": "zh", "word": "岸邊", "sense": "x", "tags": ["Traditional-Chinese"]},
        ],
    },
    {
        "word": "laufen", "lang_code": "de", "pos": "verb",
        "senses": [
            {"glosses": ["to run", "to run, jog"]},
            {"glosses": ["plural of x"], "tags": ["form-of"]},
            {"glosses": ["to move forward on foot at some speed, as in a race"]},
        ],
    },
    {"title": "Thesaurus:dog", "redirect": "x"},
]  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_wiktextract(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / ("wiktionary.jsonl.gz" if compressed else "wiktionary.jsonl")
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in WIKTEXTRACT)
    text += '{"word": "torn"\n{"word": 3, "lang_code": "en"}\n'
    data = text.encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert detect_format(path) == "wiktextract"
    found = entries(path, "wiktextract")
    assert [e for e in found if isinstance(e, Entry)] == [
        Entry("en", "bank", "de", "Bank", "noun", 1, "institution"),
        Entry("en", "bank", "zh", "银行", "noun", 1, "institution"),
        Entry("en", "bank", "fr", "rive", "noun", 2, "edge of river"),
        Entry("en", "bank", "de", "Ufer", "noun", 3, "river edge"),
        Entry("de", "laufen", "en", "run", "verb", 1, ""),
        Entry("de", "laufen", "en", "jog", "verb", 1, ""),
    ]
    assert [b.line for b in found if isinstance(b, BadLine)] == [4, 5]


def test_damaged_and_nameless_files_are_errors(tmp_path: Path) -> None:
    cut = tmp_path / "en-de.txt.gz"
    cut.write_bytes(gzip.compress(b"dog Hund\n" * 10000)[:-20])
    with pytest.raises(InputError, match="not readable to the end"):
        entries(cut, "pairs", "en", "de")
    with pytest.raises(InputError, match="no such file"):
        entries(tmp_path / "nothing", "cedict")
    with pytest.raises(InputError, match="which languages"):
        entries(cut, "pairs")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# only this\n")
    with pytest.raises(InputError, match="no line to tell"):
        detect_format(empty)
    other = tmp_path / "other"
    for line in ("id,pos,class,en,es", "id\tpos\ten\tes", "three words here"):
        other.write_text(line + "\n", "utf-8")
        with pytest.raises(InputError, match=r"other:1: found '.*expected two words, "):
            detect_format(other)
    other.write_bytes("id\tpos\tclass\ten".encode("utf-16"))
    with pytest.raises(InputError, match=r"other:1: not UTF-8 .*save the file as UTF-8"):
        detect_format(other)
    other.write_text("\ufeffpos\tclass\ten \tid\r\n", "utf-8")
    assert detect_format(other) == "concepts"
    with pytest.raises(InputError, match="expected the header"):
        entries(empty, "table", "en", "de")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("en-de.txt", ("en", "de")),
        ("en-de.0-5000.txt", ("en", "de")),
        ("fra-eng.tsv.gz", ("fra", "eng")),
        ("cedict_ts.u8", None),
        ("read-only-list.txt", None),
    ],
)
def test_languages_of_names(name: str, expected: tuple[str, str] | None) -> None:
    assert languages_of(Path(name)) == expected


def test_lines_without_end_and_halves_of_characters_are_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "en-de.txt.gz"
    path.write_bytes(gzip.compress(b"dog Hund\n" + b"x" * (17 << 20) + b"\ncat Katze\n"))
    found = entries(path, "pairs", "en", "de")
    assert [type(item) for item in found] == [Entry, BadLine, Entry]
    assert found[1].reason.startswith(f"{17 << 20} bytes")
    assert len(found[1].raw) <= 500
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"word": "\\ud800", "lang_code": "en", "translations": [{"word": "x", "code": "de"}]}\n'
        '{"word": "dog", "lang_code": "en", "translations": [{"word": "Hund", "code": "de"}]}\n'
    )
    first, second = entries(path, "wiktextract")
    assert (first.line, first.reason.startswith("not a Wiktextract word")) == (1, True)
    assert second.target == "Hund"


def test_lines_that_are_no_word_are_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    word = {"word": "a", "lang_code": "en", "senses": [{"glosses": ["b"]}]}
    lines: list[object] = [["word", "lang_code"], "word lang_code", {**word, "pos": "\ud800"}]
    lines += [{**word, "lang_code": 5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = list(read_entries(path, "wiktextract", None, "de"))
    assert [item.line for item in found if isinstance(item, BadLine)] == [1, 2, 3, 4]
    assert len(found) == 4
    path.write_text("source\ttarget\tpos\tsense\na\tb\tn\t" + "9" * 5000 + "\n")
    assert all(isinstance(item, BadLine) for item in read_entries(path, "table", "en", "de"))


def test_a_gloss_of_many_brackets_takes_no_time() -> None:
    start = time.monotonic()
    list(gloss_words("(" * 200_000 + "a" + ")" * 200_000))
    assert time.monotonic() - start < 5  # a second time for each pair would take minutes
