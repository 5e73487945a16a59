"""Greedy generation of one line, in batches, the same as one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.models import LanguageModel
from eval.scoring import check_known
from mining.common.errors import InputError
from mining.common.tokenizer import Tokenizer


@dataclass(frozen=True)
class Line:
    """A generated line.

    `n_tokens` counts the tokens generated, without the one that ended the line; `truncated` says
    that the limit was reached before the line ended.
    """

    text: str
    n_tokens: int
    truncated: bool


@dataclass(frozen=True)
class _Request:
    index: int
    ids: list[int]
    limit: int

    @property
    def width(self) -> int:
        return len(self.ids) + self.limit


def line_end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Every token whose text holds a line feed, alone ("\\n", "<0x0A>") or with others (".\\n")."""
    ids = range(tokenizer.vocab_size)
    texts = tokenizer.engine.decode_batch([[i] for i in ids], skip_special_tokens=False)
    return frozenset(i for i, text in zip(ids, texts, strict=True) if "\n" in text)


def generate_lines(
    model: LanguageModel,
    prompts: Sequence[str],
    limits: Sequence[int],
    batch_tokens: int,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[Line]:
    """The likeliest next tokens after each prompt, until a line or the text ends.

    At most `limits[i]` tokens each, fewer where the model has no more positions. Prompts of like
    length are generated together; `batch_tokens` bounds rows x (prompt + limit), padding included,
    though a batch holds at least one. `advance(n)` is called with the number of prompts done.
    Raises InputError where a prompt leaves no position to answer in or has ids that the model has
    no embedding for, and where the model's logits are not numbers.
    """
    if not prompts:
        return []
    encoded = [ids.tolist() for ids in model.tokenizer.encode_batch(prompts)]
    check_known(model, encoded)
    requests = [
        _Request(i, ids, _limit(model, len(ids), limit))
        for i, (ids, limit) in enumerate(zip(encoded, limits, strict=True))
    ]
    requests.sort(key=lambda r: (r.width, r.index))
    line_ends = line_end_tokens(model.tokenizer)
    text_ends = text_end_tokens(model)
    lines: list[Line | None] = [None] * len(prompts)
    with no_defaults(model):
        for batch in _batches(requests, batch_tokens, model.max_positions):
            found = _generate(model, batch, line_ends | text_ends)
            for request, new in zip(batch, found, strict=True):
                kept = new[: request.limit]
                lines[request.index] = _line(model.tokenizer, kept, line_ends, text_ends)
            advance(len(batch))
    return [line for line in lines if line is not None]


def _limit(model: LanguageModel, n_prompt: int, limit: int) -> int:
    if model.max_positions is None:
        return limit
    left = model.max_positions - n_prompt
    if left < 1:
        raise InputError(
            f"{model.name}: a prompt has {n_prompt} tokens, but the model takes at most "
            f"{model.max_positions}, so that no answer fits; leave out long sentences "
            "(sentences.max_chars)"
        )
    return min(limit, left)


def text_end_tokens(model: LanguageModel) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's, and those that the checkpoint names."""
    configured = getattr(model.net.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ends = (model.tokenizer.end_of_text, *listed)
    return frozenset(token for token in ends if token is not None)


def _batches(
    requests: Sequence[_Request], batch_tokens: int, max_positions: int | None
) -> Iterator[list[_Request]]:
    batch: list[_Request] = []
    for request in requests:
        candidate = [*batch, request]
        width = max(len(r.ids) for r in candidate) + max(r.limit for r in candidate)
        # A row that is done is computed on until the last one is, and must have positions for it.
        fits = max_positions is None or width <= max_positions
        if batch and not (fits and len(candidate) * width <= batch_tokens):
            yield batch
            candidate = [request]
        batch = candidate
    yield batch


@contextmanager
def no_defaults(model: LanguageModel) -> Iterator[None]:
    """Without the checkpoint's own defaults (sampling, penalties), which fill what is not set."""
    from transformers import GenerationConfig

    own = model.net.generation_config
    model.net.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.net.generation_config = own


@torch.inference_mode()
def _generate(
    model: LanguageModel, batch: Sequence[_Request], ends: frozenset[int]
) -> list[list[int]]:
    """The new token ids of each request, with what follows a row's end while others go on."""
    from transformers import GenerationConfig

    width = max(len(request.ids) for request in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    # Padding stands left, so that every row's last column is its newest token.
    for row, request in enumerate(batch):
        ids[row, width - len(request.ids) :] = torch.tensor(request.ids)
        mask[row, width - len(request.ids) :] = 1
    limits = torch.tensor([request.limit for request in batch], device=model.device)
    broken = torch.zeros((), dtype=torch.bool, device=model.device)

    def reached(found: Tensor, scores: Any, **_: Any) -> Tensor:
        return found.shape[1] - width >= limits

    def watch(_: Tensor, scores: Tensor) -> Tensor:
        # Only noted here: reading it would wait for the device at every token.
        broken.logical_or_(torch.isnan(scores).any())
        return scores

    found = model.net.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            max_new_tokens=int(limits.max()),
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        ),
        stopping_criteria=[reached],
        logits_processor=[watch],
    )
    if bool(broken):
        raise InputError(
            f"{model.name}: the logits are not numbers; the weights hold values that are not "
            "finite, or the dtype is too small for the model: try float32"
        )
    new: list[list[int]] = found[:, width:].tolist()
    return new


def _line(
    tokenizer: Tokenizer, new: Sequence[int], line_ends: frozenset[int], text_ends: frozenset[int]
) -> Line:
    n = next((i for i, token in enumerate(new) if token in line_ends | text_ends), None)
    # The token that ends a line may hold text before its line feed.
    kept = new if n is None else new[: n + (new[n] in line_ends)]
    text = tokenizer.decode([token for token in kept if token not in tokenizer.special_ids])
    return Line(text.split("\n", 1)[0].strip(), len(new) if n is None else n, n is None)
