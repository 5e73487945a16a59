from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedule import learning_rate, warmup_length
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
