"""The tuned lens: it comes closer to the last layer, and is kept with the model it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.lens import read_layers
from eval.lens_parts import find_parts
from eval.models import LanguageModel, wrap_model
from eval.tuned_lens import Translators, read_translators, save_translators, untrained
from eval.tuned_training import layer_divergences, read_windows, train_translators
from mining.common.errors import InputError, MismatchError

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture
def model(tiny_model: Any, word_level: Any) -> LanguageModel:
    tokenizer = word_level(WORDS)
    return wrap_model(tiny_model("llama", tokenizer.vocab_size), tokenizer, "tiny")


def write_text(path: Path, n: int) -> Path:
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 20)) for _ in range(n)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_training_brings_every_layer_closer_to_the_last(
    model: LanguageModel, tmp_path: Path
) -> None:
    parts = find_parts(model, None, None)
    windows = read_windows(model, write_text(tmp_path / "text", 120))
    assert windows.shape == (120 * 20 // 128, 128)
    before = layer_divergences(model, parts, None, windows)
    found = train_translators(model, parts, windows, 80, seed=1)
    after = layer_divergences(model, parts, found, windows)
    assert len(before) == len(after) == 3
    assert all(b < 0.85 * a for a, b in zip(before, after, strict=True))
    again = train_translators(model, parts, windows, 80, seed=1)
    torch.testing.assert_close(found.weights, again.weights, rtol=0, atol=0)


def test_divergence_is_that_of_the_definition(model: LanguageModel, tmp_path: Path) -> None:
    parts = find_parts(model, None, None)
    windows = read_windows(model, write_text(tmp_path / "text", 60))
    with torch.inference_mode():
        output = model.net(windows[:1], output_hidden_states=True)
        goal = torch.log_softmax(output.logits[0], dim=-1)
        states = output.hidden_states[1][0]
        logs = torch.log_softmax(model.net.lm_head(model.net.model.norm(states)), dim=-1)
        expected = float((goal.exp() * (goal - logs)).sum(dim=-1).mean())
    assert layer_divergences(model, parts, None, windows)[1] == pytest.approx(expected, rel=1e-4)


def test_untrained_translators_are_the_logit_lens(model: LanguageModel) -> None:
    parts = find_parts(model, None, None)
    asked = ([[1, 2, 3], [4, 5]], [(frozenset({1}),), (frozenset({2}),)], [3, 4], 4, True)
    plain = read_layers(model, parts, *asked)
    same = read_layers(model, parts, *asked, translators=untrained(3, 32, model.device))
    moved = Translators(torch.zeros(3, 32, 32), torch.ones(3, 32))
    other = read_layers(model, parts, *asked, translators=moved)
    for layer in range(4):
        np.testing.assert_array_equal(plain[layer].top_ids, same[layer].top_ids)
        np.testing.assert_allclose(plain[layer].entropy, same[layer].entropy, atol=1e-5)
        changed = not np.allclose(plain[layer].entropy, other[layer].entropy)
        # The last layer is read as it is.
        assert changed == (layer < 3)


def test_kept_as_safetensors_with_its_model(tmp_path: Path) -> None:
    found = Translators(torch.randn(3, 4, 4), torch.randn(3, 4))
    path = tmp_path / "tuned_lens.safetensors"
    save_translators(path, found, "abc", [0.5, 0.25, 0.125])
    read = read_translators(path, "abc", torch.device("cpu"))
    torch.testing.assert_close(read.weights, found.weights, rtol=0, atol=0)
    torch.testing.assert_close(read.biases, found.biases, rtol=0, atol=0)
    with pytest.raises(MismatchError, match="was trained on another model"):
        read_translators(path, "def", torch.device("cpu"))
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_translators(path, "abc", torch.device("cpu"))
    with pytest.raises(InputError, match="no such file; train the lens"):
        read_translators(tmp_path / "none", "abc", torch.device("cpu"))


def test_texts_that_cannot_serve_are_named(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such text"):
        read_windows(model, tmp_path / "none")
    with pytest.raises(InputError, match="has 20 tokens, at least 256 are needed"):
        read_windows(model, write_text(tmp_path / "short", 1))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_windows(model, tmp_path / "bytes")
