"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from training.settings import TrainSettings


def warmup_length(settings: TrainSettings, n_steps: int) -> int:
    """Number of warm-up steps of a training of `n_steps`."""
    if settings.warmup_steps is not None:
        return min(settings.warmup_steps, n_steps)
    return round(settings.warmup_share * n_steps)


def learning_rate(settings: TrainSettings, step: int, n_steps: int) -> float:
    """The rate of step `step` (the first is 0) of `n_steps`.

    Rises in a line to the peak, which the first step after the warm-up has, then follows the
    schedule towards `min_lr_share` of the peak, which step `n_steps` would have.
    """
    peak, floor = settings.learning_rate, settings.min_lr_share
    warmup = warmup_length(settings, n_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, n_steps - warmup))
    if settings.schedule == "constant":
        share = 1.0
    elif settings.schedule == "linear":
        share = 1.0 - (1.0 - floor) * progress
    elif settings.schedule == "cosine":
        share = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        decay = max(1, round(settings.decay_share * n_steps))
        down = max(0, step - (n_steps - decay)) / decay
        share = 1.0 - (1.0 - floor) * min(1.0, down)
    return peak * share
