"""Likelihoods against a plain loop over full prompts, and what stops a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eval.models import wrap_model
from eval.prompts import Encoded
from eval.scoring import can_reuse_prefix, group_losses, shared_start
from mining.common.errors import InputError

VOCAB = 60
FAMILIES = ("llama", "neox", "olmo", "gpt2", "bloom", "gemma2", "qwen2")


@torch.inference_mode()
def plain_losses(net: Any, group: list[Encoded]) -> list[float]:
    """METHOD section 1 as it is written: one full prompt at a time, logits everywhere."""
    losses = []
    for member in group:
        logits = net(input_ids=torch.tensor([member.ids])).logits[0].float()
        log_probs = torch.log_softmax(logits, dim=-1)
        terms = [
            -float(log_probs[position - 1, member.ids[position]])
            for position in range(member.n_context, len(member.ids))
        ]
        losses.append(sum(terms) / len(terms))
    return losses


def random_groups(n: int, seed: int = 0, longest: int = 40) -> list[list[Encoded]]:
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(t) for t in rng.integers(0, VOCAB, rng.integers(low, high)))

    groups = []
    for _ in range(n):
        start, answer = ids(1, longest), ids(1, 4)
        members = []
        for _ in range(int(rng.integers(1, 11))):
            context = (*start, *ids(1, 6))
            members.append(Encoded(context + answer, len(context)))
        groups.append(members)
    return groups


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_plain_loop(family: str, tiny_model: Any, word_level: Any) -> None:
    net = tiny_model(family, VOCAB)
    model = wrap_model(net, word_level(["a"]), family)
    assert model.decodes_rows
    assert can_reuse_prefix(model)
    groups = random_groups(12)
    expected = [plain_losses(net, group) for group in groups]
    for reuse in (True, False):
        for batch_tokens in (1, 300, 100_000):
            found = group_losses(model, groups, batch_tokens, reuse)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def test_answers_of_one_prompt_share_all_but_its_last_token(
    tiny_model: Any, word_level: Any
) -> None:
    context = (5, 6, 7, 8, 9)
    group = [Encoded((*context, *answer), 5) for answer in ((1,), (2, 3), (1, 4, 4))]
    assert shared_start(group) == 4
    model = wrap_model(tiny_model("llama", VOCAB), word_level(["a"]), "tiny")
    found = group_losses(model, [group], 1000, reuse_prefix=True)[0]
    np.testing.assert_allclose(found, plain_losses(model.net, group), atol=1e-4)


def test_a_small_sliding_window_falls_back_to_full_prompts(
    tiny_model: Any, word_level: Any
) -> None:
    net = tiny_model("mistral", VOCAB, sliding_window=16)
    model = wrap_model(net, word_level(["a"]), "tiny")
    groups = random_groups(8, seed=3)
    found = group_losses(model, groups, 1000, reuse_prefix=True)
    for a, group in zip(found, groups, strict=True):
        np.testing.assert_allclose(a, plain_losses(net, group), atol=1e-4)


def test_an_unknown_head_is_decoded_in_full(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    head = net.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = head(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    net.forward = scaled
    model = wrap_model(net, word_level(["a"]), "tiny")
    assert not model.decodes_rows
    groups = random_groups(4)
    for a, group in zip(group_losses(model, groups, 1000, True), groups, strict=True):
        np.testing.assert_allclose(a, plain_losses(net, group), atol=1e-4)


def test_a_model_that_cannot_share_starts_is_noticed(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    backbone = net.model.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        output = backbone(*args, **kwargs)
        if output.past_key_values is not None:
            for layer in output.past_key_values.layers:
                layer.keys = layer.keys * 0
        return output

    net.model.forward = forgetful
    assert not can_reuse_prefix(model)

    def refusing(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("use_cache"):
            raise TypeError("no cache here")
        return backbone(*args, **kwargs)

    net.model.forward = refusing
    assert not can_reuse_prefix(model)


def test_too_long_prompts_and_foreign_ids_are_errors(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("gpt2", VOCAB), word_level(["a"]), "tiny")
    with pytest.raises(InputError, match=r"300 tokens.*at most 256"):
        group_losses(model, [[Encoded((1,) * 300, 299)]], 1000, reuse_prefix=True)
    with pytest.raises(InputError, match=r"id 60.*60 embeddings"):
        group_losses(model, [[Encoded((1, 2, 60), 2)]], 1000, reuse_prefix=True)
    assert group_losses(model, [], 1000, reuse_prefix=True) == []


def test_a_loss_that_is_no_number_is_an_error(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", 60)
    with torch.no_grad():
        net.get_output_embeddings().weight[0, 0] = float("nan")
    model = wrap_model(net, word_level(["a b c"]), "broken")
    for reuse in (False, True):
        with pytest.raises(InputError, match="broken: the loss of an answer is not a number"):
            group_losses(model, random_groups(2), 1000, reuse)
