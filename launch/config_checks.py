"""What the parser of settings passes over, or fails on in its own words."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from mining.common.errors import SettingsError


def check_mappings(cls: type, values: dict[str, Any], place: str) -> None:
    """Name a section of a settings class that is no mapping; `place` is what the name begins with.

    Nulls are left to the parser and to `check_nulls`.
    """
    for name, hint in typing.get_type_hints(cls).items():
        value = values.get(name)
        if value is None or not _is_settings(hint):
            continue
        if not isinstance(value, dict):
            found = type(value).__name__
            raise SettingsError(f"{place}{name}: found a {found}, expected keys and values")
        check_mappings(hint, value, f"{place}{name}.")


def check_nulls(values: Any, cls: type, place: str = "") -> None:
    """Name a null where none may stand: the parser takes it for a value of every type."""
    for name, hint in typing.get_type_hints(cls).items():
        if name not in values:  # of an item of a list: its default
            continue
        value, key = values[name], f"{place}{name}"
        if value is None and not _takes_null(hint):
            raise SettingsError(f"{key}: found null, expected a value", None, key)
        if _is_settings(hint):
            check_nulls(value, hint, f"{key}.")
            continue
        inner_hints = typing.get_args(hint)
        for inner, item in _items(value):
            if item is None and not any(map(_takes_null, (hint, *inner_hints))):
                raise SettingsError(f"{key}.{inner}: found null, expected a value", None, key)
            for settings in filter(_is_settings, inner_hints):
                check_nulls(item, settings, f"{key}.{inner}.")


def one_line(error: Exception) -> str:
    """The text of an error of the parser."""
    return " ".join(str(error).split())


def _is_settings(hint: Any) -> typing.TypeGuard[type]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _takes_null(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
