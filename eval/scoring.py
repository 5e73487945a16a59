"""Likelihood of answers under a model: what prompts share is computed once, only answers decoded.

Sequences are packed as trees (eval.packing): one row holds, say, the worked examples once and below
them all ten questions; positions and a mask that follows the tree make each see what it would see
alone. What all rows begin with, such as the instruction, is computed before them. Only the
positions that predict answer tokens go through the unembedding, each once, whatever the number of
answers that it predicts. Equal to full prompts, one at a time, up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eval.models import PROBE_ERRORS, LanguageModel, probe_ids, probe_tolerance, unembed
from eval.packing import MAX_ROW, Batch, Row, common_start, pack, stack
from eval.prompts import Encoded
from eval.tree_inputs import SharedStart, alibi_by_depth, takes_alibi, tree_mask
from mining.common.errors import InputError
from mining.common.logs import log

LogProbs = npt.NDArray[np.float64]

# Counts up when the numbers change, so that results in a cache are not taken for new ones.
SCORING_VERSION = 1

LOGIT_BYTES = 256 << 20
# More tokens at a time make a CPU no faster (launch.bench.scoring), and a GPU hardly.
MAX_BATCH_TOKENS = {"cpu": 1024, "cuda": 1 << 17}
MEMORY_SHARE = 0.5


class Scorer:
    """Scores answers with one model.

    `branches`: whether rows are trees; where a model does not follow a tree's mask, only equal
    contexts share a row. `batch_tokens` bounds rows x length of a batch, padding included, though a
    batch holds at least one row; it is halved for good where memory runs out.
    """

    def __init__(self, model: LanguageModel, branches: bool, batch_tokens: int | None) -> None:
        self.model = model
        self.branches = branches
        self.batch_tokens = batch_tokens or automatic_batch_tokens(model)

    def log_probs(self, members: Sequence[Encoded]) -> LogProbs:
        """Sum of log p (nats) over the answer's tokens, float64 [n_members] (METHOD section 1).

        Raises InputError where a prompt is longer than the model allows or holds ids that it has no
        embedding for, where a result is not a number, and where one row does not fit in memory.
        """
        result = np.zeros(len(members))
        if not members:
            return result
        sequences = [member.ids for member in members]
        check_lengths(self.model, sequences)
        check_known(self.model, sequences)
        window = _sliding_window(self.model.net)
        # A tree's mask says what is seen, so that a narrower window would not be respected.
        narrow = window is not None and max(map(len, sequences)) > window
        start: SharedStart | None = None
        if self.branches and not narrow:
            n_start = common_start(members)
            rows = pack(members, True, n_start)
            start = _shared_start(self.model, members[0].ids[:n_start])
        else:
            rows = pack(members, False)
        done = 0
        while done < len(rows):
            batch = _next_batch(rows[done:], self.batch_tokens)
            if self._try(batch, start, result):
                done += len(batch)
        if np.isnan(result).any():
            # A comparison with NaN is false, so the right answer would count as the best.
            raise InputError(
                f"{self.model.name}: the loss of an answer is not a number; the weights hold "
                "values that are not finite, or the dtype is too small for the model: try float32"
            )
        return result

    def _try(self, rows: Sequence[Row], start: SharedStart | None, result: LogProbs) -> bool:
        """Add a batch to the result; False where memory ran out and smaller ones are to follow."""
        try:
            batch = stack(rows)
            found = _batch_log_probs(self.model, batch, start)
        except RuntimeError as error:
            if not _lacks_memory(error):
                raise
            if len(rows) == 1:
                raise InputError(
                    f"{self.model.name}: a single row of {len(rows[0])} tokens does not fit in the "
                    f"memory of {self.model.device}; use a smaller dtype or another device"
                ) from error
        else:
            np.add.at(result, batch.owners, found)
            return True
        # Only here, after the exception has let go of its tensors.
        from accelerate.utils.memory import clear_device_cache

        clear_device_cache(garbage_collection=True)
        self.batch_tokens = len(rows) * len(rows[-1]) // 2
        log.warning(
            "%s: out of memory, goes on with batches of %d tokens (batch_tokens)",
            self.model.name,
            self.batch_tokens,
        )
        return False


def follows_trees(model: LanguageModel) -> bool:
    """Whether this architecture gives the same numbers for trees: tried on a small probe.

    Two trees of different length after a common start, so that padding is probed too.
    """
    if not (model.takes_positions or takes_alibi(model.net.base_model)):
        log.info("%s: takes no positions, so prompts are computed in full", model.name)
        return False
    ids = probe_ids(model.net)[0].tolist()
    ends = ((ids[0], ids[1], ids[2]), (ids[3], ids[1]), (ids[3], ids[4], ids[5]))
    starts = (tuple(ids), (ids[0], ids[1], *ids[4:]))
    members = [Encoded((*start, *end), len(start) + 1) for start in starts for end in ends]
    try:
        found = Scorer(model, True, 1 << 20).log_probs(members)
    except (*PROBE_ERRORS, InputError) as error:
        log.warning("%s: prompts are computed in full (%s)", model.name, error)
        return False
    expected = Scorer(model, False, 1 << 20).log_probs(members)
    difference = float(np.abs(found - expected).max())
    if difference <= probe_tolerance(model.net):
        return True
    log.warning(
        "%s: prompts are computed in full (shared starts change the loss by %.3g)",
        model.name,
        difference,
    )
    return False


def automatic_batch_tokens(model: LanguageModel) -> int:
    """Tokens of a batch that should fit in half of the device's free memory, by an estimate.

    On a CPU, where memory is seldom the limit, always the same number: batches change rounding.
    """
    most = MAX_BATCH_TOKENS.get(model.device.type, MAX_BATCH_TOKENS["cpu"])
    if model.device.type != "cuda":
        return most
    config = model.net.config.get_text_config()
    width = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    # The block at work: residual, norms, queries, keys, values, gate and up; then the mask, and for
    # plain attention the scores of every head.
    heads = config.num_attention_heads if config._attn_implementation == "eager" else 1
    values = 12 * width + 3 * inner + 3 * heads * MAX_ROW
    if not model.decodes_rows:
        values += 2 * model.n_embeddings
    per_token: int = values * next(model.net.parameters()).element_size()
    free: int = torch.cuda.mem_get_info(model.device)[0]
    return max(1, min(most, int(MEMORY_SHARE * free / per_token)))


def _lacks_memory(error: RuntimeError) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def _next_batch(rows: Sequence[Row], batch_tokens: int) -> Sequence[Row]:
    """The first rows, which come in order of length, that fit; at least one."""
    size = 1
    while size < len(rows) and (size + 1) * len(rows[size]) <= batch_tokens:
        size += 1
    return rows[:size]


@torch.inference_mode()
def _shared_start(model: LanguageModel, ids: Sequence[int]) -> SharedStart:
    """The keys and values of the tokens that every tree begins after, if there are any."""
    start = SharedStart()
    if ids:
        row = torch.tensor([ids], device=model.device)
        positions = torch.arange(len(ids), device=model.device).unsqueeze(0)
        inputs = backbone_inputs(model, row, torch.ones_like(row), positions)
        model.net.base_model(**inputs, past_key_values=start, use_cache=True)
    start.closed = True
    return start


@torch.inference_mode()
def _batch_log_probs(model: LanguageModel, batch: Batch, start: SharedStart | None) -> LogProbs:
    """log p of each predicted token, float64 [n_predicted]; without `start` rows are no trees."""
    device = model.device
    ids, depths = torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.depths).to(device)
    adapted: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if start is not None:
        n_start = start.get_seq_length()
        dtype = next(model.net.parameters()).dtype
        mask = tree_mask(torch.from_numpy(batch.ends).to(device), n_start, dtype)
        if takes_alibi(model.net.base_model):
            adapted = alibi_by_depth(model.net.base_model, n_start, depths)
    else:
        columns = torch.arange(ids.shape[1], device=device)
        lengths = torch.from_numpy(batch.lengths).to(device)
        mask = (columns < lengths.unsqueeze(1)).long()
    inputs = {**backbone_inputs(model, ids, mask, depths), "use_cache": False}
    if start is not None and n_start:
        inputs["past_key_values"] = start
    # Several answers may be predicted at one node: decode it once.
    nodes, place = np.unique(batch.nodes, return_inverse=True)
    chosen = torch.from_numpy(nodes).to(device)
    with adapted:
        if model.decodes_rows:
            hidden = model.net.base_model(**inputs).last_hidden_state
        else:
            hidden = model.net(**inputs).logits
    return _decode(model, hidden.flatten(0, 1)[chosen], place, batch.wanted)


def _decode(
    model: LanguageModel,
    hidden: Tensor,
    place: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
) -> LogProbs:
    """log p of token `wanted[i]` at the row `place[i]` of `hidden`, float64 [n].

    As many rows at a time as fit in LOGIT_BYTES.
    """
    result = np.empty(len(wanted))
    step = max(1, LOGIT_BYTES // (4 * model.n_embeddings))
    for begin in range(0, len(hidden), step):
        part = hidden[begin : begin + step]
        logits = unembed(model.net, part) if model.decodes_rows else part.float()
        totals = torch.logsumexp(logits, dim=1)
        here = np.flatnonzero((place >= begin) & (place < begin + step))
        row = torch.from_numpy(place[here] - begin).to(logits.device)
        token = torch.from_numpy(wanted[here]).to(logits.device)
        result[here] = (logits[row, token] - totals[row]).double().cpu().numpy()
    return result


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
