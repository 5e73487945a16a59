"""What the letters alone say about two words: scripts, and how far copying letters would get."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Sequence


def scripts(word: str) -> frozenset[str]:
    """The scripts of a word's letters by their Unicode names: LATIN, CJK (Han), HIRAGANA, ..."""
    letters = (c for c in unicodedata.normalize("NFKC", word) if unicodedata.category(c)[0] == "L")
    # Modifier letters (the long vowel mark, say) belong to no script of their own.
    named = (unicodedata.name(c, "") for c in letters if unicodedata.category(c) != "Lm")
    return frozenset(name.split()[0] for name in named if name)


def share_script(first: str, second: str) -> bool:
    """Whether two words have letters of one script."""
    return bool(scripts(first) & scripts(second))


def similarity(first: str, second: str) -> float:
    """Dice's coefficient of two words' character bigrams, borders included: 0 to 1."""
    left, right = _bigrams(first), _bigrams(second)
    return 2 * (left & right).total() / (left.total() + right.total())


def form_difficulty(candidates: Sequence[str], target: str) -> float | None:
    """Where choosing by similarity to `target` ranks the first candidate: 0 (first) to 1 (last).

    Ties count one half, so that 0.5 says that the letters tell nothing. None without a choice.
    """
    if len(candidates) < 2:
        return None
    right, *wrong = (similarity(candidate, target) for candidate in candidates)
    return sum((w > right) + (w == right) / 2 for w in wrong) / len(wrong)


def _bigrams(word: str) -> Counter[str]:
    text = f"\x02{unicodedata.normalize('NFKC', word).casefold()}\x03"
    return Counter(a + b for a, b in itertools.pairwise(text))
