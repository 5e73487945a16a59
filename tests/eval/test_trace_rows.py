"""The table of layers, made of arrays, against rows made one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.items import Item
from eval.lens import LayerReadings
from eval.trace_items import TracedItem, prepare_items
from eval.trace_rows import in_item_order, layer_schema, layer_table
from mining.common.task import Concept, read_task
from mining.common.tokenizer import Tokenizer

LANGS = ("en", "fr", "zh")
VOCAB = 40


class Pieces:
    """All that the table needs of a tokenizer."""

    def piece(self, token: int) -> str:
        return f"\u8a9e{token}"


def draw_item(rng: np.random.Generator, i: int) -> TracedItem:
    source, target = rng.permutation(LANGS)[:2].tolist()
    concept = Concept(f"c{i}", "noun", "k", dict.fromkeys(LANGS, "w"), dict.fromkeys(LANGS, ()))
    own = [frozenset(rng.integers(0, VOCAB, 3).tolist()) for _ in range(2)]
    pivots = frozenset(rng.integers(0, VOCAB, rng.integers(0, 3)).tolist())
    third = [
        frozenset() if lang in (source, target) else frozenset({5} if rng.random() < 0.5 else ())
        for lang in LANGS
    ]
    item = Item(concept, source, target)
    return TracedItem(item, (1, 2), 3, 0, *own, (own[0], pivots, own[1], *third))


def draw_readings(rng: np.random.Generator, n: int, top_k: int) -> LayerReadings:
    return LayerReadings(
        top_ids=rng.integers(0, VOCAB, (n, top_k)),
        top_probs=rng.random((n, top_k)),
        masses=rng.random((n, 3 + len(LANGS))),
        vocabularies=rng.random((n, len(LANGS))),
        entropy=rng.random(n),
        answer=rng.random(n),
        rank=rng.integers(1, VOCAB, n),
    )


def plain_rows(traced: TracedItem, readings: list[LayerReadings], row: int, first: int) -> Any:
    for layer, found in enumerate(readings, start=first):
        masses, ids = found.masses[row].tolist(), found.top_ids[row].tolist()
        words, other = zip(LANGS, masses[3:], traced.sets[3:], strict=True), "neither"
        yield {
            "concept": traced.item.concept.id,
            "source_lang": traced.item.source_lang,
            "target_lang": traced.item.target_lang,
            "layer": layer,
            "p_source": masses[0],
            "p_pivot": masses[1] if traced.sets[1] else None,
            "p_target": masses[2],
            "p_answer": found.answer[row],
            "rank_target": found.rank[row],
            **{f"p_word_{lang}": mass if members else None for lang, mass, members in words},
            **{f"p_vocabulary_{a}": found.vocabularies[row, k] for k, a in enumerate(LANGS)},
            "entropy": found.entropy[row],
            "top_word": "source" if ids[0] in traced.source
            else "target" if ids[0] in traced.target else other,
            "top_tokens": [f"\u8a9e{token}" for token in ids],
            "top_ids": ids,
            "top_probs": found.top_probs[row].tolist(),
        }  # fmt: skip


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_the_table_is_that_of_plain_rows(seed: int, n: int, depth: int, top_k: int) -> None:
    rng = np.random.default_rng(seed)
    prepared = [draw_item(rng, i) for i in range(n)]
    order, cut = rng.permutation(n).tolist(), int(rng.integers(0, n))
    batches = [batch for batch in (order[:cut], order[cut:]) if batch]
    readings = [[draw_readings(rng, len(b), top_k) for _ in range(depth)] for b in batches]
    first = int(rng.integers(0, 2))
    found = layer_table(Pieces(), LANGS, prepared, in_item_order(batches, readings), first)
    rows = {
        i: list(plain_rows(prepared[i], of_batch, row, first))
        for batch, of_batch in zip(batches, readings, strict=True)
        for row, i in enumerate(batch)
    }
    every = [row for i in range(n) for row in rows[i]]
    assert found.equals(pa.Table.from_pylist(every, schema=layer_schema(LANGS)))


def test_words_of_a_third_language(tmp_path: Any, word_task: Any, word_level: Any) -> None:
    task = read_task(word_task(tmp_path / "task", 3, LANGS))
    words = [word for concept in task.concepts for word in concept.words.values()]
    prompts = [task.prompt(a, b, [], "x") for a, b in task.directions()]
    tokenizer = word_level([*words, *prompts])
    items = [Item(concept, "fr", "zh") for concept in task.concepts]
    same, one, _ = prepare_items(tokenizer, task, items, None, 1, 0, 0)
    assert one.sets[3:] == ({tokenizer.encode("wen1")[0]}, frozenset(), frozenset())
    # The English word is spelt as the item's own: nothing of it can be told apart.
    assert same.sets[3] == frozenset()


@pytest.fixture
def byte_fallback(metaspace: Any) -> Tokenizer:
    pieces = ["\u2581", "\u2581Chinese", ":", "\u72d7", "\u72ac", "\u2581dog", "dog", "\u2581x"]
    found: Tokenizer = metaspace(pieces)
    return found


def test_a_bare_space_before_the_answer_is_skipped(
    tmp_path: Any, word_task: Any, byte_fallback: Tokenizer
) -> None:
    task = read_task(word_task(tmp_path / "task", 2))
    concept = task.concepts[1]
    for target, skipped, answer in (("\u72d7", 1, "\u72d7"), ("dog", 0, " dog")):
        words = {**concept.words, "fr": target}
        changed = Concept("c", "noun", "k", words, concept.alternatives)
        (found,) = prepare_items(
            byte_fallback, task, [Item(changed, "en", "fr")], None, 1, 0, 0
        )  # fmt: skip
        assert found.skipped == skipped
        assert byte_fallback.piece(found.answer) == answer
        # What is read is the state that predicts the answer's first real token.
        last = byte_fallback.piece(found.ids[-1])
        assert last == (" " if skipped else ":")
        assert found.answer in found.target
        assert not any(not byte_fallback.piece(t).strip() for t in found.target)
