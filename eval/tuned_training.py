"""Trains the tuned lens's translators on a text, and says how far each layer is from the last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.lens import block_states, rows_at_a_time
from eval.lens_parts import LensParts
from eval.models import LanguageModel
from eval.tuned_lens import Translators, untrained
from mining.common.errors import InputError
from mining.common.seeds import generator

WINDOW = 128
BATCH_WINDOWS = 4
POSITIONS = 128  # of a batch, drawn at random: neighbours say much the same
LEARNING_RATE = 3e-3
HELD_OUT = 0.1
MAX_HELD_OUT = 64


def read_windows(model: LanguageModel, path: Path) -> Tensor:
    """The text's tokens in rows of WINDOW tokens, int64 [n, WINDOW]; the rest is left out.

    Raises InputError where the text is missing, is no UTF-8, or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such text (tuned_text)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error})") from None
    # Line by line, as a tokenizer may need long for one long string.
    encoded = model.tokenizer.encode_batch(text.splitlines(keepends=True))
    ids = np.concatenate(encoded) if encoded else np.zeros(0, dtype=np.uint32)
    length = min(WINDOW, model.max_positions or WINDOW)
    n = len(ids) // length
    if n < 2:
        raise InputError(f"{path}: has {len(ids)} tokens, at least {2 * length} are needed")
    return torch.from_numpy(ids[: n * length].astype(np.int64).reshape(n, length))


def train_translators(
    model: LanguageModel, parts: LensParts, windows: Tensor, steps: int, seed: int
) -> Translators:
    """Translators for the layers 0 to L - 1, trained on the windows that are not held out."""
    rng = generator(seed, "tuned lens")
    kept = windows[_n_held_out(windows) :]
    # Of the states, not of the embedding table, which may be narrower.
    width = _states(model, parts, kept[:1], None)[0].shape[1]
    layers = [untrained(1, width, model.device) for _ in parts.blocks]
    parameters = [p for one in layers for p in (one.weights, one.biases)]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    for _ in range(steps):
        rows = kept[rng.integers(0, len(kept), BATCH_WINDOWS)]
        flat = rng.choice(rows.numel(), min(POSITIONS, rows.numel()), replace=False)
        states = _states(model, parts, rows, torch.from_numpy(flat))
        with torch.no_grad():
            goal = torch.log_softmax(parts.logits(model.net, states[-1]), dim=-1)
        for one, state in zip(layers, states[:-1], strict=True):
            loss = _divergence(parts.logits(model.net, one.apply(0, state)), goal).mean()
            wanted = (one.weights, one.biases)
            # Only these two: the model's own weights want no gradient.
            for parameter, gradient in zip(wanted, torch.autograd.grad(loss, wanted), strict=True):
                parameter.grad = gradient
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return Translators(
            torch.cat([one.weights for one in layers]), torch.cat([one.biases for one in layers])
        )


@torch.inference_mode()
def layer_divergences(
    model: LanguageModel, parts: LensParts, translators: Translators | None, windows: Tensor
) -> list[float]:
    """Mean KL (nats) of the last layer's output from what the layers 0 to L - 1 say.

    Over every position of the held-out windows; without translators it is the logit lens's.
    """
    totals = np.zeros(len(parts.blocks))
    held_out = windows[: _n_held_out(windows)]
    step = rows_at_a_time(model)
    for k in range(len(held_out)):
        states = _states(model, parts, held_out[k : k + 1], None)
        for begin in range(0, len(states[0]), step):
            part = [state[begin : begin + step] for state in states]
            goal = torch.log_softmax(parts.logits(model.net, part[-1]), dim=-1)
            for layer, state in enumerate(part[:-1]):
                moved = state if translators is None else translators.apply(layer, state)
                found = _divergence(parts.logits(model.net, moved), goal)
                totals[layer] += float(found.cpu().double().sum())
    mean: list[float] = (totals / held_out.numel()).tolist()
    return mean


def _n_held_out(windows: Tensor) -> int:
    return min(MAX_HELD_OUT, max(1, int(HELD_OUT * len(windows))))


def _divergence(logits: Tensor, goal: Tensor) -> Tensor:
    """KL(goal || softmax(logits)) of each row [n]; `goal` are log-probabilities [n, vocabulary]."""
    return (goal.exp() * (goal - torch.log_softmax(logits, dim=-1))).sum(dim=-1)


def _states(
    model: LanguageModel, parts: LensParts, rows: Tensor, chosen: Tensor | None
) -> Sequence[Tensor]:
    """States [n, width] of the layers 0 to L at `chosen` places of the flattened rows, or all."""
    ids = rows.to(model.device)
    everywhere = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    states = block_states(model, parts, ids, torch.ones_like(ids), everywhere, embeddings=True)
    flat = [state.flatten(0, 1) for state in states]
    if chosen is not None:
        flat = [state[chosen.to(model.device)] for state in flat]
    # Outside inference mode, so that gradients may pass through what follows.
    return [state.clone() for state in flat]
