"""Edits of the residual stream: exact, reversible, and gone afterwards whatever happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.control_tokens import TokenTraits, matched_tokens
from eval.interventions import (
    edited,
    orthonormal,
    token_directions,
    with_states,
    without_directions,
)
from eval.lens import block_states
from eval.lens_parts import find_parts
from eval.models import wrap_model
from eval.scoring import pad_right

VOCAB = 50
# openai-gpt has no final norm.
FAMILIES = ("llama", "gpt2", "neox", "olmo", "qwen2", "bloom", "gemma2", "opt", "openai-gpt")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokens_direction_is_all_that_its_logit_reads(
    family: str, tiny_model: Any, word_level: Any
) -> None:
    model = wrap_model(tiny_model(family, VOCAB), word_level(["a"]), family)
    parts = find_parts(model, None, None)
    for module in (parts.norm, *parts.norm.modules()):
        if getattr(module, "weight", None) is not None and module.weight.dim() == 1:
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    tokens = torch.tensor([3, 7, 11])
    found = token_directions(parts, tokens, 32)
    torch.manual_seed(1)
    states = torch.randn(5, 32)
    removed = without_directions(orthonormal(found.unsqueeze(0).expand(5, -1, -1)))
    left = removed(states.unsqueeze(1))[:, 0]
    with torch.no_grad():
        # Without bias: what changes sign with the state.
        before = (parts.head(parts.norm(states)) - parts.head(parts.norm(-states)))[:, tokens]
        after = (parts.head(parts.norm(left)) - parts.head(parts.norm(-left)))[:, tokens]
        other = (parts.head(parts.norm(left)) - parts.head(parts.norm(-left)))[:, 20]
    assert float(after.abs().max()) < 1e-3 * float(before.abs().max())
    assert float(other.abs().max()) > 0.01 * float(before.abs().max())


def test_edits_change_what_they_say_and_nothing_before(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("llama", VOCAB), word_level(["a"]), "tiny")
    parts = find_parts(model, None, None)
    ids, mask = pad_right([[1, 2, 3], [4, 5]], model.device)
    last = mask.sum(dim=1) - 1
    clean = block_states(model, parts, ids, mask, last, embeddings=False)
    basis = orthonormal(torch.randn(2, 3, 32))
    with edited(parts, {2: without_directions(basis)}):
        changed = block_states(model, parts, ids, mask, last, embeddings=False)
    torch.testing.assert_close(changed[0], clean[0], rtol=0, atol=0)
    inside = torch.einsum("nw,nwr->nr", changed[1], basis)
    assert float(inside.abs().max()) < 1e-4
    expected = clean[1] - torch.einsum(
        "nr,nwr->nw", torch.einsum("nw,nwr->nr", clean[1], basis), basis
    )
    torch.testing.assert_close(changed[1], expected, rtol=1e-5, atol=1e-4)
    given_states = torch.randn(2, 32)
    with edited(parts, {3: with_states(given_states, last)}):
        patched = block_states(model, parts, ids, mask, last, embeddings=False)
    torch.testing.assert_close(patched[2], given_states, rtol=0, atol=0)
    again = block_states(model, parts, ids, mask, last, embeddings=False)
    for first, second in zip(clean, again, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_one_position_alone_is_changed(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("llama", VOCAB), word_level(["a"]), "tiny")
    parts = find_parts(model, None, None)
    ids, mask = pad_right([[1, 2, 3], [4, 5]], model.device)
    basis = orthonormal(torch.randn(2, 3, 32))
    only = torch.tensor([1, 0])
    with edited(parts, {1: without_directions(basis, only)}):
        both = [
            block_states(model, parts, ids, mask, place, embeddings=False)[0]
            for place in (only, only + 1)
        ]
    clean = [
        block_states(model, parts, ids, mask, place, embeddings=False)[0]
        for place in (only, only + 1)
    ]
    assert float((both[0] - clean[0]).abs().max()) > 1e-3
    torch.testing.assert_close(both[1], clean[1], rtol=0, atol=0)


def test_hooks_are_removed_whatever_happens(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("gpt2", VOCAB), word_level(["a"]), "tiny")
    parts = find_parts(model, None, None)
    ids, mask = pad_right([[1, 2], [3]], model.device)
    last = mask.sum(dim=1) - 1

    def broken(states: Any) -> Any:
        raise FloatingPointError

    with pytest.raises(FloatingPointError), edited(parts, {1: broken, 2: broken}):
        block_states(model, parts, ids, mask, last, embeddings=True)
    with pytest.raises(KeyError), edited(parts, {3: without_directions(torch.zeros(2, 32, 1))}):
        raise KeyError
    # The second layer is not there: the first one's hook must go all the same.
    none = without_directions(torch.zeros(2, 32, 1))
    with pytest.raises(IndexError), edited(parts, {1: none, 9: none}):
        pass
    with pytest.raises(KeyboardInterrupt), edited(parts, {1: none}):
        raise KeyboardInterrupt
    for module in model.net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 3))
def test_a_basis_spans_the_directions_and_no_more(seed: int, rank: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(rank, 9))
    # Sums of the others, and rows of zeros, add nothing.
    rows = np.concatenate([own, rng.normal(size=(extra, rank)) @ own, np.zeros((2, 9))])
    basis = orthonormal(torch.from_numpy(rows).float().unsqueeze(0))[0].numpy()
    np.testing.assert_allclose(own @ basis @ basis.T, own, atol=1e-4)
    assert np.trace(basis.T @ basis) == pytest.approx(rank, abs=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_controls_are_matched_and_never_excluded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 200
    traits = TokenTraits(rng.integers(0, 4, n), rng.random(n), rng.random(n) < 0.9)
    tokens = rng.choice(n, 5, replace=False).tolist()
    excluded = set(rng.choice(n, 20, replace=False).tolist())
    found = matched_tokens(traits, tokens, excluded, np.random.default_rng(seed))
    assert len(set(found)) == 5
    assert not set(found) & (excluded | set(tokens))
    assert traits.usable[found].all()
    for token, control in zip(tokens, found, strict=True):
        assert traits.octave[control] == traits.octave[token]
        same = np.flatnonzero((traits.octave == traits.octave[token]) & traits.usable)
        closer = np.abs(traits.norm[same] - traits.norm[token]) < abs(
            traits.norm[control] - traits.norm[token]
        )
        # Among the nearest 16 of those that were free.
        assert closer.sum() <= 16 + 5 + len(excluded)
