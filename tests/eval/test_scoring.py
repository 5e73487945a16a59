"""Likelihoods against a plain loop over full prompts, and what stops a run."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.models import wrap_model
from eval.packing import common_start, pack, stack
from eval.prompts import Encoded
from eval.scoring import Scorer, automatic_batch_tokens, follows_trees
from eval.tree_inputs import tree_mask
from mining.common.errors import InputError

VOCAB = 60
FAMILIES = ("llama", "neox", "olmo", "olmo2", "gpt2", "bloom", "gemma2", "qwen2")


@torch.inference_mode()
def plain_log_probs(net: Any, members: list[Encoded]) -> list[float]:
    """METHOD section 1 as it is written: one full prompt at a time, logits everywhere."""
    found = []
    for member in members:
        logits = net(input_ids=torch.tensor([member.ids])).logits[0].float()
        log_probs = torch.log_softmax(logits, dim=-1)
        found.append(
            sum(
                float(log_probs[position - 1, member.ids[position]])
                for position in range(member.n_context, len(member.ids))
            )
        )
    return found


def random_members(n_groups: int, seed: int = 0, longest: int = 40) -> list[Encoded]:
    """Groups with a common start (or none), questions below it, answers below these.

    Answers of one to four tokens, twins, and answers that continue others are among them.
    """
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(t) for t in rng.integers(0, VOCAB, rng.integers(low, high)))

    members = []
    for group in range(n_groups):
        start, answer = ids(0 if group % 3 == 0 else 1, longest), ids(1, 4)
        for _ in range(int(rng.integers(1, 8))):
            context = (*start, *ids(1, 6))
            members.append(Encoded(context + answer, len(context)))
            more = [answer, (*answer, 1), ids(1, 5)][: int(rng.integers(0, 4))]
            members += [Encoded(context + other, len(context)) for other in more]
    order = rng.permutation(len(members))
    return [members[i] for i in order]


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_plain_loop(family: str, tiny_model: Any, word_level: Any) -> None:
    net = tiny_model(family, VOCAB)
    model = wrap_model(net, word_level(["a"]), family)
    assert model.decodes_rows
    assert follows_trees(model)
    members = random_members(12)
    expected = plain_log_probs(net, members)
    for branches in (True, False):
        for batch_tokens in (1, 300, None):
            found = Scorer(model, branches, batch_tokens).log_probs(members)
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=9), st.integers(1, 8)).map(
        lambda pair: Encoded(tuple(pair[0]), min(pair[1], len(pair[0]) - 1))
    ),
    min_size=1,
    max_size=30,
)


@given(SEQUENCES, st.booleans(), st.booleans(), st.integers(1, 40))
def test_rows_hold_every_prefix_that_is_needed(
    members: list[Encoded], branches: bool, shared: bool, max_row: int
) -> None:
    n_start = common_start(members) if shared else 0
    start = members[0].ids[:n_start]
    rows = pack(members, branches, n_start, max_row)
    assert [len(row) for row in rows] == sorted(len(row) for row in rows)
    assert sorted({owner for row in rows for owner in row.owners}) == list(range(len(members)))
    batch = stack(rows)
    mask = tree_mask(torch.from_numpy(batch.ends), n_start, torch.float32)[:, 0].numpy()
    seen = mask[:, :, n_start:] == 0
    assert (mask[:, :, :n_start] == 0).all()
    asked: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for node, token, owner in zip(batch.nodes, batch.wanted, batch.owners, strict=True):
        row, column = divmod(int(node), batch.ids.shape[1])
        path = np.flatnonzero(seen[row, column])
        # What a node sees is a whole prefix in order, at the positions that it would have alone.
        assert batch.depths[row, path].tolist() == list(range(n_start, n_start + len(path)))
        if not branches:
            assert path.tolist() == list(range(column + 1))
        prefix = (*start, *batch.ids[row, path].tolist())
        asked.setdefault(int(owner), []).append((prefix, int(token)))
    for owner, member in enumerate(members):
        expected = [
            (member.ids[:t], member.ids[t]) for t in range(member.n_context, len(member.ids))
        ]
        assert asked[owner] == expected
    for row in rows:
        assert len(row) <= max(max_row, max(len(members[o].ids) - 1 for o in row.owners))
        if branches:
            prefixes = {
                members[o].ids[:n]
                for o in row.owners
                for n in range(n_start + 1, len(members[o].ids))
            }
            assert len(row) == len(prefixes)


@pytest.fixture(scope="module")
def shared_llama() -> Any:
    import transformers as t

    torch.manual_seed(1)
    config = t.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    net = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(8)
    return net.eval()


@settings(max_examples=25)
@given(SEQUENCES, st.booleans(), st.integers(1, 60))
def test_any_sequences_equal_the_plain_loop(
    shared_llama: Any, members: list[Encoded], branches: bool, batch_tokens: int
) -> None:
    model = wrap_model(shared_llama, None, "tiny")  # type: ignore[arg-type]
    found = Scorer(model, branches, batch_tokens).log_probs(members)
    np.testing.assert_allclose(found, plain_log_probs(shared_llama, members), atol=1e-4, rtol=0)


def test_what_is_shared_is_computed_and_decoded_once(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    start = (5, 6, 7, 8)
    # Three questions (one more node each); the second has three answers, two begin alike.
    members = [
        Encoded((*start, 1, 9), 5),
        *(Encoded((*start, 2, *answer), 5) for answer in ((9,), (3, 4), (3, 5))),
        Encoded((*start, 3, 9), 5),
    ]
    computed, decoded = [], []
    net.model.register_forward_hook(
        lambda module, args, kwargs, output: computed.append(kwargs["input_ids"].shape),
        with_kwargs=True,
    )
    net.lm_head.register_forward_hook(lambda module, args, output: decoded.append(len(args[0])))
    found = Scorer(model, True, None).log_probs(members)
    assert computed == [(1, len(start)), (1, 3 + 1)]
    assert decoded == [3 + 1]
    np.testing.assert_allclose(found, plain_log_probs(net, members), atol=1e-4)


def test_a_small_sliding_window_falls_back_to_full_prompts(
    tiny_model: Any, word_level: Any
) -> None:
    net = tiny_model("mistral", VOCAB, sliding_window=16)
    model = wrap_model(net, word_level(["a"]), "tiny")
    members = random_members(8, seed=3)
    assert max(len(member.ids) for member in members) > 16
    found = Scorer(model, True, 1000).log_probs(members)
    np.testing.assert_allclose(found, plain_log_probs(net, members), atol=1e-4)


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
    members = random_members(4)
    found = Scorer(model, True, 1000).log_probs(members)
    np.testing.assert_allclose(found, plain_log_probs(net, members), atol=1e-4)


def test_a_model_that_does_not_follow_trees_is_noticed(
    tiny_model: Any, word_level: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    backbone = net.model.forward

    def deaf_to(name: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if kwargs["attention_mask"].ndim == 4:
                kwargs[name] = None
            return backbone(*args, **kwargs)

        return forward

    for name in ("position_ids", "attention_mask"):
        net.model.forward = deaf_to(name)
        assert not follows_trees(model)
        assert "shared starts change the loss by" in caplog.text
        caplog.clear()

    def refusing(*args: Any, **kwargs: Any) -> Any:
        if kwargs["attention_mask"].ndim == 4:
            raise ValueError("two dimensions only")
        return backbone(*args, **kwargs)

    net.model.forward = refusing
    assert not follows_trees(model)
    assert "two dimensions only" in caplog.text


def test_a_model_without_positions_is_computed_in_full(tiny_model: Any, word_level: Any) -> None:
    import transformers as t

    config = t.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    net = t.AutoModelForCausalLM.from_config(config).eval()
    model = wrap_model(net, word_level(["a"]), "mamba")
    assert not follows_trees(model)
    members = random_members(3, longest=10)
    found = Scorer(model, False, 200).log_probs(members)
    np.testing.assert_allclose(found, plain_log_probs(net, members), atol=1e-4)


def test_too_long_prompts_and_foreign_ids_are_errors(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("gpt2", VOCAB), word_level(["a"]), "tiny")
    scorer = Scorer(model, True, 1000)
    with pytest.raises(InputError, match=r"300 tokens.*at most 256"):
        scorer.log_probs([Encoded((1,) * 300, 299)])
    with pytest.raises(InputError, match=r"id 60.*60 embeddings"):
        scorer.log_probs([Encoded((1, 2, 60), 2)])
    assert len(scorer.log_probs([])) == 0


def test_a_loss_that_is_no_number_is_an_error(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", 60)
    with torch.no_grad():
        net.get_output_embeddings().weight[0, 0] = float("nan")
    model = wrap_model(net, word_level(["a b c"]), "broken")
    for branches in (False, True):
        with pytest.raises(InputError, match="broken: the loss of an answer is not a number"):
            Scorer(model, branches, 1000).log_probs(random_members(2))


def out_of_memory_above(net: Any, limit: int) -> None:
    """As a device of `limit` tokens would: the embedding raises what CUDA's allocator raises."""

    def check(module: Any, args: Any) -> None:
        if args[0].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    net.get_input_embeddings().register_forward_pre_hook(check)


