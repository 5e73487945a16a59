"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from training.settings import TrainSettings


def schedule_length(settings: TrainSettings, n_steps: int) -> int:
    """Steps of the whole schedule, of which a training of `n_steps` runs from `start_step` on."""
    return settings.schedule_steps or settings.start_step + n_steps


def warmup_length(settings: TrainSettings, n_steps: int) -> int:
    """Number of warm-up steps of a schedule of `n_steps`."""
    if settings.warmup_steps is not None:
        return min(settings.warmup_steps, n_steps)
    return round(settings.warmup_share * n_steps)


def learning_rate(settings: TrainSettings, step: int, n_steps: int) -> float:
    """The rate of step `step` (the first is 0) of a training of `n_steps`.

    The schedule rises in a line to the peak, which the first step after the warm-up has, then
    follows its shape towards `min_lr_share` of the peak, which the step after its last would have,
    and stays there. Where wsd's warm-up and decay overlap, it falls right after the warm-up. The
    training's first step stands at `start_step` of it.
    """
    place, length = settings.start_step + step, schedule_length(settings, n_steps)
    peak, floor = settings.learning_rate, settings.min_lr_share
    warmup = warmup_length(settings, length)
    if place < warmup:
        return peak * (place + 1) / warmup
    progress = min(1.0, (place - warmup) / max(1, length - warmup))
    if settings.schedule == "constant":
        share = 1.0
    elif settings.schedule == "linear":
        share = 1.0 - (1.0 - floor) * progress
    elif settings.schedule == "cosine":
        share = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        decay = max(1, min(round(settings.decay_share * length), length - warmup))
        down = max(0, place - (length - decay)) / decay
        share = 1.0 - (1.0 - floor) * min(1.0, down)
    return peak * share
