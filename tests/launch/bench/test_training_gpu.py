"""The sizes that the GPU benchmark is asked for; the measuring itself needs a GPU."""

from __future__ import annotations

import argparse

import pytest

from launch.bench.training import known_sizes
from launch.bench.training_gpu import SIZES, size_and_micro


def test_sizes_with_and_without_a_micro_batch() -> None:
    assert size_and_micro("llama-1b") == ("llama-1b", SIZES["llama-1b"])
    assert size_and_micro("llama-7b:2") == ("llama-7b", 2)
    assert set(SIZES) <= set(known_sizes())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("llama-2b", r"no size 'llama-2b'; known: llama-10m, .*olmo-7b"),
        ("llama-7b", r"no micro-batch is known for llama-7b; give it, such as llama-7b:4"),
        ("llama-7b:0", "found 'llama-7b:0', expected NAME:MICRO"),
        ("llama-7b:x", "found 'llama-7b:x', expected NAME:MICRO"),
    ],
)
def test_what_is_not_known_is_named(text: str, match: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=match):
        size_and_micro(text)
