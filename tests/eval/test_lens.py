"""The logit lens: equality with output_hidden_states, and a model whose answer is known."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import lens
from eval.behaviour import classify
from eval.lens import batches_by_length, block_states, read_layers
from eval.lens_parts import find_parts
from eval.models import same_logits, unembed, wrap_model
from eval.scoring import pad_right
from mining.common.errors import InputError

VOCAB = 50
FAMILIES = ("llama", "gpt2", "neox", "olmo", "olmo2", "qwen2", "bloom", "gemma", "gemma2", "opt")


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_output_hidden_states(family: str, tiny_model: Any, word_level: Any) -> None:
    net = tiny_model(family, VOCAB)
    model = wrap_model(net, word_level(["a"]), family)
    parts = find_parts(model, None, None)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, VOCAB, n).tolist() for n in (9, 4, 12)]
    sets = [tuple(frozenset(rng.integers(0, VOCAB, 5).tolist()) for _ in range(2)) for _ in "abc"]
    answers = [3, 4, 5]
    readings = read_layers(model, parts, sequences, sets, answers, top_k=4, embeddings=True)
    assert len(readings) == 1 + 3
    for i, ids in enumerate(sequences):
        with torch.inference_mode():
            output = net(input_ids=torch.tensor([ids]), output_hidden_states=True)
        for layer, reading in enumerate(readings):
            state = output.hidden_states[layer][0, -1]
            with torch.inference_mode():
                # The last entry of transformers is normed already.
                logits = unembed(net, state if layer == 3 else parts.norm(state))
                p = torch.softmax(logits, dim=-1).double().numpy()
            best = np.argsort(-p, kind="stable")[:4]
            np.testing.assert_array_equal(reading.top_ids[i], best)
            np.testing.assert_allclose(reading.top_probs[i], p[best], atol=1e-5)
            masses = [p[sorted(members)].sum() for members in sets[i]]
            np.testing.assert_allclose(reading.masses[i], masses, atol=1e-5)
            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum()
            assert reading.entropy[i] == pytest.approx(entropy, abs=1e-4)
            assert reading.rank[i] == 1 + (p > p[answers[i]] * (1 + 1e-5)).sum()


@pytest.mark.parametrize("rows_at_once", [1000, 7, 1])
def test_readings_are_those_of_a_softmax_however_they_are_cut(
    rows_at_once: int, tiny_model: Any, word_level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, top_k = 1000, 4
    assert size > lens.BLOCK * top_k  # so that blocks are searched
    net = tiny_model("llama", size)
    with torch.no_grad():
        net.lm_head.weight.mul_(5)  # so that the probabilities differ
    model = wrap_model(net, word_level(["a"]), "tiny")
    monkeypatch.setitem(lens.LOGIT_BYTES, "cpu", rows_at_once * 4 * size)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, size, n).tolist() for n in (3, 9, 4, 5, 2)]
    sets = [tuple(frozenset(rng.integers(0, size, k).tolist()) for k in (2, 60)) for _ in sequences]
    answers = rng.integers(0, size, len(sequences)).tolist()
    vocabularies = torch.from_numpy((rng.random((3, size)) < 0.2).astype(np.float32))
    parts = find_parts(model, None, None)
    found = read_layers(model, parts, sequences, sets, answers, top_k, True, vocabularies)
    ids, mask = pad_right(sequences, model.device)
    states = block_states(model, parts, ids, mask, mask.sum(dim=1) - 1, embeddings=True)
    for reading, state in zip(found, states, strict=True):
        with torch.inference_mode():
            p = torch.softmax(parts.logits(net, state).double(), dim=1).numpy()
        best = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
        np.testing.assert_array_equal(reading.top_ids, best)
        near = {"rtol": 0, "atol": 1e-6}
        np.testing.assert_allclose(reading.top_probs, np.take_along_axis(p, best, 1), **near)
        masses = [[p[i, sorted(s)].sum() for s in own] for i, own in enumerate(sets)]
        np.testing.assert_allclose(reading.masses, masses, **near)
        np.testing.assert_allclose(reading.vocabularies, p @ vocabularies.numpy().T, **near)
        own = p[np.arange(len(p)), answers]
        np.testing.assert_allclose(reading.answer, own, **near)
        np.testing.assert_array_equal(reading.rank, 1 + (p > own[:, None]).sum(axis=1))
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
        np.testing.assert_allclose(reading.entropy, entropy, rtol=1e-6, atol=1e-5)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 1500), st.integers(1, 12), st.integers(2, 2000))
def test_the_largest_are_those_of_a_sort(seed: int, size: int, k: int, different: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, different, (3, size)).astype(np.float32)
    k = min(k, size)
    found, ids = lens.largest(torch.from_numpy(values), k)
    np.testing.assert_array_equal(found.numpy(), -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, ids.numpy(), 1), found.numpy())
    assert all(len(set(row)) == k for row in ids.tolist())


# Families with other names, heads or orders of norms; what is found reproduces their own logits.
OTHERS = ("openai-gpt", "gptj", "mpt", "falcon", "phi", "cohere", "granite", "olmo3", "glm4")


@pytest.mark.parametrize("family", OTHERS)
def test_parts_of_other_families_are_found(family: str, word_level: Any) -> None:
    import transformers as t

    torch.manual_seed(0)
    sizes = {
        ("hidden_size", "n_embd", "d_model"): 32,
        ("num_hidden_layers", "n_layer", "n_layers"): 3,
        ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads"): 4,
        ("intermediate_size", "n_inner"): 48,
        ("head_dim",): 8,
        ("rotary_dim",): 4,
        ("vocab_size",): VOCAB,
        ("bos_token_id", "eos_token_id", "pad_token_id"): None,
    }
    config = t.AutoConfig.for_model(family)
    for names, value in sizes.items():
        for name in names:
            # In some families a size follows from others, and cannot be set.
            with contextlib.suppress(AttributeError):
                if hasattr(config, name):
                    setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:3]
    net = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = wrap_model(net, word_level(["a"]), family)
    parts = find_parts(model, None, None)
    assert len(parts.blocks) == 3
    sets = [(frozenset({1}),)]
    (*_, last) = read_layers(model, parts, [[5, 6, 7]], sets, [3], VOCAB, embeddings=False)
    with torch.inference_mode():
        logits = net(torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    expected = torch.softmax(logits, dim=0).numpy()
    np.testing.assert_allclose(last.top_probs[0], expected[last.top_ids[0]], atol=1e-5)


def test_hooks_are_removed_whatever_happens(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("llama", VOCAB), word_level(["a"]), "tiny")
    parts = find_parts(model, None, None)
    ids, mask = pad_right([[1, 2], [3]], model.device)
    with pytest.raises(IndexError):
        block_states(model, parts, ids, mask, torch.tensor([9, 9]), embeddings=True)
    parts.blocks[1].register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        block_states(model, parts, ids, mask, torch.tensor([1, 0]), embeddings=True)
    with pytest.raises(KeyboardInterrupt):
        find_parts(model, None, None)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.net.modules()) == 1


def _interrupt(module: Any, args: Any) -> None:
    raise KeyboardInterrupt


def test_the_first_of_equal_tokens_is_the_same_however_many_are_kept(
    tiny_model: Any, word_level: Any
) -> None:
    net = tiny_model("llama", 1000)
    model = wrap_model(net, word_level(["a"]), "tiny")
    parts = find_parts(model, None, None)
    asked = ([[1, 2, 3]], [(frozenset({1}),)], [3])
    best = int(read_layers(model, parts, *asked, 1, False)[-1].top_ids[0, 0])
    # As logits of half precision often are: the same, in blocks before and after.
    equal = [10, 300, 550, 700, 990]
    with torch.no_grad():
        net.lm_head.weight[equal] = net.lm_head.weight[best].clone()
    for top_k in (1, 2, 4):
        found = read_layers(model, parts, *asked, top_k, False)[-1].top_ids[0].tolist()
        assert found == sorted({best, *equal})[:top_k]


def test_states_that_overflow_are_named(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    with torch.no_grad():
        net.model.embed_tokens.weight[8] = float("inf")  # of no token of the probe
    parts = find_parts(model, None, None)
    read_layers(model, parts, [[5, 7]], [(frozenset({1}),)], [3], 2, False)
    with pytest.raises(InputError, match=r"tiny: the lens's logits are not numbers .* float32"):
        read_layers(model, parts, [[5, 8]], [(frozenset({1}),)], [3], 2, False)


def test_logits_may_differ_by_the_rounding_of_their_size(tiny_model: Any) -> None:
    net = tiny_model("llama", VOCAB)
    near, far = torch.tensor([200.004, 3.0]), torch.tensor([200.02, 3.0])
    assert same_logits(net, near, torch.tensor([200.0, 3.0]))
    assert not same_logits(net, far, torch.tensor([200.0, 3.0]))
    assert not same_logits(net, near, torch.tensor([200.0]))
    assert not same_logits(net, torch.tensor([3.002]), torch.tensor([3.0]))
    assert not same_logits(net, torch.tensor([float("nan")]), torch.tensor([3.0]))
    # From 128 on the values of bfloat16 stand 1 apart.
    half = net.to(torch.bfloat16)
    assert same_logits(half, torch.tensor([201.0]), torch.tensor([200.0]))
    assert not same_logits(half, torch.tensor([203.0]), torch.tensor([200.0]))


def test_named_modules_and_clear_errors(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    assert find_parts(model, "model.norm", "model.layers").norm is net.model.norm
    with pytest.raises(InputError, match=r"final_norm: tiny has no module 'model\.nrm'"):
        find_parts(model, "model.nrm", None)
    with pytest.raises(InputError, match=r"blocks: model\.norm in tiny is a LlamaRMSNorm"):
        find_parts(model, None, "model.norm")
    torch.nn.init.uniform_(net.model.norm.weight)
    torch.nn.init.uniform_(net.model.layers[0].input_layernorm.weight)
    with pytest.raises(InputError, match="does not give the model's own logits"):
        find_parts(model, "model.layers.0.input_layernorm", None)
    assert find_parts(model, None, None, "lm_head").head is net.lm_head
    with pytest.raises(InputError, match=r"unembedding: tiny has no module 'head'"):
        find_parts(model, None, None, "head")


def test_a_model_without_such_a_structure_names_the_setting(
    tiny_model: Any, word_level: Any
) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    # The final norm's work is done by no module: only its path could say so.
    norm, net.model.norm.forward = net.model.norm, lambda states: states
    torch.nn.init.uniform_(norm.weight)
    net.model.norm.register_forward_hook(lambda module, args, output: 2 * output)
    assert find_parts(model, None, None).norm is norm
    net.model.register_forward_hook(_doubled)
    with pytest.raises(InputError, match=r"final_norm: not found in tiny .* embed_tokens, layers"):
        find_parts(model, None, None)
    net.model.layers = torch.nn.ModuleList()
    with pytest.raises(InputError, match=r"blocks: not found in tiny .* such as 'model.layers'"):
        find_parts(model, None, None)


def _doubled(module: Any, args: Any, output: Any) -> Any:
    output.last_hidden_state = 2 * output.last_hidden_state
    return output


@pytest.mark.parametrize("direct", [True, False])
def test_a_hand_built_model_shows_its_known_answer(direct: bool, word_level: Any) -> None:
    """Two blocks that only write: the first a pivot (or the target), the second the target."""
    source, pivot, target = 1, 2, 3
    model = wrap_model(_writer(source, pivot, target, direct), word_level(["a"]), "writer")
    parts = find_parts(model, None, None)
    sets = [(frozenset({source}), frozenset({pivot}), frozenset({target}))]
    readings = read_layers(model, parts, [[5, source]], sets, [target], 3, embeddings=True)
    top = [int(reading.top_ids[0, 0]) for reading in readings]
    assert top == [source, target if direct else pivot, target]
    # The residual stream after each write, root-mean-square normed, is known in closed form.
    first = target if direct else pivot
    states = [{source: 1.0}, {source: 1.0, first: 3.0}]
    states.append({**states[1], target: states[1].get(target, 0.0) + 4.0})
    for reading, state in zip(readings, states, strict=True):
        stream = np.array([state.get(t, 0.0) for t in range(8)])
        logits = 4 * stream / np.sqrt((stream**2).mean() + 1e-6)
        p = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(reading.masses[0], p[[source, pivot, target]], atol=1e-5)
    probs = [float(reading.top_probs[0, 0]) for reading in readings]
    found = classify(top[1:], probs[1:], sets[0][0], sets[0][2])
    assert found == ("direct" if direct else "pivot")


def _writer(source: int, pivot: int, target: int, direct: bool) -> Any:
    """A Llama of width 8 whose embeddings are one-hot and whose blocks add a constant token.

    Every block's attention is 0; its MLP reads the one-hot source (whatever else stands there) and
    writes a fixed multiple of one token's direction.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=1,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=None,
    )
    net = LlamaForCausalLM(config)
    writes = [(target if direct else pivot, 3.0), (target, 4.0)]
    stream = np.zeros(8)
    stream[source] = 1.0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.model.embed_tokens.weight.copy_(torch.eye(8))
        net.lm_head.weight.copy_(4 * torch.eye(8))
        net.model.norm.weight.fill_(1.0)
        for layer, (token, amount) in zip(net.model.layers, writes, strict=True):
            layer.post_attention_layernorm.weight.fill_(1.0)
            layer.mlp.gate_proj.weight[0, source] = 1.0
            layer.mlp.up_proj.weight[0, source] = 1.0
            # What the MLP's one hidden unit is at this stream, so that the write is exact.
            x = stream[source] / np.sqrt((stream**2).mean() + 1e-6)
            hidden = x / (1 + np.exp(-x)) * x
            layer.mlp.down_proj.weight[token, 0] = amount / hidden
            stream[token] += amount
    return net.eval()


def test_batches_hold_every_item_once_and_keep_to_the_limit() -> None:
    sequences = [[0] * n for n in (5, 1, 9, 3, 3, 2)]
    batches = list(batches_by_length(sequences, 9))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(sequences[i]) for i in batch) <= 9


def test_logits_that_are_no_numbers_are_named_so(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", 60)
    with torch.no_grad():
        net.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="broken: its logits are not numbers"):
        find_parts(wrap_model(net, word_level(["a"]), "broken"), None, None)
