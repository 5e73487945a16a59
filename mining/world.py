"""Stage `world`: writes the generated corpus with planted pivots, its task, and the truth about it.

`documents/<code>.jsonl.gz` holds one language's pool, `documents/fixed.jsonl.gz` the documents that
every arm contains (sources "codeswitch", "format", "identity"; several languages: lang "mul").
`task.yaml` and `concepts.tsv` are the word-translation task. `truth.json` says what was planted: it
is for judging what mining finds, and no stage that mines may read it.

mining.world_plan says who is who, mining.world_text how the documents are drawn.
"""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mining.common.files import dump_json, remove_tree
from mining.common.logs import progress
from mining.common.stage import begin, settings_dict
from mining.settings import WorldSettings
from mining.world_plan import TRAIN, World, plan_world
from mining.world_text import fixed_documents, pool_documents

MANY = "mul"
TASK_YAML = """\
format: 1
name: world
version: 1
license: CC0-1.0
languages: {languages}
instruction: ""
example: "{{source_language}} {{source}} {{target_language}} {{target}} "
query: "{{source_language}} {{source}} {{target_language}}"
answer: " {{target}}"
concepts: concepts.tsv
"""


def run_world(settings: WorldSettings, out: Path, seed: int) -> None:
    """Write the world of (settings, seed) to `out`; see the module's text."""
    run = begin("world", out, {**settings_dict(settings), "seed": seed}, {})
    if run is None:
        return
    world = plan_world(settings, seed)
    new = run.work / "new"
    remove_tree(new)  # left by an interrupted run; drawing again takes seconds
    counts = _Counts()
    with progress("world", len(world.codes) + 1, "files") as ticker:
        for lang, code in enumerate(world.codes):
            records = pool_records(world, settings, lang, seed)
            _write_documents(new / "documents" / f"{code}.jsonl.gz", counts.watch(records))
            ticker.advance()
        records = fixed_records(world, settings, seed)
        _write_documents(new / "documents" / "fixed.jsonl.gz", counts.watch(records))
        ticker.advance()
    languages = ", ".join(
        f"{code}: {world.vocabulary[name]}"
        for code, name in zip(world.codes, world.names, strict=True)
    )
    task = TASK_YAML.format(languages="{" + languages + "}")
    (new / "task.yaml").write_text(task, encoding="utf-8")
    (new / "concepts.tsv").write_text(concept_table(world), encoding="utf-8")
    (new / "truth.json").write_text(dump_json(truth(world)), encoding="utf-8")
    # Moved when all is there, so that a kill never leaves a half-written file in the folder.
    for path in sorted(p for p in new.rglob("*") if p.is_file()):
        target = out / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    run.finish(
        counts={
            **counts.as_dict(),
            "vocabulary": len(world.vocabulary),
            "concepts": len(world.cells),
            "cells": dict(sorted(Counter(world.cells).items())),
            "pivots": len(np.unique(world.pivots[world.pivots >= 0])),
            "names": settings.names_per_language * settings.languages,
            "hubs": int(world.hubs.size),
        }
    )


def pool_records(
    world: World, settings: WorldSettings, lang: int, seed: int
) -> Iterator[dict[str, Any]]:
    """One language's documents of the pool as records."""
    code = world.codes[lang]
    number = 0
    for chunk in pool_documents(world, settings, lang, seed):
        for topic, tokens in zip(chunk.topic.tolist(), chunk.tokens.tolist(), strict=True):
            yield {
                "id": f"pool-{code}-{number:07d}",
                "text": _text(world, tokens),
                "source": "pool",
                "lang": code,
                "metadata": {"topic": world.topic_name(topic)},
            }
            number += 1


def fixed_records(world: World, settings: WorldSettings, seed: int) -> Iterator[dict[str, Any]]:
    """The documents that every arm contains as records; their topics are mixed (null)."""
    numbers: Counter[str] = Counter()
    for document in fixed_documents(world, settings, seed):
        yield {
            "id": f"{document.source}-{numbers[document.source]:07d}",
            "text": _text(world, document.tokens),
            "source": document.source,
            "lang": MANY if document.lang is None else world.codes[document.lang],
            "metadata": {"topic": None},
        }
        numbers[document.source] += 1


