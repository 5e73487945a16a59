"""Validation loss per language."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mining.common.token_file import open_token_file
from mining.common.tokenizer import Tokenizer
from training.text_bytes import text_bytes


@dataclass(frozen=True)
class ValidationSet:
    """Validation tokens of one language.

    `tokens` is int64 [n + 1]: all but the first are predicted. `n_bytes` is the length in UTF-8 of
    the text of the predicted tokens, end-of-text tokens apart.
    """

    lang: str
    tokens: npt.NDArray[np.int64]
    n_bytes: int


def read_validation(
    folder: Path, tokenizer: Tokenizer, max_tokens: int | None
) -> list[ValidationSet]:
    """The first `max_tokens` tokens of every `LANG.ds` in `folder`, by language code.

    Languages with fewer than two tokens are left out.
    """
    sets = []
    for path in sorted(folder.glob("*.ds")):
        all_tokens, _ = open_token_file(path, tokenizer.vocab_size)
        limit = len(all_tokens) if max_tokens is None else max_tokens + 1
        tokens = np.asarray(all_tokens[:limit], dtype=np.int64)
        if len(tokens) >= 2:
            sets.append(ValidationSet(path.stem, tokens, text_bytes(tokens, tokenizer)))
    return sets


def windows(tokens: npt.NDArray[np.int64], length: int, batch: int) -> list[npt.NDArray[np.int64]]:
    """Batches int64 [<= batch, length + 1] that predict every token but the first exactly once.

    The remainder that fills no window comes last, as one shorter row.
    """
    full = (len(tokens) - 1) // length
    rows = tokens[np.arange(full)[:, None] * length + np.arange(length + 1)]
    pieces = [rows[start : start + batch] for start in range(0, full, batch)]
    rest = tokens[full * length :]
    return [*pieces, rest[None, :]] if len(rest) > 1 else pieces


def validate(
    accelerator: Any,
    loss_of: torch.nn.Module,
    sets: Sequence[ValidationSet],
    length: int,
    batch: int,
    beat: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Loss (nats per token) and bits_per_byte over all predicted tokens, of each language (`lang`)
    and, last, of all languages together.

    bits_per_byte divides the nats of all predicted tokens, end-of-text ones included, by ln 2 and
    by the bytes of their text, so that it compares across tokenizers; absent without text. The
    processes share the windows; `beat` hears of each. Leaves the model in training mode.
    """
    loss_of.eval()
    sums = torch.zeros(len(sets), dtype=torch.float64, device=accelerator.device)
    with torch.no_grad():
        for row, item in enumerate(sets):
            pieces = windows(item.tokens, length, batch)
            world = accelerator.num_processes
            for first in range(0, len(pieces), world):
                # Where weights are sharded, a forward pass needs all processes: those beyond the
                # last window compute it as well, and do not count it.
                place = first + accelerator.process_index
                piece = pieces[min(place, len(pieces) - 1)]
                n = piece.shape[0] * (piece.shape[1] - 1) if place < len(pieces) else 0
                on_device = torch.from_numpy(piece).to(accelerator.device)
                sums[row] += loss_of(on_device).double() * n
                beat(f"validation on {item.lang}, window {first}")
    loss_of.train()
    nats = accelerator.reduce(sums, "sum").tolist()
    sizes = [(len(item.tokens) - 1, item.n_bytes) for item in sets]
    results: list[dict[str, Any]] = [
        {"lang": item.lang, **_losses(of_set, *size)}
        for item, of_set, size in zip(sets, nats, sizes, strict=True)
    ]
    if sets:
        results.append(_losses(sum(nats), *map(sum, zip(*sizes, strict=True))))
    return results


def _losses(nats: float, n_tokens: int, n_bytes: int) -> dict[str, float]:
    losses = {"loss": round(nats / n_tokens, 6)}
    if n_bytes:
        losses["bits_per_byte"] = round(nats / math.log(2) / n_bytes, 6)
    return losses
