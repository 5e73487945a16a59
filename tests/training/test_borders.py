"""Documents packed behind one another with masked borders equal documents that stand alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mining.common.errors import SettingsError
from training.loss import NextTokenLoss, document_positions
from training.model import check_borders, from_config, model_config
from training.settings import ModelSettings

END = 0


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=3))
def test_positions_are_counted_from_each_end_of_text(rows: list[list[int]]) -> None:
    expected = []
    for row in rows:
        counted, place = [], -1
        for token in row:
            place = 0 if token == END else place + 1
            counted.append(place)
        expected.append(counted)
    assert document_positions(torch.tensor(rows), END).tolist() == expected


def documents(rng: np.random.Generator, total: int) -> list[list[int]]:
    """Documents, end-of-text first, of `total` tokens together."""
    found, left = [], total
    while left:
        size = min(left, int(rng.integers(1, 9)))
        found.append([END, *rng.integers(1, 40, size - 1).tolist()])
        left -= size
    return found


@pytest.mark.parametrize("style", ["llama", "olmo", "olmo2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_alone(style: str, attention: str) -> None:
    settings = ModelSettings(
        hidden_size=16, n_layers=2, n_heads=2, max_length=32, init_std=0.3, tie_embeddings=False,
        style=style, attention=attention,  # type: ignore[arg-type]
    )  # fmt: skip
    torch.manual_seed(0)
    model = from_config(model_config(settings, 40, END))
    rng = np.random.default_rng(0)
    rows = [documents(rng, 32) for _ in range(3)]
    after = [END, END, 5]  # the token behind a row; the last row cuts a document
    packed = torch.tensor(
        [[t for d in row for t in d] + [last] for row, last in zip(rows, after, strict=True)]
    )
    loss = NextTokenLoss(model, "float32", END)(packed)
    loss.backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    plain, total = NextTokenLoss(model, "float32"), 0.0
    for row, last in zip(rows, after, strict=True):
        ends = [END] * (len(row) - 1) + [last]
        for document, end in zip(row, ends, strict=True):
            alone = plain(torch.tensor([[*document, end]])) * (
                len(document) / packed[:, 1:].numel()
            )
            alone.backward()
            total += alone.item()
    assert loss.item() == pytest.approx(total, abs=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-4, atol=1e-5)
    # With attention across the borders it is another loss.
    assert abs(plain(packed).item() - total) > 1e-3


def test_models_without_positions_are_refused() -> None:
    from transformers import BloomConfig

    bloom = from_config(BloomConfig(vocab_size=40, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(SettingsError, match="expected 'cross' for a bloom model"):
        check_borders(bloom)
