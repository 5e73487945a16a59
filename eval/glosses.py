"""Translations out of dictionary glosses: `to run (a business)` is the verb `run`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
MAX_NESTING = 16  # each takes the whole gloss once, and a line may hold megabytes of brackets
_LABEL = re.compile(r"^[a-z]+\.\s+(?=\S)")  # "fig. ", "lit. ", "esp. "
# Glosses that say something about the word instead of translating it.
_NOT_A_TRANSLATION = re.compile(
    r"(?:CL:|see (?:also )?\S|same as|used in|used (?:as|to|for|before|after)|also (?:written|pr\.)"
    r"|(?:[a-z]+ )*variants? of|abbr\. |abbreviation (?:of|for)|classifier for|surname "
    r"|(?:Taiwan|Tw|Mainland|coll\.|Beijing) pr\.|pr\. |simplified form|traditional form"
    r"|radical in|Kangxi radical|equivalent (?:of|to)|also known as|short for|contraction of)",
    re.IGNORECASE,
)


def gloss_words(gloss: str) -> Iterator[tuple[str, bool]]:
    """Yield each translation that a gloss gives, and whether it is marked as a verb by `to `.

    Brackets, articles and the `to` of verbs are taken off; parts between ";" are translations of
    their own; notes (CL:, see ..., variant of ...) give nothing. May yield several words at a time.
    """
    text = unicodedata.normalize("NFC", gloss)
    for _ in range(MAX_NESTING):
        text = _BRACKETS.sub(" ", text)
    if _NOT_A_TRANSLATION.match(text.strip()):
        return
    for part in text.split(";"):
        word = " ".join(part.split()).strip(" .!?,:\"'")
        word = _LABEL.sub("", word)
        if not word or _NOT_A_TRANSLATION.match(word):
            continue
        is_verb = word.lower().startswith("to ")
        for prefix in ("to ", "a ", "an ", "the "):
            if word.lower().startswith(prefix):
                word = word[len(prefix) :].strip()
                break
        if any(char.isalpha() for char in word):
            yield word, is_verb
