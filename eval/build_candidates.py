"""The candidates of `build-task`: a list of concepts, or the join of the dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eval.build_frequencies import Frequencies
from eval.build_settings import BuildTaskSettings
from eval.build_sources import Sources
from eval.lexicon_index import fold_key
from eval.lexicon_join import Candidate, Dropped, Lexicon, join


def find_candidates(
    settings: BuildTaskSettings, sources: Sources, lexicon: Lexicon, frequency: Frequencies
) -> tuple[list[Candidate], list[Dropped]]:
    """The listed concepts, their missing languages joined; or, without a list, the whole join."""
    langs = list(settings.languages)
    if not sources.has_list:
        found, dropped = join(
            lexicon, langs, frequency, settings.min_doc_freq, settings.back_translation
        )
        return [dataclasses.replace(c, id=c.words[settings.pivot]) for c in found], dropped
    candidates: list[Candidate] = []
    dropped = []
    joined: dict[tuple[str, ...], dict[tuple[str, str], Candidate]] = {}
    for number, item in enumerate(sources.listed):
        lacking = tuple(lang for lang in langs if lang not in item.words)
        words, alternatives = dict(item.words), dict(item.alternatives)
        if lacking:
            if lacking not in joined:
                joined[lacking] = _fillers(settings, sources, lexicon, frequency, lacking)
            key = (fold_key(item.words.get(settings.pivot, "")), item.pos)
            filler = joined[lacking].get(key)
            if filler is None:
                detail = f"no dictionary leads to {', '.join(lacking)} and back"
                dropped.append(Dropped("no translation", detail, item.id, item.pos, words))
                continue
            for lang in lacking:
                words[lang] = filler.words[lang]
                alternatives[lang] = (*alternatives[lang], *filler.alternatives[lang])
        candidates.append(
            Candidate(
                pos=item.pos,
                words={lang: words[lang] for lang in langs},
                alternatives=alternatives,
                strength=(-number,),  # a list's own order decides
                cls=item.cls,
                id=item.id,
                group=item.group,
                example=item.example,
            )
        )
    return candidates, dropped


def _fillers(
    settings: BuildTaskSettings,
    sources: Sources,
    lexicon: Lexicon,
    frequency: Frequencies,
    lacking: Sequence[str],
) -> dict[tuple[str, str], Candidate]:
    """For the listed pivot words, the strongest sense that has a word in every lacking language."""
    pivot = settings.pivot
    wanted = {(fold_key(item.words.get(pivot, "")), item.pos) for item in sources.listed}
    found, _ = join(
        lexicon,
        [pivot, *lacking],
        frequency,
        settings.min_doc_freq,
        settings.back_translation,
        only=wanted,
    )
    best: dict[tuple[str, str], Candidate] = {}
    for candidate in found:
        key = (fold_key(candidate.words[pivot]), candidate.pos)
        if key not in best or candidate.strength > best[key].strength:
            best[key] = candidate
    return best
