"""Which items of a task a model is asked: eligible by corpus frequency, and a stable subsample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mining.common.errors import SettingsError
from mining.common.manifest import read_manifest
from mining.common.seeds import hash64
from mining.common.shards import read_columns
from mining.common.task import Concept, Task

DocFreq = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class Item:
    """One concept in one direction; `identical`: both languages write it the same way."""

    concept: Concept
    source_lang: str
    target_lang: str

    @property
    def source(self) -> str:
        """The word to translate."""
        return self.concept.words[self.source_lang]

    @property
    def target(self) -> str:
        """The word that is right."""
        return self.concept.words[self.target_lang]

    @property
    def identical(self) -> bool:
        """Whether source and target are the same string, so that copying would be right."""
        return self.source == self.target


def read_doc_freq(
    words: Path | None, min_doc_freq: int | None, frequency_bands: Sequence[int] = ()
) -> DocFreq | None:
    """Document frequency by (concept, language) from a `words` folder, None where not asked for.

    Raises InputError where the folder is missing or unfinished.
    """
    asked = {"min_doc_freq": min_doc_freq, "frequency_bands": frequency_bands or None}
    settings = [f"{name}: found {value}" for name, value in asked.items() if value is not None]
    if not settings:
        return None
    if words is None:
        raise SettingsError(
            f"{'; '.join(settings)}, expected none without a words folder "
            "(the frequencies come from `pivots words`)"
        )
    read_manifest(words, "words")
    table = read_columns(words / "words.parquet", ["concept", "lang", "doc_freq"])
    columns = table.to_pydict()
    keys = zip(columns["concept"], columns["lang"], strict=True)
    return dict(zip(keys, columns["doc_freq"], strict=True))


def plan_items(
    task: Task, max_items: int | None, doc_freq: DocFreq | None, min_doc_freq: int | None
) -> dict[tuple[str, str], list[Item]]:
    """The items of every direction of a task; `evaluate` and `trace` ask the same ones."""
    return {
        (source, target): select_items(task, source, target, max_items, doc_freq, min_doc_freq)
        for source, target in task.directions()
    }


def select_items(
    task: Task,
    source: str,
    target: str,
    max_items: int | None,
    doc_freq: DocFreq | None = None,
    min_doc_freq: int | None = None,
) -> list[Item]:
    """The items of a direction, in the task's order, those with identical words among them.

    The subsample takes the concepts with the smallest hash, so that every direction, model and seed
    is asked the same ones; identical words do not count towards `max_items`.
    """
    items = [Item(concept, source, target) for concept in task.concepts]
    if doc_freq is not None and min_doc_freq is not None:
        items = [
            item
            for item in items
            if doc_freq.get((item.concept.id, source), 0) >= min_doc_freq
            and doc_freq.get((item.concept.id, target), 0) >= min_doc_freq
        ]
    different = [item for item in items if not item.identical]
    if max_items is None or len(different) <= max_items:
        return items
    different.sort(key=lambda item: hash64("items", task.name, item.concept.id))
    kept = {item.concept.id for item in different[:max_items]}
    return [item for item in items if item.identical or item.concept.id in kept]
