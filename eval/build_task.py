"""`build-task`: a word-translation task out of dictionaries or a ready list (docs/BUILD_TASK.md).

Writes `task.yaml`, `concepts.tsv` and `avoid.tsv`, which every stage takes as a task; `dropped.tsv`
with each candidate that did not become a concept and why; `quarantine.tsv` with the lines that
could not be read; `judge.tsv` with the answers where a model was asked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.build_filters import add_classes, choose
from eval.build_frequencies import (
    Frequencies,
    count_frequencies,
    count_vectors,
    no_frequencies,
    word_frequencies,
)
from eval.build_settings import BuildTaskSettings
from eval.build_sources import Sources, read_sources
from eval.judge import Verdict, ask, failing_concepts
from eval.lexicon_check import avoid_table
from eval.lexicon_index import LexiconIndex, ambiguous_pairs, fold_key
from eval.lexicon_join import Candidate, Dropped, Lexicon, join
from mining.common.errors import InputError, SettingsError
from mining.common.files import write_text
from mining.common.logs import log
from mining.common.stage import FilesInput, Input, StageInput, begin, settings_dict
from mining.common.task import Avoided, Concept, Task, read_task

TASK, CONCEPTS, AVOID = "task.yaml", "concepts.tsv", "avoid.tsv"
# METHOD section 1.
TEMPLATES = {
    "instruction": "Please translate words from {source_language} to {target_language}.\n\n",
    "example": "{source_language}: {source}\n{target_language}: {target}\n\n",
    "query": "{source_language}: {source}\n{target_language}:",
    "answer": " {target}",
}


def run_build_task(
    settings: BuildTaskSettings, out: Path, mined: Mapping[str, Path], cache: Path
) -> None:
    """Build a task in the folder `out`.

    `mined` maps `count` and `words` to the folders of these stages, of which the one that
    `settings.frequencies` names is read. `cache` keeps the judge's answers. Raises SettingsError
    where sources or languages are missing, and InputError where no concept is left.
    """
    _require(bool(settings.sources), "sources", "at least one file of words")
    _require(bool(settings.languages), "languages", "the task's languages, {en: English, ...}")
    files = {
        f"{number:03d}-{Path(source.path).name}": Path(source.path)
        for number, source in enumerate(settings.sources)
    }
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise InputError(f"{', '.join(missing)}: no such file (build_task.sources)")
    inputs: dict[str, Input] = {"sources": FilesInput(files)}
    if settings.frequencies != "none":
        folder = mined[settings.frequencies]
        inputs[settings.frequencies] = StageInput(folder, settings.frequencies)
    asks = {"judge": {**settings_dict(settings.judge), "asked": settings.judge.url is not None}}
    run = begin("build-task", out, {**settings_dict(settings), **asks}, inputs)
    if run is None:
        return
    sources = read_sources(settings)
    frequency, vectors = no_frequencies(), None
    if settings.frequencies == "count":
        count = mined["count"]
        frequency = count_frequencies(count, settings.languages)
        vectors = lambda: count_vectors(  # noqa: E731
            count, settings.dimensions, settings.min_pair_documents
        )
    elif settings.frequencies == "words":
        frequency = word_frequencies(mined["words"])
    lexicon = Lexicon.of(settings.pivot, sources.entries)
    log.info("build-task: %d entries, %d listed", len(sources.entries), len(sources.listed))

    candidates, dropped = _candidates(settings, sources, lexicon, frequency)
    n_candidates = len(candidates) + len(dropped)
    kept, out_of_choice = choose(candidates, settings, lexicon, frequency)
    dropped += out_of_choice
    kept = add_classes(kept, vectors, settings.class_size)
    index = LexiconIndex(entry for _, entry in sources.entries)
    draft = _Draft(settings, run.work, index)
    kept = draft.drop_lonely(kept, dropped)
    verdicts: list[Verdict] = []
    if settings.judge.url is not None and kept:
        verdicts = ask(draft.task(kept), settings.judge, cache)
        kept = _drop_failing(kept, verdicts, settings.judge.max_failed_share, dropped)
        kept = draft.drop_lonely(kept, dropped)
        _write(
            out / "judge.tsv",
            ("id", "source_lang", "target_lang", "right", "picked", "answer"),
            (
                (q.concept, q.source_lang, q.target_lang, q.right, v.picked or "", v.answer)
                for v in verdicts
                for q in (v.question,)
            ),
        )
    langs = list(settings.languages)
    _write(
        out / "dropped.tsv",
        ("reason", "detail", "id", "pos", *langs),
        ((d.reason, d.detail, d.id, d.pos, *(d.words.get(x, "") for x in langs)) for d in dropped),
    )
    _write(out / "quarantine.tsv", ("file", "line", "reason", "raw"), sources.bad)
    if not kept:
        raise InputError(_nothing_left(out, sources, dropped))
    draft.write(kept, out)
    task = read_task(out / TASK)
    counts = {
        "sources": sources.counts,
        "quarantined": len(sources.bad),
        "candidates": n_candidates,
        "dropped": dict(sorted(Counter(d.reason for d in dropped).items())),
        "concepts": len(task.concepts),
        "concepts_by_pos": dict(sorted(Counter(c.pos for c in task.concepts).items())),
        "classes": len({(c.pos, c.cls) for c in task.concepts}),
        "avoided_pairs": len(task.avoid),
        "judged": len(verdicts),
        "judged_right": sum(v.right for v in verdicts),
    }
    log.info("build-task: %d concepts of %d candidates", len(task.concepts), n_candidates)
    if sources.bad:
        log.warning("build-task: %d bad lines, see quarantine.tsv", len(sources.bad))
    run.finish(counts)


def _require(ok: bool, key: str, expected: str) -> None:
    if not ok:
        raise SettingsError(f"build_task.{key}: found none, expected {expected}")


def _candidates(
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


@dataclasses.dataclass(frozen=True)
class _Draft:
    """Writes a task and reads it back, so that distractors are those that every reader computes."""

    settings: BuildTaskSettings
    work: Path
    index: LexiconIndex

    def write(self, candidates: Sequence[Candidate], folder: Path) -> None:
        langs = list(self.settings.languages)
        concepts = [_concept(c) for c in candidates]
        columns = ("id", "pos", "class", *langs, *(f"{x}_alt" for x in langs), "group", "example")
        _write(
            folder / CONCEPTS,
            columns,
            (
                (
                    c.id, c.pos, c.cls, *(c.words[x] for x in langs),
                    *(_joined(c.alternatives.get(x, ())) for x in langs), c.group, c.example,
                )
                for c in candidates
            ),
        )  # fmt: skip
        pairs: dict[Avoided, str] = ambiguous_pairs(concepts, langs, self.index)
        write_text(folder / AVOID, avoid_table(pairs))
        value = {
            "format": 1,
            "name": self.settings.name,
            "version": 1,
            "license": self.settings.license,
            "languages": dict(self.settings.languages),
            **TEMPLATES,
            "concepts": CONCEPTS,
            "avoid": AVOID,
        }
        write_text(folder / TASK, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))

    def task(self, candidates: Sequence[Candidate]) -> Task:
        self.write(candidates, self.work / "draft")
        return read_task(self.work / "draft" / TASK)

    def drop_lonely(
        self, candidates: Sequence[Candidate], dropped: list[Dropped]
    ) -> list[Candidate]:
        """Without those that have too few distractors in a direction, until none is left."""
        kept = list(candidates)
        least = self.settings.min_distractors
        while kept:
            task = self.task(kept)
            at_least = _distractors_at_least(task)
            lonely: dict[str, str] = {}
            for source, target in task.directions():
                for concept in task.concepts:
                    if at_least[source, target, concept.id] >= least:
                        continue
                    n = len(task.distractors(source, target, concept))
                    if n < least:
                        lonely.setdefault(concept.id, f"{n} in {source} to {target}")
            if not lonely:
                break
            for c in kept:
                if c.id in lonely:
                    reason = "too few distractors"
                    dropped.append(Dropped(reason, lonely[c.id], c.id, c.pos, c.words))
            kept = [c for c in kept if c.id not in lonely]
        return kept


def _distractors_at_least(task: Task) -> dict[tuple[str, str, str], int]:
    """For (source, target, id), a number that the possible distractors do not fall below.

    Saves to order thousands of siblings where there are plenty. It takes off every sibling that is
    avoided or shares a form in any language; no two concepts have the same word of a language.
    """
    n_pos = Counter(concept.pos for concept in task.concepts)
    avoided = Counter(key[:3] for key in task.avoid)
    holders: dict[str, set[str]] = {}
    forms = {c.id: {f for lang in task.languages for f in c.forms(lang)} for c in task.concepts}
    for name, held in forms.items():
        for form in held:
            holders.setdefault(form, set()).add(name)
    sharing = {name: len(set().union(*(holders[f] for f in held))) for name, held in forms.items()}
    return {
        (source, target, c.id): n_pos[c.pos] - sharing[c.id] - avoided[source, target, c.id]
        for source, target in task.directions()
        for c in task.concepts
    }


def _joined(alternatives: Iterable[str]) -> str:
    return ";".join(word for word in alternatives if ";" not in word)


def _concept(candidate: Candidate) -> Concept:
    return Concept(
        candidate.id,
        candidate.pos,
        candidate.cls,
        dict(candidate.words),
        {lang: candidate.alternatives.get(lang, ()) for lang in candidate.words},
    )


def _drop_failing(
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdict],
    max_failed_share: float,
    dropped: list[Dropped],
) -> list[Candidate]:
    failing = failing_concepts((_concept(c) for c in candidates), verdicts, max_failed_share)
    for c in candidates:
        if c.id in failing:
            failed, n = failing[c.id]
            detail = f"missed in {failed} of {n} directions"
            dropped.append(Dropped("judge", detail, c.id, c.pos, c.words))
    return [c for c in candidates if c.id not in failing]


def _nothing_left(out: Path, sources: Sources, dropped: Sequence[Dropped]) -> str:
    reasons = Counter(d.reason for d in dropped).most_common()
    listed = ", ".join(f"{reason}: {n}" for reason, n in reasons) or "no candidate at all"
    example = next((f" ({d.detail})" for d in dropped if d.reason == reasons[0][0]), "")
    return (
        f"build-task: no concept is left of {len(sources.entries)} entries and "
        f"{len(sources.listed)} listed concepts; {len(sources.bad)} lines could not be read; "
        f"dropped: {listed}{example}. See {out / 'dropped.tsv'} and look at build_task.languages, "
        "pos, back_translation and the limits"
    )


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A tab-separated table; white space inside a field becomes one space."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(" ".join(str(field).split()) for field in row) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
