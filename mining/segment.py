"""Words of a text, by ICU's dictionary- and rule-based word breaker."""

from __future__ import annotations

import unicodedata

from icu4py.breakers import WordBreaker


def words(text: str, lang: str) -> list[str]:
    """The words of `text` in order: segments with a letter or digit, NFC, case folded.

    `lang` (any BCP 47 code) picks ICU's rules; Chinese and Japanese are cut by its dictionary.
    """
    return [
        unicodedata.normalize("NFC", segment).casefold()
        for segment in WordBreaker(text, lang)
        if any(map(str.isalnum, segment))
    ]
