"""Ablation: the answer's probability with and without the directions that pivots' logits read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eval.control_tokens import TokenTraits, frequency_octaves, matched_tokens
from eval.intervene_settings import InterveneSettings
from eval.interventions import Edit, edited, orthonormal, token_directions, without_directions
from eval.lens import block_states, rows_at_a_time
from eval.lens_parts import LensParts
from eval.models import LanguageModel
from eval.scoring import pad_right
from eval.trace_items import PairPivots, TracedItem
from eval.trace_rows import item_keys
from mining.common.seeds import generator

CLEAN, PIVOTS, RANDOM, OTHER = "clean", "pivots", "random", "other"
CONDITIONS = (PIVOTS, RANDOM, OTHER)
ABLATION_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("behaviour", pa.string()),
        ("condition", pa.string()),
        ("tokens", pa.list_(pa.int64())),
        ("p_answer", pa.float64()),
        ("log_p_answer", pa.float64()),
        ("rank_answer", pa.int64()),
        ("top_id", pa.int64()),
        ("top_token", pa.string()),
    ]
)
DIRECTION_ROWS = 4096


@dataclass(frozen=True)
class Ablator:
    """A model whose directions are removed, and what the controls are chosen by.

    `pivots` are all pivots of each pair, of which the strongest are removed: none of them is taken
    for a control.
    """

    model: LanguageModel
    parts: LensParts
    traits: TokenTraits
    pivots: PairPivots
    settings: InterveneSettings
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What the model answers to n prompts: arrays [n]."""

    p: Any
    log_p: Any
    rank: Any
    top: Any


def read_traits(model: LanguageModel, parts: LensParts, count: Path | None) -> TokenTraits:
    """Frequency and length of direction of every token that the tokenizer knows."""
    n = min(model.tokenizer.vocab_size, model.n_embeddings)
    tokens = torch.arange(n, device=model.device)
    width = _width(model, parts)
    norms = [token_directions(parts, part, width).norm(dim=1) for part in _pieces(tokens)]
    octave = frequency_octaves(model.tokenizer, count, n)
    usable = np.ones(n, dtype=bool)
    usable[[token for token in model.tokenizer.special_ids if token < n]] = False
    if (octave >= 0).any():
        # A token that the corpus does not have is no match for one that it has.
        usable &= octave >= 0
    return TokenTraits(octave, torch.cat(norms).cpu().double().numpy(), usable)


def ablation_rows(
    ablator: Ablator, items: Sequence[tuple[TracedItem, str]], batch: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of ABLATION_SCHEMA: every item of the batch that has pivots, under every condition."""
    chosen = [i for i in batch if _own_pivots(items[i][0])]
    if not chosen:
        return []
    model, parts, settings = ablator.model, ablator.parts, ablator.settings
    ids, mask = pad_right([items[i][0].ids for i in chosen], model.device)
    last = mask.sum(dim=1) - 1
    answers = [items[i][0].answer for i in chosen]
    removed = {i: removed_tokens(ablator, items, i) for i in chosen}
    layers = settings.ablated_layers(len(parts.blocks))
    rows = []
    for condition in (CLEAN, *CONDITIONS):
        edits: Mapping[int, Edit] = {}
        if condition != CLEAN:
            basis = _basis(model, parts, [removed[i].get(condition, []) for i in chosen])
            only = last if settings.positions == "answer" else None
            edits = dict.fromkeys(layers, without_directions(basis, only))
        with edited(parts, edits):
            found = outcome(model, parts, ids, mask, last, answers)
        for row, i in enumerate(chosen):
            if condition != CLEAN and condition not in removed[i]:
                continue
            top = int(found.top[row])
            rows.append(
                {
                    **item_keys(items[i][0].item),
                    "behaviour": items[i][1],
                    "condition": condition,
                    "tokens": removed[i].get(condition, []),
                    "p_answer": float(found.p[row]),
                    "log_p_answer": float(found.log_p[row]),
                    "rank_answer": int(found.rank[row]),
                    "top_id": top,
                    "top_token": model.tokenizer.piece(top),
                }
            )
    return rows


def removed_tokens(
    ablator: Ablator, items: Sequence[tuple[TracedItem, str]], i: int
) -> dict[str, list[int]]:
    """The tokens whose directions are removed from item i, by condition.

    A condition that cannot be had is left out: no other pair with as many pivots that are not this
    pair's own. The answer is never among them.
    """
    traced = items[i][0]
    own = _own_pivots(traced)
    item = traced.item
    key = (item.concept.id, item.source_lang, item.target_lang)
    excluded = traced.sets[0] | traced.sets[2] | {traced.answer, *ablator.pivots.get(key, ())}
    found = {PIVOTS: own}
    rng = generator(ablator.seed, "controls", item.source_lang, item.target_lang, item.concept.id)
    drawn = matched_tokens(ablator.traits, own, excluded, rng)
    if len(drawn) == len(own):
        found[RANDOM] = drawn
    for step in range(1, len(items)):
        other = items[(i + step) % len(items)][0]
        spare = sorted(other.sets[1] - excluded)
        if len(spare) >= len(own):
            # At random: low ids are frequent tokens in most vocabularies.
            found[OTHER] = sorted(rng.choice(spare, len(own), replace=False).tolist())
            break
    return found


def _own_pivots(traced: TracedItem) -> list[int]:
    return sorted(traced.sets[1] - {traced.answer})


@torch.inference_mode()
def outcome(
    model: LanguageModel,
    parts: LensParts,
    ids: Tensor,
    mask: Tensor,
    last: Tensor,
    answers: Sequence[int],
) -> Outcome:
    """What the model answers at the position `last` of each row, and how probable `answers` are."""
    states = block_states(model, parts, ids, mask, last, embeddings=False)[-1]
    wanted = torch.tensor(answers, device=model.device).unsqueeze(1)
    step = rows_at_a_time(model)
    columns = []
    for begin in range(0, len(states), step):
        logits = parts.logits(model.net, states[begin : begin + step])
        answer = logits.gather(1, wanted[begin : begin + step])
        log_p = (answer - torch.logsumexp(logits, dim=1, keepdim=True)).squeeze(1).cpu().double()
        rank = 1 + (logits > answer).sum(dim=1)
        parts_found = (log_p.exp(), log_p, rank, logits.argmax(dim=1))
        columns.append([column.cpu().numpy() for column in parts_found])
    return Outcome(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _basis(model: LanguageModel, parts: LensParts, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Orthonormal bases float32 [n, width, r] of the tokens' directions; r is the largest number.

    Rows with fewer tokens, or none, have columns of zeros.
    """
    width, size = _width(model, parts), max(1, *(len(own) for own in tokens))
    directions = torch.zeros(len(tokens), size, width, device=model.device)
    flat = torch.tensor([t for own in tokens for t in own], device=model.device, dtype=torch.long)
    if len(flat):
        found = torch.cat([token_directions(parts, part, width) for part in _pieces(flat)])
        places = [(row, k) for row, own in enumerate(tokens) for k in range(len(own))]
        row, column = torch.tensor(places, device=model.device).T
        directions[row, column] = found
    return orthonormal(directions)


def _pieces(tokens: Tensor) -> list[Tensor]:
    return [tokens[k : k + DIRECTION_ROWS] for k in range(0, len(tokens), DIRECTION_ROWS)]


def _width(model: LanguageModel, parts: LensParts) -> int:
    """Of the residual stream, which may be wider than the embeddings (OPT)."""
    return int(model.net.config.get_text_config().hidden_size)
