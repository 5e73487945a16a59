"""Patching: the state at the answering position, replaced by that of a prompt for another concept.

If a layer's state at that position holds which concept is asked for, the answer follows the donor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from eval.interventions import edited, with_states
from eval.lens import block_states, rows_at_a_time
from eval.lens_parts import LensParts
from eval.models import LanguageModel
from eval.scoring import pad_right
from eval.trace_items import TracedItem
from eval.trace_rows import item_keys

PATCHING_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("behaviour", pa.string()),
        ("donor", pa.string()),
        # 0: nothing is replaced.
        ("layer", pa.int64()),
        ("log_p_own", pa.float64()),
        ("log_p_donor", pa.float64()),
        ("top_id", pa.int64()),
        ("top_token", pa.string()),
    ]
)


def choose_donors(items: Sequence[TracedItem]) -> list[int | None]:
    """For each item the next one (in a circle) whose answer begins with another token."""
    n = len(items)
    return [
        next(
            (
                (i + step) % n
                for step in range(1, n)
                if items[(i + step) % n].answer != traced.answer
                and items[(i + step) % n].skipped == traced.skipped
            ),
            None,
        )
        for i, traced in enumerate(items)
    ]


@torch.inference_mode()
def patching_rows(
    model: LanguageModel,
    parts: LensParts,
    items: Sequence[tuple[TracedItem, str]],
    batch: Sequence[int],
    donors: Sequence[int | None],
    layers: Sequence[int],
) -> list[dict[str, Any]]:
    """Rows of PATCHING_SCHEMA: every item of the batch that has a donor, unpatched and by layer."""
    pairs = [(i, donor) for i in batch if (donor := donors[i]) is not None]
    if not pairs:
        return []
    own = [items[i][0] for i, _ in pairs]
    given = [items[donor][0] for _, donor in pairs]
    ids, mask = pad_right([traced.ids for traced in own], model.device)
    last = mask.sum(dim=1) - 1
    other_ids, other_mask = pad_right([traced.ids for traced in given], model.device)
    states = block_states(
        model, parts, other_ids, other_mask, other_mask.sum(dim=1) - 1, embeddings=False
    )
    answers = torch.tensor(
        [[a.answer, b.answer] for a, b in zip(own, given, strict=True)], device=model.device
    )
    step = rows_at_a_time(model)
    rows = []
    for layer in (0, *layers):
        edits = {} if layer == 0 else {layer: with_states(states[layer - 1], last)}
        with edited(parts, edits):
            final = block_states(model, parts, ids, mask, last, embeddings=False)[-1]
        for begin in range(0, len(final), step):
            logits = parts.logits(model.net, final[begin : begin + step])
            logs = torch.log_softmax(logits, dim=1).gather(1, answers[begin : begin + step])
            top = logits.argmax(dim=1).tolist()
            for k, (log_own, log_donor) in enumerate(logs.cpu().double().tolist()):
                traced, source = own[begin + k], given[begin + k]
                rows.append(
                    {
                        **item_keys(traced.item),
                        "behaviour": items[pairs[begin + k][0]][1],
                        "donor": source.item.concept.id,
                        "layer": layer,
                        "log_p_own": log_own,
                        "log_p_donor": log_donor,
                        "top_id": top[k],
                        "top_token": model.tokenizer.piece(top[k]),
                    }
                )
    return rows
