from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedule import learning_rate, schedule_length, warmup_length
from training.settings import TrainSettings

SCHEDULES = ["cosine", "linear", "wsd", "constant"]


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 300),
    st.one_of(st.none(), st.integers(0, 400)),
    st.floats(0, 1),
)
def test_between_zero_and_the_peak(
    schedule: str, n_steps: int, warmup: int | None, floor: float
) -> None:
    settings = TrainSettings(
        schedule=schedule,  # type: ignore[arg-type]
        warmup_steps=warmup,
        min_lr_share=floor,
        learning_rate=0.5,
    )
    rates = [learning_rate(settings, step, n_steps) for step in range(n_steps)]
    length = warmup_length(settings, n_steps)
    assert all(0 < rate <= 0.5 + 1e-12 or floor == 0 for rate in rates)
    assert rates[:length] == sorted(rates[:length])
    assert rates[length:] == sorted(rates[length:], reverse=True)
    if length < n_steps:
        assert max(rates) == pytest.approx(0.5)
        assert min(rates[length:]) >= 0.5 * floor - 1e-12


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("wsd", 1.0, 0.1), ("constant", 1.0, 1.0)],
)
def test_known_points(schedule: str, middle: float, end: float) -> None:
    settings = TrainSettings(schedule=schedule, warmup_steps=0, learning_rate=1.0)  # type: ignore[arg-type]
    assert learning_rate(settings, 0, 100) == pytest.approx(1.0)
    assert learning_rate(settings, 50, 100) == pytest.approx(middle)
    assert learning_rate(settings, 100, 100) == pytest.approx(end)


def closed_form(schedule: str, t: int, n: int, warmup: int, floor: float, decay: int) -> float:
    """Share of the peak at step t of n, written down once more."""
    if t < warmup:
        return (t + 1) / warmup
    x = (t - warmup) / (n - warmup)
    return {
        "constant": 1.0,
        "linear": (1 - x) + x * floor,
        "cosine": (1 + floor) / 2 + (1 - floor) / 2 * math.cos(math.pi * x),
        "wsd": 1.0 if t < n - decay else 1 - (1 - floor) * (t - n + decay) / decay,
    }[schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("n", "warmup", "floor", "share"), [(200, 20, 0.1, 0.2), (31, 3, 0.0, 0.5)]
)
def test_closed_forms(schedule: str, n: int, warmup: int, floor: float, share: float) -> None:
    settings = TrainSettings(
        schedule=schedule,  # type: ignore[arg-type]
        warmup_steps=warmup,
        min_lr_share=floor,
        learning_rate=0.3,
        decay_share=share,
    )
    for t in range(n):
        expected = 0.3 * closed_form(schedule, t, n, warmup, floor, round(share * n))
        assert learning_rate(settings, t, n) == pytest.approx(expected, abs=1e-12)


def test_wsd_falls_without_a_jump_where_warm_up_and_decay_overlap() -> None:
    settings = TrainSettings(
        schedule="wsd", warmup_steps=60, decay_share=0.8, min_lr_share=0.0, learning_rate=1.0
    )
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[60] == 1.0
    steps = [abs(a - b) for a, b in itertools.pairwise(rates)]
    assert max(steps) <= 1 / 40 + 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_continued(schedule: str) -> None:
    whole = TrainSettings(schedule=schedule, schedule_steps=100)  # type: ignore[arg-type]
    part = TrainSettings(schedule=schedule, start_step=40, schedule_steps=100)  # type: ignore[arg-type]
    for step in range(30):
        assert learning_rate(part, step, 30) == learning_rate(whole, 40 + step, 70)
    # Without a length it ends with the training; behind its end it stays where it is.
    open_end = TrainSettings(schedule=schedule, start_step=40)  # type: ignore[arg-type]
    assert schedule_length(open_end, 60) == 100
    assert learning_rate(open_end, 5, 60) == learning_rate(whole, 45, 100)
    assert learning_rate(part, 70, 80) == learning_rate(part, 60, 80)