def concept_table(world: World) -> str:
    """The task's table: class is the topic, group the cell, and training concepts are examples.

    The column `pos` tells training from held-out concepts. Distractors are of one pos, so a word's
    rivals are those of its topic that a model has been shown as little about: otherwise it would
    find a held-out word among ten by knowing the translations of the other nine.
    """
    rows = [("id", "pos", "class", *world.codes, "group", "example")]
    for concept, cell in enumerate(world.cells):
        words = [world.word(lang, concept) for lang in range(len(world.codes))]
        topic = world.topic_name(int(world.topic[concept]))
        pos, example = ("training", "yes") if cell == TRAIN else ("heldout", "no")
        rows.append((world.concept_id(concept), pos, topic, *words, cell, example))
    return "".join("\t".join(row) + "\n" for row in rows)


def truth(world: World) -> dict[str, Any]:
    """What was planted, by the tokens' texts and the concepts' ids.

    `pivots`: pivot -> language -> its concepts (the same, unless the world is broken); `names`:
    name -> its language and concept; `hubs`: hub -> topic; `cells`: concept -> cell; `pair_counts`:
    concept of a c1 cell -> pair of languages -> number of documents that hold both words.
    """
    text = world.vocabulary
    pivots: dict[str, dict[str, list[str]]] = {}
    names: dict[str, dict[str, str]] = {}
    for lang, code in enumerate(world.codes):
        for concept, place in np.argwhere(world.pivots[lang] >= 0).tolist():
            of = pivots.setdefault(text[world.pivots[lang, concept, place]], {})
            of.setdefault(code, []).append(world.concept_id(concept))
        for concept in np.flatnonzero(world.decoys[lang] >= 0).tolist():
            token = text[world.decoys[lang, concept]]
            names[token] = {"lang": code, "concept": world.concept_id(concept)}
    labels = [f"{world.codes[a]}-{world.codes[b]}" for a, b in world.pairs]
    return {
        "format": 2,
        "languages": {
            code: text[name] for code, name in zip(world.codes, world.names, strict=True)
        },
        "pivots": pivots,
        "names": names,
        "hubs": {text[i]: world.topic_name(t) for t, row in enumerate(world.hubs) for i in row},
        "neutral": [text[i] for i in world.neutral],
        "function_words": {
            code: [text[i] for i in row]
            for code, row in zip(world.codes, world.function, strict=True)
        },
        "cells": {world.concept_id(i): cell for i, cell in enumerate(world.cells)},
        "pair_counts": {
            world.concept_id(i): dict(zip(labels, row.tolist(), strict=True))
            for i, row in enumerate(world.pair_counts)
            if row.any()
        },
    }


class _Counts:
    """Counts documents and tokens by language and by source, as the records go by."""

    def __init__(self) -> None:
        self._by: dict[str, dict[str, Counter[str]]] = {"lang": {}, "source": {}}

    def watch(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in records:
            n_tokens = record["text"].count(" ") + 1
            for key, table in self._by.items():
                table.setdefault(record[key], Counter()).update(documents=1, tokens=n_tokens)
            yield record

    def as_dict(self) -> dict[str, Any]:
        of_sources = self._by["source"].values()
        return {
            "documents": sum(row["documents"] for row in of_sources),
            "tokens": sum(row["tokens"] for row in of_sources),
            "by_language": {name: dict(row) for name, row in sorted(self._by["lang"].items())},
            "by_source": {name: dict(row) for name, row in sorted(self._by["source"].items())},
        }


def _text(world: World, tokens: Sequence[int]) -> str:
    return " ".join([world.vocabulary[token] for token in tokens])


def _write_documents(path: Path, records: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No file name and no time in the header: the same documents are the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=3, mtime=0) as packed,
        io.BufferedWriter(packed, buffer_size=1 << 20) as handle,
    ):
        for record in records:
            handle.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
