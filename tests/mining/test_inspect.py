"""Items pointed at in documents; the command itself is tested in the chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from mining.inspect_documents import Documents
from mining.inspect_text import MARK, _marked
from tests.mining.test_word_lists import byte_level_tokenizer

TEXTS = ["the cat sat on the table", "猫が犬を見た。\n\n黒猫は大きい", "l'été à Zürich, naïve 42!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_tokenizer(tmp_path_factory.mktemp("bpe") / "tokenizer", TEXTS * 3, 300)


@settings(max_examples=60)
@given(data=st.data())
def test_parts_of_tokens_make_up_the_text(folder: Path, data: st.DataObject) -> None:
    """Also where a character is made of several tokens; items are whole and keep their places."""
    text = "".join(data.draw(st.lists(st.sampled_from([*TEXTS, "猫", "é ", "x"]), min_size=1)))
    documents = Documents(Path(), folder, "token", {}, {})
    tokens = documents.tokenizer.encode(text)
    whole = [t for t in set(tokens) if "\ufffd" not in documents.tokenizer.decode([t])]
    for token in data.draw(st.sets(st.sampled_from(sorted(whole))) if whole else st.just(set())):
        documents.item_of[token] = token
    parts = documents.parts(tokens, "en")
    assert "".join(part.text for part in parts) == text
    found = [part for part in parts if part.item is not None]
    assert [part.item for part in found] == [t for t in tokens if t in documents.item_of]
    for part in found:
        assert part.text == documents.tokenizer.decode([part.item])


def test_parts_of_words_make_up_the_text(folder: Path) -> None:
    documents = Documents(Path(), folder, "word", {}, {"cat": 3, "猫": 5})
    text = "A Cat, 猫 and cats"
    parts = documents.parts(documents.tokenizer.encode(text), "en")
    assert "".join(part.text for part in parts) == text
    assert [(p.text, p.item) for p in parts if p.item is not None] == [("Cat", 3), ("猫", 5)]


@pytest.mark.parametrize(
    ("terminal", "check"),
    [
        (False, lambda text: text.plain == "a \u27e6cat\u27e7 sat" and not text.spans),
        (True, lambda text: text.plain == "a cat sat" and text.spans[0].style == MARK),
    ],
)
def test_marks_are_colours_on_a_terminal_only(
    terminal: bool, check: Callable[[Text], bool]
) -> None:
    console = Console(force_terminal=terminal)
    assert check(_marked([("a", False), (" cat", True), (" sat", False)], console))
