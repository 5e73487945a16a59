"""Kinds of script."""

from __future__ import annotations

import pytest

from mining.scripts import script_kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" word", "Latin"),
        ("\u2581mot", "Latin"),
        ("漢字", "Han"),
        ("カタ", "Kana"),
        ("漢か", "mixed scripts"),
        (" 2024", "digits"),
        ("--", "no letters"),
        ("<0xE3>", "byte piece"),
        ("слово", "Cyrillic"),
        ("", "no letters"),
    ],
)
def test_kinds_of_script(text: str, kind: str) -> None:
    assert script_kind(text) == kind
