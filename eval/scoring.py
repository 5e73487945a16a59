"""Likelihood of answers under a model: shared starts once, only answer positions decoded.

A group is a set of prompts with answers that begin alike: an item's right source word and its
distractors share the instruction and the worked examples. Their common start is computed once,
its keys and values are handed to every member, and only the positions that predict answer tokens go
through the unembedding. Equal to full prompts, one at a time, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eval.models import (
    PROBE_ERRORS,
    LanguageModel,
    probe_ids,
    probe_tolerance,
    unembed,
)
from eval.prompts import Encoded
from mining.common.errors import InputError
from mining.common.logs import log

Losses = npt.NDArray[np.float64]
Group = Sequence[Encoded]

MIN_SHARED_TOKENS = 4
LOGIT_BYTES = 256 << 20


@dataclass(frozen=True)
class _Plan:
    """A group and how many first tokens of its members are computed once."""

    index: int
    members: Group
    n_shared: int

    @property
    def suffix(self) -> int:
        return max(len(member.ids) for member in self.members) - self.n_shared


def shared_start(members: Group) -> int:
    """Length of the members' common start, at most one less than the shortest context.

    The last context token stays outside: its hidden state predicts the first answer token.
    """
    first, last = min(m.ids for m in members), max(m.ids for m in members)
    length = min(len(first), len(last))
    common = next((i for i in range(length) if first[i] != last[i]), length)
    return min(common, min(m.n_context for m in members) - 1)


def group_losses(
    model: LanguageModel,
    groups: Sequence[Group],
    batch_tokens: int,
    reuse_prefix: bool,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[Losses]:
    """Mean loss per answer token (nats), float64 [n_members], of every group (METHOD section 1).

    `batch_tokens` bounds rows x length of a batch, padding included, though a batch holds at least
    one group. `advance(n)` is called with the number of groups done. Raises InputError where a
    prompt is longer than the model allows or holds ids that it has no embedding for, and where a
    loss is not a number.
    """
    if not groups:
        return []
    sequences = [member.ids for members in groups for member in members]
    check_lengths(model, sequences)
    check_known(model, sequences)
    plans = []
    for index, members in enumerate(groups):
        shared = shared_start(members) if reuse_prefix else 0
        plans.append(_Plan(index, members, shared if shared >= MIN_SHARED_TOKENS else 0))
    window = _sliding_window(model.net)
    if window is not None and _width(plans) > window:
        # Padding between start and continuation would push tokens out of the window.
        plans = [_Plan(plan.index, plan.members, 0) for plan in plans]
    plans.sort(key=lambda plan: (plan.n_shared, plan.suffix, plan.index))
    results: list[Losses | None] = [None] * len(groups)
    for batch in _batches(plans, batch_tokens):
        for plan, losses in zip(batch, _batch_losses(model, batch), strict=True):
            if np.isnan(losses).any():
                # A comparison with NaN is false, so the right answer would count as the best.
                raise InputError(
                    f"{model.name}: the loss of an answer is not a number; the weights hold values "
                    "that are not finite, or the dtype is too small for the model: try float32"
                )
            results[plan.index] = losses
        advance(len(batch))
    return [losses for losses in results if losses is not None]


def can_reuse_prefix(model: LanguageModel) -> bool:
    """Whether this architecture gives the same losses with shared starts: tried on a small probe.

    Two groups whose starts differ in length, so that padding is probed too.
    """
    ids = probe_ids(model.net)[0].tolist()
    ends = ((ids[0], ids[1], ids[2]), (ids[3], ids[1]))
    groups = [
        [Encoded((*start, *end), len(start) + 1) for end in ends]
        for start in (tuple(ids), tuple(ids[2:]))
    ]
    try:
        found = group_losses(model, groups, 1 << 20, reuse_prefix=True)
    except (*PROBE_ERRORS, InputError) as error:
        log.warning("%s: prompts are computed in full (%s)", model.name, error)
        return False
    expected = group_losses(model, groups, 1 << 20, reuse_prefix=False)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    if difference <= probe_tolerance(model.net):
        return True
    log.warning(
        "%s: prompts are computed in full (shared starts change the loss by %.3g)",
        model.name,
        difference,
    )
    return False


def _width(plans: Sequence[_Plan]) -> int:
    return max(plan.n_shared for plan in plans) + max(plan.suffix for plan in plans)


def _batches(plans: Sequence[_Plan], batch_tokens: int) -> Iterator[list[_Plan]]:
    batch: list[_Plan] = []
    for plan in plans:
        candidate = [*batch, plan]
        rows = sum(len(p.members) for p in candidate)
        # Groups with and without a shared start never stand in one batch: one has no cache.
        mixed = bool(batch) and (batch[0].n_shared == 0) != (plan.n_shared == 0)
        if batch and (mixed or rows * _width(candidate) > batch_tokens):
            yield batch
            batch = [plan]
        else:
            batch = candidate
    if batch:
        yield batch


@torch.inference_mode()
def _batch_losses(model: LanguageModel, batch: Sequence[_Plan]) -> list[Losses]:
    device = model.device
    owners = [g for g, plan in enumerate(batch) for _ in plan.members]
    shared = [batch[g].n_shared for g in owners]
    members = [member for plan in batch for member in plan.members]
    cache: Any = None
    ids, mask = pad_right([m.ids[n:] for m, n in zip(members, shared, strict=True)], device)
    offsets = torch.tensor(shared, device=device).unsqueeze(1)
    positions = offsets + torch.arange(ids.shape[1], device=device)
    if batch[0].n_shared:
        start_ids, start_mask = pad_right([p.members[0].ids[: p.n_shared] for p in batch], device)
        start_positions = torch.arange(start_ids.shape[1], device=device).expand_as(start_ids)
        output = model.net.base_model(
            **backbone_inputs(model, start_ids, start_mask, start_positions), use_cache=True
        )
        cache = output.past_key_values
        rows = torch.tensor(owners, device=device)
        cache.batch_select_indices(rows)
        # The gaps between a short start and its continuation are masked, so nothing attends there.
        mask = torch.cat([start_mask[rows], mask], dim=1)
    # Position t predicts token t + 1, so an answer's predictors begin at its last context token.
    answers = [
        (row, column, token)
        for row, (member, n) in enumerate(zip(members, shared, strict=True))
        for column, token in enumerate(member.answer, start=member.n_context - 1 - n)
    ]
    row_of, column_of, tokens = (torch.tensor(x, device=device) for x in zip(*answers, strict=True))
    inputs = backbone_inputs(model, ids, mask, positions)
    if cache is not None:
        inputs |= {"past_key_values": cache, "use_cache": True}
    else:
        inputs["use_cache"] = False
    if model.decodes_rows:
        hidden = model.net.base_model(**inputs).last_hidden_state[row_of, column_of]
    else:
        hidden = model.net(**inputs).logits[row_of, column_of]
    log_probs = _token_log_probs(model, hidden, tokens)
    sums = np.bincount(row_of.cpu().numpy(), weights=-log_probs, minlength=len(members))
    means = sums / np.array([len(member.answer) for member in members])
    ends = np.cumsum([len(plan.members) for plan in batch])
    return np.split(means, ends[:-1])


def _token_log_probs(model: LanguageModel, hidden: Tensor, tokens: Tensor) -> Losses:
    """log p of each token float64 [n], decoding as many rows at a time as fit in LOGIT_BYTES."""
    step = max(1, LOGIT_BYTES // (4 * model.n_embeddings))
    parts = []
    for begin in range(0, len(tokens), step):
        rows = hidden[begin : begin + step]
        logits = unembed(model.net, rows) if model.decodes_rows else rows.float()
        chosen = logits.gather(1, tokens[begin : begin + step].unsqueeze(1)).squeeze(1)
        parts.append((chosen - torch.logsumexp(logits, dim=1)).double().cpu().numpy())
    return np.concatenate(parts)


def backbone_inputs(
    model: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor
) -> dict[str, Any]:
    """Arguments of a forward pass; positions only where the architecture has that argument."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if model.takes_positions:
        inputs["position_ids"] = positions
    return inputs


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [n_rows, longest]; the mask is 0 at the padding, whose id is 0."""
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def check_lengths(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> None:
    """Raise InputError where a sequence is too long for the model."""
    longest = max(len(ids) for ids in sequences)
    if model.max_positions is not None and longest > model.max_positions:
        raise InputError(
            f"{model.name}: a prompt has {longest} tokens, but the model takes at most "
            f"{model.max_positions}; use fewer examples"
        )


def check_known(model: LanguageModel, sequences: Sequence[Collection[int]]) -> None:
    """Raise InputError where a token id has no embedding in the model."""
    largest = max(max(ids) for ids in sequences)
    if largest >= model.n_embeddings:
        raise InputError(
            f"{model.name}: the tokenizer gives the id {largest}, but the model has "
            f"{model.n_embeddings} embeddings; they do not belong together"
        )


def _sliding_window(net: Any) -> int | None:
    window = getattr(net.config.get_text_config(), "sliding_window", None)
    return window if isinstance(window, int) else None
