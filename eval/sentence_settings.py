"""Settings of the sentence stage, and the languages it knows by name."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from eval.settings import Dtype
from mining.common.errors import check_setting
from mining.common.stage import path_setting

# Code -> (name in the prompt, file codes of FLORES-200 and, where they differ, of FLORES+).
LANGUAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ar": ("Arabic", ("arb_Arab",)),
    "bn": ("Bengali", ("ben_Beng",)),
    "cs": ("Czech", ("ces_Latn",)),
    "de": ("German", ("deu_Latn",)),
    "el": ("Greek", ("ell_Grek",)),
    "en": ("English", ("eng_Latn",)),
    "es": ("Spanish", ("spa_Latn",)),
    "fa": ("Persian", ("pes_Arab",)),
    "fi": ("Finnish", ("fin_Latn",)),
    "fr": ("French", ("fra_Latn",)),
    "he": ("Hebrew", ("heb_Hebr",)),
    "hi": ("Hindi", ("hin_Deva",)),
    "id": ("Indonesian", ("ind_Latn",)),
    "it": ("Italian", ("ita_Latn",)),
    "ja": ("Japanese", ("jpn_Jpan",)),
    "ko": ("Korean", ("kor_Hang",)),
    "nl": ("Dutch", ("nld_Latn",)),
    "pl": ("Polish", ("pol_Latn",)),
    "pt": ("Portuguese", ("por_Latn",)),
    "ru": ("Russian", ("rus_Cyrl",)),
    "sv": ("Swedish", ("swe_Latn",)),
    "sw": ("Swahili", ("swh_Latn",)),
    "th": ("Thai", ("tha_Thai",)),
    "tr": ("Turkish", ("tur_Latn",)),
    "uk": ("Ukrainian", ("ukr_Cyrl",)),
    "vi": ("Vietnamese", ("vie_Latn",)),
    "zh": ("Chinese", ("zho_Hans", "cmn_Hans")),
}


@dataclass(frozen=True)
class SentencesSettings:
    """Translates parallel sentences, one worked example, greedily, scored with chrF.

    Attributes:
        path: a folder in FLORES's layout (dev/eng_Latn.dev, one sentence a line) or a TSV file with
            a column for each language; null leaves the stage out of `pivots run`.
        split: dev or devtest: which part of a FLORES folder.
        languages: codes of the languages; every ordered pair is a direction.
        directions: restrict to these, written en-fr; empty means all.
        files: file code of a FLORES folder, or column of a TSV file, by language code, where it is
            not the usual one.
        names: name of a language in the prompt, by code, where it is not the usual one.
        max_chars: leave out sentences that have more characters than this in any of the languages,
            for models with few positions; null keeps all.
        max_sentences: sentences, the first ones that are left; null takes all.
        length_factor: a translation is cut off at this many times the tokens of its source
            sentence (and not below 16 tokens).
        revision: revision of a hub model; null takes its default.
        batch_tokens: tokens, padding and the longest possible translation included, in a batch.
        device: auto, cpu, mps, cuda or cuda:N.
        dtype: of the weights; auto is float32 on a CPU, else bfloat16 where the device has it.
        bootstrap_samples: samples of sentences that the intervals come from.
        confidence: level of the intervals.
    """

    path: str | None = path_setting()
    split: str = "dev"
    languages: tuple[str, ...] = ("en", "fr", "zh", "ja")
    directions: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    max_chars: int | None = None
    max_sentences: int | None = None
    length_factor: float = 4.0
    revision: str | None = None
    batch_tokens: int = 16384
    device: str = "auto"
    dtype: Dtype = "auto"
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        langs = self.languages
        plain = all(lang and "-" not in lang for lang in langs)
        ok = len(langs) >= 2 and len(set(langs)) == len(langs) and plain
        check_setting(self, "languages", ok, "at least two codes without '-', none twice")
        unnamed = [lang for lang in langs if lang not in LANGUAGES and lang not in self.names]
        check_setting(
            self, "languages", not unnamed, f"codes from {', '.join(LANGUAGES)}, or with an entry "
            "in sentences.names",
        )  # fmt: skip
        possible = {f"{a}-{b}" for a, b in itertools.permutations(langs, 2)}
        known = set(self.directions) <= possible
        check_setting(self, "directions", known, f"pairs of {', '.join(langs)} such as en-fr")
        twice = len(set(self.directions)) != len(self.directions)
        check_setting(self, "directions", not twice, "no direction twice")
        check_setting(self, "split", bool(self.split), "dev or devtest")
        long = self.max_chars is None or self.max_chars >= 1
        check_setting(self, "max_chars", long, "at least 1, or null")
        # The worked example is another sentence, so one by itself cannot be translated.
        enough = self.max_sentences is None or self.max_sentences >= 2
        check_setting(self, "max_sentences", enough, "at least 2, or null")
        check_setting(self, "length_factor", self.length_factor > 0, "above 0")
        check_setting(self, "batch_tokens", self.batch_tokens >= 1, "at least 1")
        device = self.device
        place = device in ("auto", "cpu", "cuda", "mps") or device.startswith("cuda:")
        check_setting(self, "device", place, "auto, cpu, mps, cuda or cuda:N")
        check_setting(self, "bootstrap_samples", self.bootstrap_samples >= 1, "at least 1")
        check_setting(self, "confidence", 0 < self.confidence < 1, "between 0 and 1")

    def pairs(self) -> list[tuple[str, str]]:
        """The directions asked for, in the order of `languages`."""
        pairs = itertools.permutations(self.languages, 2)
        return [(a, b) for a, b in pairs if not self.directions or f"{a}-{b}" in self.directions]

    def name(self, lang: str) -> str:
        """A language's name in the prompt."""
        return self.names.get(lang) or LANGUAGES[lang][0]

    def file_codes(self, lang: str) -> tuple[str, ...]:
        """What a FLORES folder may call a language."""
        if lang in self.files:
            return (self.files[lang],)
        return LANGUAGES[lang][1] if lang in LANGUAGES else (lang,)