def test_out_of_memory_halves_the_batch_and_goes_on(
    tiny_model: Any, word_level: Any, caplog: pytest.LogCaptureFixture
) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    members = random_members(12)
    expected = plain_log_probs(net, members)
    out_of_memory_above(net, 300)
    with caplog.at_level(logging.WARNING):
        scorer = Scorer(model, True, 1200)
        np.testing.assert_allclose(scorer.log_probs(members), expected, atol=1e-4)
    assert scorer.batch_tokens <= 600
    assert "tiny: out of memory, goes on with batches of" in caplog.text
    caplog.clear()
    scorer.log_probs(members)
    assert "out of memory" not in caplog.text


def test_a_row_that_does_not_fit_is_an_error(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")
    out_of_memory_above(net, 20)
    with pytest.raises(InputError, match=r"single row of \d+ tokens does not fit"):
        Scorer(model, True, None).log_probs(random_members(4))


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model: Any, word_level: Any) -> None:
    net = tiny_model("llama", VOCAB)
    model = wrap_model(net, word_level(["a"]), "tiny")

    def fail(module: Any, args: Any) -> None:
        raise RuntimeError("a bug")

    net.get_input_embeddings().register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        Scorer(model, True, None).log_probs(random_members(1))


@pytest.mark.gpu
def test_a_gpus_batch_follows_its_memory(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("llama", VOCAB).to("cuda"), word_level(["a"]), "tiny")
    assert 2048 < automatic_batch_tokens(model) <= 1 << 17
    members = random_members(12)
    expected = plain_log_probs(model.net.cpu(), members)
    model = wrap_model(model.net.to("cuda"), word_level(["a"]), "tiny")
    np.testing.assert_allclose(Scorer(model, True, None).log_probs(members), expected, atol=1e-3)
