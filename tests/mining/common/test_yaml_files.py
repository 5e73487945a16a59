from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mining.common.errors import InputError
from mining.common.yaml_files import parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 30)
)
# Every value of it is a text of a megabyte.
LONG = f"a: &a {'x' * (1 << 20)}\nmodels: [{', '.join(['*a'] * 500)}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases spell more than"),
        (LONG, "aliases spell more than 16777216 characters"),
        ("a: {" + "x" * 100_000 + ": 1: 2}", "not valid YAML"),
        ("!" + "x" * 100_000 + " 1", "not valid YAML"),
        ("a: &a [*a]", "inside what its own anchor holds"),
        ("[" * 5000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("when: 2001-99-99", "not valid YAML"),
        ("n: " + "9" * 5000, "not valid YAML"),
        ("a: {", "not valid YAML"),
        ("a: !!bool maybe", "not valid YAML"),
        ('a: !!int ""', "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_what_is_refused_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path)
    assert time.monotonic() - start < 60
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 8000


def test_files_that_are_no_text_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(path)
    with path.open("wb") as handle:
        handle.truncate(17 << 20)
    with pytest.raises(InputError, match="at most"):
        read_yaml(path)
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "other.yaml")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_values_come_back_also_by_aliases(value: object) -> None:
    assert parse_yaml(yaml.safe_dump([value, value]), "x") == [value, value]


@pytest.mark.parametrize(
    "text", ["a: " + "1:" * 300 + "1.5", "a: 0x" + "f" * 6000, 'a: "w\\ud800"', '"\\ud800": 1']
)
def test_numbers_without_end_and_halves_of_characters_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="f: not valid YAML"):
        parse_yaml(text, "f")


def test_long_texts_and_some_aliases_of_them_are_read() -> None:
    text = "x" * (1 << 20)
    assert parse_yaml(f"a: &a {text}\nb: [*a, *a]", "f") == {"a": text, "b": [text, text]}
