"""The tables of the trace stage: one row per item, one per item and layer (long form)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.behaviour import classify, classify_any, find_winner
from eval.items import Item
from eval.lens import LayerReadings
from eval.settings import TraceSettings
from eval.trace_items import TracedItem
from mining.common.tokenizer import Tokenizer

_KEYS = [
    ("concept", pa.string()),
    ("source_lang", pa.string()),
    ("target_lang", pa.string()),
]
ITEM_SCHEMA = pa.schema(
    [
        *_KEYS,
        ("pos", pa.string()),
        ("class", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("behaviour", pa.string()),
        ("behaviour_winner", pa.string()),
        ("behaviour_any", pa.string()),
        ("winning_layer", pa.int64()),
        ("winning_token", pa.string()),
        ("winning_id", pa.int64()),
        ("winning_prob", pa.float64()),
        ("answer_token", pa.string()),
        ("answer_id", pa.int64()),
        ("skipped_spaces", pa.int64()),
        ("n_pivots", pa.int64()),
    ]
)
HEATMAP_SCHEMA = pa.schema(
    [
        *_KEYS,
        ("source", pa.string()),
        ("target", pa.string()),
        ("behaviour", pa.string()),
        ("position", pa.int64()),
        ("token", pa.string()),
        ("layer", pa.int64()),
        ("top_token", pa.string()),
        ("top_prob", pa.float64()),
        ("p_answer", pa.float64()),
    ]
)


def layer_schema(languages: Iterable[str]) -> pa.Schema:
    """The columns of `layers.parquet` for a task with these languages.

    `p_word_LANG` is the probability of the concept's word in a third language, null where LANG is
    the source's or target's, or where the word has no token that the item's own words lack;
    `p_vocabulary_LANG` that of all tokens of LANG.
    """
    langs = list(languages)
    return pa.schema(
        [
            *_KEYS,
            ("layer", pa.int64()),
            ("p_source", pa.float64()),
            ("p_pivot", pa.float64()),
            ("p_target", pa.float64()),
            ("p_answer", pa.float64()),
            ("rank_target", pa.int64()),
            *((f"p_word_{lang}", pa.float64()) for lang in langs),
            *((f"p_vocabulary_{lang}", pa.float64()) for lang in langs),
            ("entropy", pa.float64()),
            ("top_word", pa.string()),
            ("top_tokens", pa.list_(pa.string())),
            ("top_ids", pa.list_(pa.int64())),
            ("top_probs", pa.list_(pa.float64())),
        ]
    )


def in_item_order(
    batches: Sequence[Sequence[int]], readings: Sequence[Sequence[LayerReadings]]
) -> LayerReadings:
    """All batches' readings, in the items' order: each column [n] becomes [n, layers].

    `batches[b]` are the items of batch b, `readings[b]` what was read of them, by layer.
    """
    order = np.argsort(np.concatenate([np.asarray(batch) for batch in batches]))
    columns = {}
    for column in dataclasses.fields(LayerReadings):
        parts = [np.stack([getattr(r, column.name) for r in found], axis=1) for found in readings]
        columns[column.name] = np.concatenate(parts)[order]
    return LayerReadings(**columns)


def layer_table(
    tokenizer: Tokenizer,
    languages: Sequence[str],
    prepared: Sequence[TracedItem],
    readings: LayerReadings,
    first: int,
) -> pa.Table:
    """The table of `layer_schema` for items with their readings (columns [n, layers]).

    `first` is the first layer's number. Arrays all through: a direction of 2,000 items has 64,000
    rows at 32 layers. `top_word` says which of the item's words the most probable token belongs to:
    source, target or neither; with the probabilities it is all that the classification rules need.
    """
    n, depth = readings.rank.shape
    item = np.repeat(np.arange(n), depth)
    p_source, p_pivot, p_target, *words = np.moveaxis(readings.masses, 2, 0)
    without_pivots = np.array([not traced.sets[1] for traced in prepared])
    columns: dict[str, Any] = {
        key: pa.array([item_keys(traced.item)[key] for traced in prepared]).take(pa.array(item))
        for key, _ in _KEYS
    }
    columns |= {
        "layer": np.tile(np.arange(first, first + depth), n),
        "p_source": p_source.ravel(),
        "p_pivot": pa.array(p_pivot.ravel(), mask=without_pivots[item]),
        "p_target": p_target.ravel(),
        "p_answer": readings.answer.ravel(),
        "rank_target": readings.rank.ravel(),
        "entropy": readings.entropy.ravel(),
    }
    for k, lang in enumerate(languages):
        unseen = np.array([not traced.sets[3 + k] for traced in prepared])
        columns[f"p_word_{lang}"] = pa.array(words[k].ravel(), mask=unseen[item])
        columns[f"p_vocabulary_{lang}"] = readings.vocabularies[:, :, k].ravel()
    first_ids = readings.top_ids[:, :, 0].tolist()
    columns["top_word"] = [
        _belongs(token, traced)
        for traced, tokens in zip(prepared, first_ids, strict=True)
        for token in tokens
    ]
    top_k = readings.top_ids.shape[2]
    ends = pa.array(np.arange(0, n * depth * top_k + 1, top_k), pa.int32())
    known, places = np.unique(readings.top_ids, return_inverse=True)
    pieces = pa.array([tokenizer.piece(token) for token in known.tolist()], pa.string())
    lists: dict[str, Any] = {
        "top_tokens": pieces.take(pa.array(places.ravel())),
        "top_ids": readings.top_ids.ravel(),
        "top_probs": readings.top_probs.ravel(),
    }
    columns |= {name: pa.ListArray.from_arrays(ends, pa.array(v)) for name, v in lists.items()}
    schema = layer_schema(languages)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def item_row(
    tokenizer: Tokenizer,
    traced: TracedItem,
    tokens: Sequence[int],
    probs: Sequence[float],
    settings: TraceSettings,
) -> dict[str, Any]:
    """The row of ITEM_SCHEMA that follows from each block's most probable token [L]."""
    item, concept = traced.item, traced.item.concept
    winner = find_winner(tokens, probs)
    words = (traced.source, traced.target)
    by_rule = {
        "winner": classify(tokens, probs, *words),
        "any": classify_any(tokens, probs, *words, settings.threshold),
    }
    return {
        **item_keys(item),
        "pos": concept.pos,
        "class": concept.cls,
        "group": concept.group,
        "source": item.source,
        "target": item.target,
        "behaviour": by_rule[settings.rule],
        "behaviour_winner": by_rule["winner"],
        "behaviour_any": by_rule["any"],
        "winning_layer": winner.layer,
        "winning_token": tokenizer.piece(winner.token),
        "winning_id": winner.token,
        "winning_prob": winner.probability,
        "answer_token": tokenizer.piece(traced.answer),
        "answer_id": traced.answer,
        "skipped_spaces": traced.skipped,
        "n_pivots": len(traced.sets[1]),
    }


def item_keys(item: Item) -> dict[str, str]:
    """The columns that name an item."""
    return {
        "concept": item.concept.id,
        "source_lang": item.source_lang,
        "target_lang": item.target_lang,
    }


def _belongs(token: int, traced: TracedItem) -> str:
    if token in traced.source:
        return "source"
    return "target" if token in traced.target else "neither"
