"""Where words count as found, and what their postings have in common (METHOD sections 2 and 3)."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel

# Scripts that put no space between words, as ranges of code points (both ends included). Unicode's
# script property is not in the standard library.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration mark, closing mark, zero
    (0x3021, 0x3029),  # Han numerals
    (0x3031, 0x303C),  # kana and Han repetition marks
    (0x3041, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo, extended
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility forms
    (0xFF66, 0xFF9F),  # Katakana, half-width
    (0x1AFF0, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # Han, further extensions
)


def fold(text: str, case_sensitive: bool) -> str:
    """The form in which words and texts are compared: NFC, case folded unless case counts."""
    text = unicodedata.normalize("NFC", text)
    return text if case_sensitive else unicodedata.normalize("NFC", text.casefold())


@functools.lru_cache(maxsize=1 << 16)
def is_word_character(char: str) -> bool:
    """Whether a character belongs to the words of a script that puts spaces between words.

    Letters, marks and digits do, but not those of the scripts in UNSPACED.
    """
    if unicodedata.category(char)[0] not in "LMN":
        return False
    point = ord(char)
    return not any(first <= point <= last for first, last in UNSPACED)


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is a whole word rather than a part of one.

    An end of the word that is a word character of a spaced script must not touch another one. In
    scripts without spaces every occurrence counts, also across the borders of words that a
    segmenter would draw.
    """
    if start > 0 and is_word_character(text[start]) and is_word_character(text[start - 1]):
        return False
    touches = end < len(text) and is_word_character(text[end])
    return not (touches and is_word_character(text[end - 1]))


@kernel
def common_documents(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    """The number of documents in both of two postings (int64, ascending, no document twice)."""
    found = 0
    a = 0
    b = 0
    while a < len(first) and b < len(second):
        if first[a] == second[b]:
            found += 1
            a += 1
            b += 1
        elif first[a] < second[b]:
            a += 1
        else:
            b += 1
    return found
