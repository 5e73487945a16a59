"""A task under construction: written, and read back for the distractors that readers compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eval.build_settings import BuildTaskSettings
from eval.lexicon_check import avoid_table
from eval.lexicon_index import LexiconIndex, ambiguous_pairs
from eval.lexicon_join import Candidate, Dropped
from mining.common.files import write_text
from mining.common.task import Concept, Task, read_task

TASK, CONCEPTS, AVOID = "task.yaml", "concepts.tsv", "avoid.tsv"
# METHOD section 1.
TEMPLATES = {
    "instruction": "Please translate words from {source_language} to {target_language}.\n\n",
    "example": "{source_language}: {source}\n{target_language}: {target}\n\n",
    "query": "{source_language}: {source}\n{target_language}:",
    "answer": " {target}",
}


@dataclass(frozen=True)
class Draft:
    """Writes a task and reads it back, so that distractors are those that every reader computes."""

    settings: BuildTaskSettings
    work: Path
    index: LexiconIndex

    def write(self, candidates: Sequence[Candidate], folder: Path) -> None:
        """Write task.yaml, concepts.tsv and avoid.tsv to a folder."""
        langs = list(self.settings.languages)
        concepts = [as_concept(c) for c in candidates]
        columns = ("id", "pos", "class", *langs, *(f"{x}_alt" for x in langs), "group", "example")
        write_table(
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
        pairs = ambiguous_pairs(concepts, langs, self.index)
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
        """The task that the candidates make."""
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


def as_concept(candidate: Candidate) -> Concept:
    """The candidate as the concept that a reader of the task gets."""
    return Concept(
        candidate.id,
        candidate.pos,
        candidate.cls,
        dict(candidate.words),
        {lang: candidate.alternatives.get(lang, ()) for lang in candidate.words},
    )


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A tab-separated table; white space inside a field becomes one space."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(" ".join(str(field).split()) for field in row) for row in rows]
    write_text(path, "\n".join(lines) + "\n")
