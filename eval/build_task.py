"""`build-task`: a word-translation task out of dictionaries or a ready list (docs/BUILD_TASK.md).

Writes `task.yaml`, `concepts.tsv` and `avoid.tsv`, which every stage takes as a task; `dropped.tsv`
with each candidate that did not become a concept and why; `quarantine.tsv` with the lines that
could not be read; `judge.tsv` with the answers where a model was asked.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.build_candidates import find_candidates
from eval.build_draft import TASK, Draft, as_concept, write_table
from eval.build_filters import add_classes, choose
from eval.build_frequencies import (
    count_frequencies,
    count_vectors,
    no_frequencies,
    word_frequencies,
)
from eval.build_settings import BuildTaskSettings
from eval.build_sources import Sources, read_sources, source_name
from eval.judge import Verdict, ask, failing_concepts
from eval.lexicon_index import LexiconIndex
from eval.lexicon_join import Candidate, Dropped, Lexicon
from mining.common.errors import InputError, SettingsError
from mining.common.logs import log
from mining.common.stage import FilesInput, Input, StageInput, begin, settings_dict
from mining.common.task import read_task


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
        source_name(number, source): Path(source.path)
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
        vectors = functools.partial(
            count_vectors, count, settings.dimensions, settings.min_pair_documents
        )
    elif settings.frequencies == "words":
        frequency = word_frequencies(mined["words"])
    lexicon = Lexicon.of(settings.pivot, sources.entries)
    log.info("build-task: %d entries, %d listed", len(sources.entries), len(sources.listed))

    candidates, dropped = find_candidates(settings, sources, lexicon, frequency)
    n_candidates = len(candidates) + len(dropped)
    kept, out_of_choice = choose(candidates, settings, lexicon, frequency)
    dropped += out_of_choice
    kept = add_classes(kept, vectors, settings.class_size)
    index = LexiconIndex(entry for _, entry in sources.entries)
    draft = Draft(settings, run.work, index)
    kept = draft.drop_lonely(kept, dropped)
    verdicts: list[Verdict] = []
    if settings.judge.url is not None and kept:
        verdicts = ask(draft.task(kept), settings.judge, cache)
        kept = _drop_failing(kept, verdicts, settings.judge.max_failed_share, dropped)
        kept = draft.drop_lonely(kept, dropped)
        write_table(
            out / "judge.tsv",
            ("id", "source_lang", "target_lang", "right", "picked", "answer"),
            (
                (q.concept, q.source_lang, q.target_lang, q.right, v.picked or "", v.answer)
                for v in verdicts
                for q in (v.question,)
            ),
        )
    langs = list(settings.languages)
    write_table(
        out / "dropped.tsv",
        ("reason", "detail", "id", "pos", *langs),
        ((d.reason, d.detail, d.id, d.pos, *(d.words.get(x, "") for x in langs)) for d in dropped),
    )
    write_table(out / "quarantine.tsv", ("file", "line", "reason", "raw"), sources.bad)
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


def _drop_failing(
    candidates: Sequence[Candidate],
    verdicts: Sequence[Verdict],
    max_failed_share: float,
    dropped: list[Dropped],
) -> list[Candidate]:
    failing = failing_concepts((as_concept(c) for c in candidates), verdicts, max_failed_share)
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
