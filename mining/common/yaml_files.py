"""YAML that somebody else wrote: only plain values, and no more of them than a file can hold.

An alias stands for all that its anchor holds. Nine lines of nine aliases each spell a billion
values, and a thousand aliases of a long text a gigabyte, which cost nothing until somebody walks
through them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mining.common.errors import InputError, shorten

MAX_BYTES = 16 << 20
MAX_VALUES = 1 << 20
MAX_DIGITS = 4000  # more than any number needs, and less than Python refuses to spell


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; InputError names the file where it cannot be read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path}: has {size} bytes, expected at most {MAX_BYTES} of YAML")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML (no UTF-8 at byte {error.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text; InputError names the `place` it is from."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, place)
        return loader.construct_document(node)
    except (
        yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError,
        RecursionError,
    ) as error:  # fmt: skip
        shown = shorten(" ".join(str(error).split()))
        raise InputError(f"{place}: not valid YAML ({shown})") from None


def _measure(
    node: yaml.Node, known: dict[int, tuple[int, int] | None], place: str
) -> tuple[int, int]:
    """How many values and characters a node spells, aliases followed.

    Those in `known` were measured before, or are None while they are.
    """
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise InputError(f"{place}: an alias stands inside what its own anchor holds")
        return found
    known[id(node)] = None
    values, chars = 1, 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        node.value.encode()  # a ValueError for halves of characters
        if len(node.value) > MAX_DIGITS and node.tag.endswith((":int", ":float")):
            raise InputError(f"{place}: not valid YAML (a number of more than {MAX_DIGITS} digits)")
        chars = len(node.value)
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [item for pair in node.value for item in pair]
    for item in inner:
        more_values, more_chars = _measure(item, known, place)
        values, chars = values + more_values, chars + more_chars
    if values > MAX_VALUES:
        raise InputError(f"{place}: its aliases spell more than {MAX_VALUES} values")
    if chars > MAX_BYTES:  # no file without aliases has so many
        raise InputError(f"{place}: its aliases spell more than {MAX_BYTES} characters")
    known[id(node)] = values, chars
    return values, chars
