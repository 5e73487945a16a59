"""The logit lens: what each layer would answer if it were the last (METHOD section 2).

p_l = softmax(W_U norm(h_l)) for the block outputs h_l, l = 1..L, at chosen positions of a prompt.
Block outputs are taken with hooks, since transformers' last `hidden_states` entry is normed already
and would be normed twice. Only the chosen positions are kept, and they are decoded some rows at a
time: memory is bounded by batch x layers x width and by LOGIT_BYTES, whatever the vocabulary and
the number of items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eval.lens_parts import LensParts, block_output, watching
from eval.models import LanguageModel
from eval.scoring import backbone_inputs, pad_right
from eval.tuned_lens import Translators

# Of the logits decoded at a time; a few arrays of this size are at work at once. More is no faster
# on a CPU (launch.bench.lens), where less stays in the cache.
LOGIT_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}


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
    rank: npt.NDArray[np.int64]
    answer: npt.NDArray[np.float64]


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

    hooks = [block.register_forward_hook(keep_output) for block in parts.blocks]
    if embeddings:
        hooks.append(parts.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    with watching(hooks):
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
    token whose rank is wanted. `vocabularies` float32 [head rows, v] says by 1 or 0 which tokens
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

    Few rows at a time would read the whole unembedding for each layer anew.
    """
    n = len(states[0])
    rows = torch.cat(list(states))
    step = rows_at_a_time(model)
    found = [
        _read(
            model, parts, rows[begin : begin + step],
            torch.arange(begin, min(begin + step, len(rows)), device=rows.device) % n,
            wanted, top_k,
        )
        for begin in range(0, len(rows), step)
    ]  # fmt: skip
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
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


def _read(
    model: LanguageModel,
    parts: LensParts,
    hidden: Tensor,
    items: Tensor,
    wanted: _Wanted,
    top_k: int,
) -> tuple[npt.NDArray[Any], ...]:
    """The columns of LayerReadings for rows [m, width]; `items` int64 [m] is each row's item."""
    logits = parts.logits(model.net, hidden)
    # Softmax in one go: exp by itself is slow on a CPU where it underflows.
    probs = torch.softmax(logits, dim=1)
    top = logits.topk(min(top_k, logits.shape[1]), dim=1)
    top_p = probs.gather(1, top.indices)
    wanted_ids = wanted.answers[items].unsqueeze(1)
    rank = 1 + (logits > logits.gather(1, wanted_ids)).sum(dim=1, dtype=torch.int32)
    masses = [
        (probs.gather(1, ids[items]) * present[items]).sum(dim=1) for ids, present in wanted.members
    ]
    # -sum p log p, with log p = logit - total. A probability that underflows adds 0.
    total = top.values[:, 0] - top_p[:, 0].log()
    entropy = total - torch.linalg.vecdot(probs, logits)
    if wanted.vocabularies is None:
        vocabularies = probs[:, :0]
    else:
        vocabularies = probs[:, : len(wanted.vocabularies)] @ wanted.vocabularies
    top_ids = top.indices.cpu().numpy().astype(np.int64)
    top_probs = top_p.double().cpu().numpy()
    order = np.lexsort((top_ids, -top_probs), axis=1)
    return (
        np.take_along_axis(top_ids, order, axis=1),
        np.take_along_axis(top_probs, order, axis=1),
        torch.stack(masses, dim=1).double().cpu().numpy(),
        vocabularies.double().cpu().numpy(),
        entropy.clamp_min(0).double().cpu().numpy(),
        rank.cpu().numpy().astype(np.int64),
        probs.gather(1, wanted_ids).squeeze(1).double().cpu().numpy(),
    )


def _padded_sets(sets: Sequence[frozenset[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids int64 and presence float32, both [n, largest set]; absent entries have the id 0."""
    width = max(1, *(len(members) for members in sets))
    ids = np.zeros((len(sets), width), dtype=np.int64)
    present = np.zeros((len(sets), width), dtype=np.float32)
    for i, members in enumerate(sets):
        ids[i, : len(members)] = sorted(members)
        present[i, : len(members)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(present).to(device)
