from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mining.common.tokenizer import load_tokenizer
from training.speed import flops_per_token, peak_flops
from training.validation import read_validation, windows


@given(st.integers(2, 80), st.integers(1, 12), st.integers(1, 5))
def test_windows_predict_every_token_once(n: int, length: int, batch: int) -> None:
    pieces = windows(np.arange(n), length, batch)
    predicted = np.concatenate([piece[:, 1:].ravel() for piece in pieces])
    assert np.array_equal(predicted, np.arange(1, n))
    for piece in pieces:
        assert np.array_equal(piece[:, :-1] + 1, piece[:, 1:])
        assert len(piece) <= batch


def test_the_limit(mix: Path) -> None:
    tokenizer = load_tokenizer(mix / "tokenizer")
    everything = read_validation(mix / "validation", tokenizer, None)
    assert [item.lang for item in everything] == ["en", "fr"]
    assert all(len(item.tokens) == 5 * 16 for item in everything)
    cut = read_validation(mix / "validation", tokenizer, 20)
    assert all(len(item.tokens) == 21 for item in cut)


def test_speed_figures() -> None:
    assert flops_per_token(10, 2, 8, 4) == 60 + 12 * 2 * 8 * 4
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H200 NVL") == 835e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_flops("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert peak_flops("NVIDIA GeForce RTX 3090 Ti") is None
    assert peak_flops("A GPU of next year") is None
