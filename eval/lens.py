"""The logit lens: what each layer would answer if it were the last (METHOD section 2).

p_l = softmax(W_U norm(h_l)) for the block outputs h_l, l = 1..L, at chosen positions of a prompt.
Block outputs are taken with hooks, since transformers' last `hidden_states` entry is normed already
and would be normed twice. Only the chosen positions are kept, and they are decoded some rows at a
time: memory is bounded by batch x layers x width and by LOGIT_BYTES, whatever the vocabulary and
the number of items.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eval.lens_parts import LensParts, block_output
from eval.models import LanguageModel
from eval.scoring import backbone_inputs, pad_right
from eval.tuned_lens import Translators
from mining.common.errors import InputError

# Of the logits decoded at a time; a few arrays of this size are at work at once. Each product reads
# the whole unembedding. glibc takes an array of more than 32 MiB from the system each time, and
# gives it back, which costs more than a longer product saves.
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
BLOCK = 64
# Tokens looked at, however few are asked for, so that the first of equals is the same in any case:
# in half precision the largest logits are often equal.
LEAST_TOP = 8


@dataclass(frozen=True)
class LayerReadings:
    """What the lens shows at one layer for n items.

    `top_ids` int64 [n, k] and `top_probs` float64 [n, k] fall by probability, ties by id; `masses`
    float64 [n, s] are the probabilities of each item's s sets of tokens, `vocabularies` float64
    [n, v] those of v sets that are the same for all items; `entropy` float64 [n] is in nats; `rank`
    int64 [n] is the 1-based rank of each item's answer token, and `answer` float64 [n] its
    probability.
    """

    top_ids: npt.NDArray[np.int64]
    top_probs: npt.NDArray[np.float64]
    masses: npt.NDArray[np.float64]
    vocabularies: npt.NDArray[np.float64]
    entropy: npt.NDArray[np.float64]
    answer: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]


@torch.inference_mode()
def block_states(
    model: LanguageModel,
    parts: LensParts,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    embeddings: bool,
) -> list[Tensor]:
    """Residual streams at chosen positions of each row: one tensor per block, in order.

    `ids` and `mask` are [n, length]; `positions` int64 [n] gives states [n, width], or [n, p] gives
    [n, p, width]. With `embeddings`, the first block's input comes first. Hooks are removed
    whatever happens.
    """
    rows = torch.arange(len(ids), device=ids.device)
    if positions.dim() == 2:
        rows = rows.unsqueeze(1)
    states: list[Tensor] = []

    def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        states.append(hidden[rows, positions])

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        states.append(block_output(output)[rows, positions])

    with contextlib.ExitStack() as hooks:
        for block in parts.blocks:
            hooks.enter_context(block.register_forward_hook(keep_output))
        if embeddings:
            before = parts.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)
            hooks.enter_context(before)
        order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        model.net.base_model(**backbone_inputs(model, ids, mask, order), use_cache=False)
    return states


@torch.inference_mode()
def read_layers(
    model: LanguageModel,
    parts: LensParts,
    sequences: Sequence[Sequence[int]],
    sets: Sequence[Sequence[frozenset[int]]],
    answers: Sequence[int],
    top_k: int,
    embeddings: bool,
    vocabularies: Tensor | None = None,
    translators: Translators | None = None,
) -> list[LayerReadings]:
    """The lens at the last token of each sequence, for every layer.

    `sets[i]` are item i's sets of token ids, the same number for each item; `answers[i]` is the
    token whose rank is wanted. `vocabularies` float32 [v, head rows] says by 1 or 0 which tokens
    belong to v common sets. The first entry is layer 0 where `embeddings` are asked for.
    """
    ids, mask = pad_right(sequences, model.device)
    last = mask.sum(dim=1) - 1
    states = block_states(model, parts, ids, mask, last, embeddings)
    if translators is not None:
        first = 0 if embeddings else 1
        states = [translators.apply(k, state) for k, state in enumerate(states, start=first)]
    n_sets = len(sets[0])
    wanted = _Wanted(
        members=[_padded_sets([item[s] for item in sets], model.device) for s in range(n_sets)],
        answers=torch.tensor(answers, device=model.device),
        vocabularies=vocabularies,
    )
    return decode(model, parts, states, wanted, top_k)


@dataclass(frozen=True)
class _Wanted:
    """What is asked of the n items: `members` are ids int64 and presence float32, both [n, w]."""

    members: Sequence[tuple[Tensor, Tensor]]
    answers: Tensor
    vocabularies: Tensor | None


def decode(
    model: LanguageModel, parts: LensParts, states: Sequence[Tensor], wanted: _Wanted, top_k: int
) -> list[LayerReadings]:
    """Readings of each layer's states [n, width]; the layers' rows go through the head together.

    Few rows at a time would read the whole unembedding for each layer anew. Raises InputError where
    the logits are not finite.
    """
    n = len(states[0])
    rows = torch.cat(list(states))
    items = torch.arange(len(rows), device=rows.device) % n
    step = rows_at_a_time(model)
    found = [
        _read(
            parts.logits(model.net, rows[begin : begin + step]), items[begin : begin + step],
            wanted, top_k,
        )
        for begin in range(0, len(rows), step)
    ]  # fmt: skip
    ids, probs, rank, *masses = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    top_ids, top_probs = ids.numpy(), probs.double().numpy()
    if np.isnan(top_probs).any():
        raise InputError(
            f"{model.name}: the lens's logits are not numbers for some item; the dtype is too "
            "small for the model: try float32"
        )
    order = np.lexsort((top_ids, -top_probs), axis=1)[:, :top_k]
    columns = [
        np.take_along_axis(top_ids, order, axis=1),
        np.take_along_axis(top_probs, order, axis=1),
        *(column.double().numpy() for column in masses),
        rank.numpy().astype(np.int64),
    ]
    layers = range(0, len(rows), n)
    return [LayerReadings(*(column[k : k + n] for column in columns)) for k in layers]


def rows_at_a_time(model: LanguageModel) -> int:
    """Rows whose logits fit in LOGIT_BYTES."""
    limit = LOGIT_BYTES.get(model.device.type, LOGIT_BYTES["cpu"])
    return max(1, limit // (4 * model.n_embeddings))


def batches_by_length(sequences: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of the sequences in batches of at most `batch_tokens` (padding too), by length."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(sequences[index]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _read(logits: Tensor, items: Tensor, wanted: _Wanted, top_k: int) -> tuple[Tensor, ...]:
    """The columns of LayerReadings, `rank` after the first two, for logits float32 [m, vocabulary].

    `items` int64 [m] is each row's item.
    """
    top, ids = largest(logits, min(max(top_k, LEAST_TOP), logits.shape[1]))
    # Softmax in one go: exp by itself is slow on a CPU where it underflows.
    probs = torch.softmax(logits, dim=1)
    top_probs = probs.gather(1, ids)
    wanted_ids = wanted.answers[items].unsqueeze(1)
    # As floats, which a CPU adds up several times as fast as truth values; exact up to 2^24.
    work = torch.empty_like(logits)
    rank = 1 + torch.gt(logits, logits.gather(1, wanted_ids), out=work).sum(dim=1)
    masses = [
        (probs.gather(1, members[items]) * present[items]).sum(dim=1)
        for members, present in wanted.members
    ]
    # -sum p log p, with log p = (logit - largest) + log p of the largest: large logits would lose
    # digits by themselves. A probability that underflows adds 0.
    inside = torch.sub(logits, top[:, :1], out=work).mul_(probs).sum(dim=1)
    entropy = -top_probs[:, 0].log() - inside
    if wanted.vocabularies is None:
        vocabularies = probs[:, :0]
    else:
        known = probs[:, : wanted.vocabularies.shape[1]]
        vocabularies = torch.nn.functional.linear(known, wanted.vocabularies)
    return (
        ids, top_probs, rank, torch.stack(masses, dim=1), vocabularies, entropy.clamp_min(0),
        probs.gather(1, wanted_ids).squeeze(1),
    )  # fmt: skip


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of float32 [m, n], falling, and where they stand: both [m, k].

    On a CPU `topk` copies whole rows to sort them. The largest of a row stand in the k blocks whose
    own largest are, so that only these are searched. Which of equal values at the end are among
    the k is left open, as in `topk`.
    """
    n_blocks = values.shape[1] // BLOCK
    if n_blocks <= k:
        found = values.topk(k, dim=1)
        return found.values, found.indices
    whole = n_blocks * BLOCK
    maxima = values[:, :whole].reshape(len(values), n_blocks, BLOCK).amax(dim=2)
    blocks = maxima.topk(k, dim=1).indices.unsqueeze(2)
    inside = torch.arange(BLOCK, device=values.device)
    rest = torch.arange(whole, values.shape[1], device=values.device)
    places = torch.cat([(BLOCK * blocks + inside).flatten(1), rest.expand(len(values), -1)], dim=1)
    found = values.gather(1, places).topk(k, dim=1)
    return found.values, places.gather(1, found.indices)


def _padded_sets(sets: Sequence[frozenset[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids int64 and presence float32, both [n, largest set]; absent entries have the id 0."""
    width = max(1, *(len(members) for members in sets))
    ids = np.zeros((len(sets), width), dtype=np.int64)
    present = np.zeros((len(sets), width), dtype=np.float32)
    for i, members in enumerate(sets):
        ids[i, : len(members)] = sorted(members)
        present[i, : len(members)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(present).to(device)
