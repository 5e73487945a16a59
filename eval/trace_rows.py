"""The tables of the trace stage: one row per item, one per item and layer (long form)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    the source's or target's; `p_vocabulary_LANG` that of all tokens of LANG.
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


def layer_rows(
    tokenizer: Tokenizer,
    languages: Sequence[str],
    traced: TracedItem,
    readings: Sequence[LayerReadings],
    row: int,
    first: int,
) -> Iterable[dict[str, Any]]:
    """Rows of `layer_schema` for item `row` of the readings; `first` is the first one's layer.

    `top_word` says which of the item's words the most probable token belongs to: source, target or
    neither; with the probabilities it is all that the classification rules need.
    """
    pair = (traced.item.source_lang, traced.item.target_lang)
    for layer, reading in enumerate(readings, start=first):
        masses = reading.masses[row].tolist()
        p_source, p_pivot, p_target = masses[:3]
        words = dict(zip(languages, masses[3:], strict=True))
        top_ids = reading.top_ids[row].tolist()
        yield {
            **item_keys(traced.item),
            "layer": layer,
            "p_source": p_source,
            "p_pivot": p_pivot if traced.sets[1] else None,
            "p_target": p_target,
            "p_answer": float(reading.answer[row]),
            "rank_target": int(reading.rank[row]),
            **{f"p_word_{k}": None if k in pair else value for k, value in words.items()},
            **{
                f"p_vocabulary_{lang}": float(value)
                for lang, value in zip(languages, reading.vocabularies[row], strict=True)
            },
            "entropy": float(reading.entropy[row]),
            "top_word": _belongs(top_ids[0], traced),
            "top_tokens": [tokenizer.piece(token) for token in top_ids],
            "top_ids": top_ids,
            "top_probs": reading.top_probs[row].tolist(),
        }


def item_row(
    tokenizer: Tokenizer,
    traced: TracedItem,
    layers: Sequence[Mapping[str, Any]],
    settings: TraceSettings,
) -> dict[str, Any]:
    """The row of ITEM_SCHEMA that follows from an item's layers."""
    item, concept = traced.item, traced.item.concept
    voting = [row for row in layers if row["layer"] >= 1]
    tokens = [row["top_ids"][0] for row in voting]
    probs = [row["top_probs"][0] for row in voting]
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
