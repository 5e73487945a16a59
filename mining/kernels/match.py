"""Where words count as found, and what their postings have in common (METHOD sections 2 and 3)."""

from __future__ import annotations

import functools
import unicodedata
from typing import Literal

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel

N_CODE_POINTS = 0x110000

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


def fold(text: str, case_sensitive: bool, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """The form in which words and texts are compared: case folded unless case counts.

    `form` is Unicode's normalisation; NFKC also makes full-width letters and ligatures plain ones.
    """
    text = unicodedata.normalize(form, text)
    return text if case_sensitive else unicodedata.normalize(form, text.casefold())


@functools.cache
def word_characters() -> npt.NDArray[np.bool_]:
    """Which code points belong to the words of a script that puts spaces between words.

    Letters, marks and digits do, but not those of the scripts in UNSPACED. In scripts without
    spaces a word is found also across the borders that a segmenter would draw. bool [0x110000].
    """
    kinds = (unicodedata.category(chr(point))[0] in "LMN" for point in range(N_CODE_POINTS))
    found = np.fromiter(kinds, dtype=np.bool_, count=N_CODE_POINTS)
    for first, last in UNSPACED:
        found[first : last + 1] = False
    return found


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """A text as uint32 [n_chars], read-only; it must not hold lone surrogates."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


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


@kernel
def count_common(
    postings: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    pairs: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """`common_documents` of each pair of postings.

    Pattern p's are postings[offsets[p]:offsets[p + 1]]; `pairs` int64 [n_pairs, 2] are patterns.
    Returns int64 [n_pairs].
    """
    counts = np.zeros(len(pairs), dtype=np.int64)
    for pair in range(len(pairs)):
        a, b = pairs[pair]
        counts[pair] = common_documents(
            postings[offsets[a] : offsets[a + 1]], postings[offsets[b] : offsets[b + 1]]
        )
    return counts
