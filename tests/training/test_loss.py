from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from training.loss import NextTokenLoss, head_loss


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 50), st.integers(0, 99))
def test_equals_plain_cross_entropy(n: int, vocabulary: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    hidden = torch.randn(n, 6, dtype=torch.float32, requires_grad=True)
    weight = (torch.randn(vocabulary, 6) * 3).requires_grad_()
    labels = torch.randint(0, vocabulary, (n,))
    ours, each = head_loss(hidden, weight, labels, torch.float32, rows)
    (ours * 0.5).backward()
    ours_gradients = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    plain = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels)
    (plain * 0.5).backward()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    rows_alone = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(each, rows_alone, rtol=1e-4, atol=1e-5)
    assert not each.requires_grad
    for mine, theirs in zip(ours_gradients, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_no_gradients_where_none_are_wanted() -> None:
    weight = torch.randn(5, 3, requires_grad=True)
    with torch.no_grad():
        loss, _ = head_loss(torch.randn(4, 3), weight, torch.tensor([0, 1, 2, 3]), torch.float32)
    assert not loss.requires_grad


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_equals_the_loss_of_transformers(kind: str, precision: str) -> None:
    torch.manual_seed(0)
    model = (
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
        if kind == "gpt2"
        else llama(kind == "tied")
    ).eval()
    loss_of = NextTokenLoss(model, precision)
    assert loss_of.plain_head == (kind != "gpt2")
    tokens = torch.randint(0, 50, (3, 9))
    loss = loss_of(tokens)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(input_ids=tokens[:, :-1]).logits
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    plain.backward()
    loose = precision == "bf16"
    torch.testing.assert_close(loss, plain, rtol=2e-2 if loose else 1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            ours[name], p.grad, rtol=0.1 if loose else 1e-4, atol=5e-3 if loose else 1e-6
        )
