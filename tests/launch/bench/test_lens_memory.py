"""The estimate of the trace's memory against what its tensors take."""

from __future__ import annotations

import torch

from launch.bench.lens_memory import Shape, measure, tensor_peak


def test_the_peak_of_tensors_is_counted() -> None:
    def way() -> None:
        kept = torch.empty(1000, dtype=torch.float32)
        for _ in range(3):
            del_soon = torch.empty(500, dtype=torch.float32)
            del del_soon
        del kept

    assert 4 * 1500 <= tensor_peak(way) < 4 * 1500 + 1000


def test_the_estimate_is_enough_and_not_far_off() -> None:
    shape = Shape(width=64, layers=4, vocabulary=3000, rows=32, length=48)
    found = measure(shape)
    assert 0.4 * found["estimated_mib"] < found["measured_mib"] < found["estimated_mib"]
    # Three batches take no more than one.
    more = measure(Shape(**{**vars(shape), "items": 96}))
    assert more["measured_mib"] < 1.05 * found["measured_mib"]
