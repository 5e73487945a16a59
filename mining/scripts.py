"""What script an item is written in, for tables and figures."""

from __future__ import annotations

import unicodedata

SCRIPT_KINDS = {
    "LATIN": "Latin",
    "CJK": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "HANGUL": "Hangul",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "DEVANAGARI": "Devanagari",
    "THAI": "Thai",
}


def script_kind(text: str) -> str:
    """The kind of script of a token's letters; without letters: digits, or other characters."""
    core = text.strip().strip("\u2581")
    if core.startswith("<0x") and core.endswith(">"):
        return "byte piece"
    kinds = set()
    for char in core:
        if char.isalpha():
            first = unicodedata.name(char, "?").split(" ")[0].split("-")[0]
            kinds.add(SCRIPT_KINDS.get(first, "other script"))
    if not kinds:
        return "digits" if any(char.isdigit() for char in core) else "no letters"
    return kinds.pop() if len(kinds) == 1 else "mixed scripts"
