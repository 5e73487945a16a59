"""What the benchmark of the lens compares gives the same numbers."""

from __future__ import annotations

import numpy as np

from eval.lens_parts import find_parts
from launch.bench.lens import (
    added_to_forward,
    draw_prompts,
    everything,
    make_model,
    numbers,
    one_language_each,
    ours,
)


def test_both_ways_give_the_same_numbers() -> None:
    model = make_model(64, 3, 3000)
    parts = find_parts(model, None, None)
    prompts = draw_prompts(4, 24, 3000)
    readings = ours(model, parts, prompts, one_language_each(model))
    np.testing.assert_allclose(numbers(readings), everything(model, parts, prompts), atol=1e-6)
    # Each token is one language's.
    for reading in readings:
        np.testing.assert_allclose(reading.vocabularies.sum(axis=1), 1, atol=1e-5)
    found = added_to_forward(model, parts, prompts, 1)
    assert found["width"] == 64
    # 64 x 3000 for a position, against 4 x 64^2 + 3 x 64 x 179 for each of up to 24 tokens.
    assert found["arithmetic"] == round(64 * 3000 / (max(map(len, prompts)) * 50752), 3)
