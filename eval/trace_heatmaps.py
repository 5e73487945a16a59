"""A few items read at every position, for the heatmap of layers and positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import torch

from eval.behaviour import DIRECT, PIVOT
from eval.items import Item
from eval.lens import block_states, rows_at_a_time
from eval.trace_items import prepare_items
from eval.trace_rows import item_keys
from eval.tracer import Tracer

Key = tuple[str, str, str]


def clearest_items(items: pa.Table, n: int) -> list[tuple[Key, str]]:
    """Keys and classes of the n items of each behaviour that were decided most clearly.

    By the winning token's probability, ties by key.
    """
    columns = ["concept", "source_lang", "target_lang", "behaviour", "winning_prob"]
    rows = items.select(columns).to_pylist()
    found: list[tuple[Key, str]] = []
    for behaviour in (DIRECT, PIVOT):
        keyed = [
            (-row["winning_prob"], (row["concept"], row["source_lang"], row["target_lang"]))
            for row in rows
            if row["behaviour"] == behaviour
        ]
        found += [(key, behaviour) for _, key in sorted(keyed)[:n]]
    return found


@torch.inference_mode()
def heatmap_rows(tracer: Tracer, item: Item, behaviour: str) -> Iterable[dict[str, Any]]:
    """Rows of HEATMAP_SCHEMA: the last positions of the item's prompt, each at every layer.

    Positions count from the one that predicts the answer, which is 0, backwards.
    """
    model, settings = tracer.model, tracer.settings
    (traced,) = prepare_items(
        model.tokenizer, tracer.task, [item], None, settings.pivots, settings.examples, tracer.seed
    )
    ids = torch.tensor([traced.ids], device=model.device)
    n = min(settings.heatmap_positions, len(traced.ids))
    places = torch.arange(len(traced.ids) - n, len(traced.ids), device=model.device)
    states = block_states(
        model, tracer.parts, ids, torch.ones_like(ids), places.unsqueeze(0), settings.embeddings
    )
    step = rows_at_a_time(model)
    for layer, found in enumerate(states, start=0 if settings.embeddings else 1):
        state = found[0]
        if tracer.translators is not None:
            state = tracer.translators.apply(layer, state)
        for begin in range(0, n, step):
            logits = tracer.parts.logits(model.net, state[begin : begin + step])
            probs = torch.softmax(logits, dim=1)
            best = probs.max(dim=1)
            for row in range(len(probs)):
                place = begin + row
                yield {
                    **item_keys(item),
                    "source": item.source,
                    "target": item.target,
                    "behaviour": behaviour,
                    "position": place - n + 1,
                    "token": model.tokenizer.piece(traced.ids[len(traced.ids) - n + place]),
                    "layer": layer,
                    "top_token": model.tokenizer.piece(int(best.indices[row])),
                    "top_prob": float(best.values[row]),
                    "p_answer": float(probs[row, traced.answer]),
                }
