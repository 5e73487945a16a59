"""The n-way join against a brute-force twin, and what it is for on small dictionaries."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from eval.lexicon_join import Candidate, Lexicon, join
from eval.lexicons import Entry

LANGS = ("en", "fr", "ja")


def no_frequency(lang: str, word: str) -> int:
    return 0


def run(
    entries: list[tuple[int, Entry]], back_translation: bool = True
) -> tuple[set[tuple[str, ...]], set[tuple[str, str]]]:
    """(pos, pivot word, one best word each) of the candidates, and (reason, pivot word) dropped."""
    found, dropped = join(
        Lexicon.of("en", entries), LANGS, no_frequency, {}, back_translation=back_translation
    )
    return (
        {(c.pos, *(c.words[lang] for lang in LANGS)) for c in found},
        {(d.reason, d.words["en"]) for d in dropped},
    )


# The twin works on the bare list of entries: no index, every question asked of every entry.


def twin(entries: list[tuple[int, Entry]], back_translation: bool) -> set[tuple[str, ...]]:
    facts = list(entries)
    pivots = sorted(
        {e.source for _, e in facts if e.source_lang == "en"}
        | {e.target for _, e in facts if e.target_lang == "en"}
    )

    def between(a_lang: str, a: str, b_lang: str, b: str) -> list[tuple[int, bool, Entry]]:
        return [
            (n, forward, e)
            for n, e in facts
            for forward, one, two in (
                (True, (a_lang, a), (b_lang, b)),
                (False, (b_lang, b), (a_lang, a)),
            )
            if (e.source_lang, e.source) == one and (e.target_lang, e.target) == two
        ]

    def words_of(lang: str) -> list[str]:
        return sorted(
            {e.source for _, e in facts if e.source_lang == lang}
            | {e.target for _, e in facts if e.target_lang == lang}
        )

    def usable(p: str, lang: str, w: str, pos: str) -> list[tuple[int, bool, Entry]]:
        found = between("en", p, lang, w)
        if any(e.pos for *_, e in found) and not any(e.pos == pos for *_, e in found):
            return []
        return [f for f in found if f[2].pos in ("", pos)]

    result: set[tuple[str, ...]] = set()
    for p in pivots:
        tags = {
            e.pos
            for lang in LANGS[1:]
            for w in words_of(lang)
            for *_, e in between("en", p, lang, w)
        }
        for pos in tags - {""} or {""}:
            held = []
            for lang in LANGS[1:]:
                for w in words_of(lang):
                    evidence = usable(p, lang, w, pos)
                    ways = {forward for _, forward, _ in evidence}
                    if not ways:
                        continue
                    third = "ja" if lang == "fr" else "fr"
                    around = any(
                        between(lang, w, third, t)
                        and any(
                            f not in ways and e.pos in ("", pos)
                            for _, f, e in between("en", p, third, t)
                        )
                        for t in words_of(third)
                    )
                    if not back_translation or len(ways) == 2 or around:
                        held.append((lang, w, evidence))

            def order_of(g: tuple, group: list) -> tuple:  # type: ignore[type-arg]
                agree = len({(n, f) for n, f, _ in g[2]})
                kin = sum(o[0] != g[0] and bool(between(*g[:2], *o[:2])) for o in group)
                order = sum(
                    min(e.sense for _, f, e in g[2] if f == way) for way in {f for _, f, _ in g[2]}
                )
                return -agree - bool(kin), order, -kin, g[1]

            # No dictionary of fr and ja at all: the best words are taken for the same sense.
            blind = not any({e.source_lang, e.target_lang} == {"fr", "ja"} for _, e in facts)
            tops = [
                min((h for h in held if h[0] == lang), key=lambda h: order_of(h, held))
                for lang in LANGS[1:]
                if blind and any(h[0] == lang for h in held)
            ]

            def related(a: tuple, b: tuple, tops: list = tops) -> bool:  # type: ignore[type-arg]
                if a[0] != b[0]:
                    return bool(between(a[0], a[1], b[0], b[1])) or (a in tops and b in tops)
                return any(
                    fa and fb and na == nb and ea.pos == eb.pos and ea.sense == eb.sense
                    for na, fa, ea in a[2]
                    for nb, fb, eb in b[2]
                )

            left = list(held)
            while left:
                group = [left.pop(0)]
                while more := [x for x in left if any(related(x, g) for g in group)]:
                    group += more
                    left = [x for x in left if x not in more]
                best = [pos, p]
                for lang in LANGS[1:]:
                    choices = [order_of(g, group) for g in group if g[0] == lang]
                    if choices:
                        best.append(min(choices)[-1])
                        group = [g for g in group if g[0] != lang or g[1] == best[-1]]
                if len(best) == 2 + len(LANGS) - 1:
                    result.add(tuple(best))
    return result


@st.composite
def dictionaries(draw: st.DrawFn) -> list[tuple[int, Entry]]:
    words = {"en": ["ea", "eb"], "fr": ["fa", "fb", "fc"], "ja": ["ja", "jb", "jc"]}
    pairs = list(itertools.permutations(LANGS, 2))
    found = []
    for _ in range(draw(st.integers(1, 14))):
        source, target = draw(st.sampled_from(pairs))
        entry = Entry(
            source,
            draw(st.sampled_from(words[source])),
            target,
            draw(st.sampled_from(words[target])),
            draw(st.sampled_from(["", "noun", "verb"])),
            draw(st.integers(1, 2)),
            "",
        )
        # A source holds one pair of languages; two sources may hold the same pair.
        found.append((2 * pairs.index((source, target)) + draw(st.integers(0, 1)), entry))
    return found


@settings(max_examples=300)
@given(entries=dictionaries(), back_translation=st.booleans())
def test_join_equals_brute_force(entries: list[tuple[int, Entry]], back_translation: bool) -> None:
    assert run(entries, back_translation)[0] == twin(entries, back_translation)


def entry(source: str, target: str, pos: str = "noun", sense: int = 1, label: str = "") -> Entry:
    (source_lang, word), (target_lang, translation) = (x.split(":") for x in (source, target))
    return Entry(source_lang, word, target_lang, translation, pos, sense, label)


BANK = [
    (0, entry("en:bank", "fr:banque", "", 2)),
    (0, entry("en:bank", "fr:rive", "", 1)),
    (1, entry("fr:banque", "en:bank")),
    (1, entry("fr:rive", "en:bank")),
    (2, entry("en:bank", "ja:貯金箱", sense=1)),
    (2, entry("en:bank", "ja:銀行", sense=2)),
    (2, entry("en:bank", "ja:バンク", sense=2)),
    (2, entry("en:bank", "ja:岸", sense=3)),
    (3, entry("ja:銀行", "en:bank")),
    (3, entry("ja:バンク", "en:bank")),
    (3, entry("ja:岸", "en:bank")),
    (4, entry("ja:銀行", "fr:banque")),
]


def test_senses_are_kept_apart() -> None:
    found, dropped = run(BANK)
    # The first senses of the two dictionaries have nothing to do with each other.
    assert found == {("noun", "bank", "banque", "銀行")}
    assert dropped == {("sense not shared", "bank")}
    both, _ = run([*BANK, (4, entry("ja:岸", "fr:rive"))])
    assert both == {("noun", "bank", "banque", "銀行"), ("noun", "bank", "rive", "岸")}


def test_other_words_of_the_sense_are_alternatives() -> None:
    (candidate,), _ = join(Lexicon.of("en", BANK), LANGS, no_frequency, {})
    assert candidate.alternatives == {"en": (), "fr": (), "ja": ("バンク",)}


def test_frequency_chooses_and_rare_words_come_last() -> None:
    entries = [
        (0, entry("en:car", "fr:voiture")),
        (0, entry("en:car", "fr:auto")),
        (1, entry("fr:voiture", "en:car")),
        (1, entry("fr:auto", "en:car")),
        (2, entry("fr:auto", "en:car")),
    ]
    lexicon = Lexicon.of("en", entries)

    def best(counts: dict[str, int], minimum: int = 0) -> str:
        def frequency(lang: str, word: str) -> int:
            return counts.get(word, 0)

        (found,), _ = join(lexicon, ("en", "fr"), frequency, {"fr": minimum})
        return found.words["fr"]

    assert best({"voiture": 9}) == "auto"  # two sources
    assert best({"voiture": 9}, minimum=5) == "voiture"
    assert best({"voiture": 9, "auto": 6}, minimum=5) == "auto"


def test_back_translation() -> None:
    one_way = [(0, entry("en:dog", "fr:chien")), (1, entry("en:dog", "ja:犬"))]
    assert run(one_way) == (set(), {("no translation", "dog")})
    linked = [*one_way, (2, entry("ja:犬", "fr:chien"))]
    assert run(one_way, back_translation=False)[0] == {("noun", "dog", "chien", "犬")}
    # A dictionary of the two languages that does not link them speaks against one sense.
    other = [*one_way, (2, entry("ja:犬", "fr:cabot"))]
    assert run(other, back_translation=False)[1] == {("sense not shared", "dog")}
    assert run(linked, back_translation=False)[0] == {("noun", "dog", "chien", "犬")}
    # en dog -> fr chien -> ja 犬 -> en dog.
    around = [*linked, (3, entry("ja:犬", "en:dog"))]
    assert run(around)[0] == {("noun", "dog", "chien", "犬")}


def test_labels_of_one_source_join_languages() -> None:
    entries = [
        (0, entry("en:bank", f"{lang}:{word}", "noun", sense, label))
        for label, sense, words in (
            ("money", 1, {"fr": "banque", "ja": "銀行"}),
            ("river", 2, {"fr": "rive", "ja": "岸"}),
        )
        for lang, word in words.items()
    ]  # fmt: skip
    assert run(entries, back_translation=False)[0] == {
        ("noun", "bank", "banque", "銀行"),
        ("noun", "bank", "rive", "岸"),
    }


def test_parts_of_speech_are_kept_apart() -> None:
    entries = [
        (0, entry("en:light", "fr:lumière", "noun")),
        (0, entry("en:light", "fr:léger", "adj")),
        (1, entry("fr:lumière", "en:light", "noun")),
        (1, entry("fr:léger", "en:light", "adj")),
    ]
    found, _ = join(Lexicon.of("en", entries), ("en", "fr"), no_frequency, {})
    assert {(c.pos, c.words["fr"]) for c in found} == {("noun", "lumière"), ("adj", "léger")}
    assert all(isinstance(c, Candidate) for c in found)


def test_spelling_of_most_entries_wins_then_capitals() -> None:
    entries = [(0, entry("en:dog", "de:hund")), (1, entry("de:Hund", "en:dog"))]
    (found,), _ = join(Lexicon.of("en", entries), ("en", "de"), no_frequency, {})
    assert found.words["de"] == "Hund"
