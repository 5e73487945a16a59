"""The logit lens: what it adds to the forward pass, and against decoding everything.

    python -m launch.bench.lens

The other way is the reference's: `output_hidden_states`, then norm, unembedding and softmax at
every position of every layer, of which the answering position is read. Target: ten times, at a
width of 256 and a vocabulary of 50,000, with the same numbers. And at about 100 M parameters the
lens should add at most a tenth to the backbone's forward pass, which it needs in any case: per
position, decoding one costs as much as V / (12 d) tokens of the backbone, so that narrow models
with a large vocabulary cannot reach that, and the last line gives both.

Random weights; sequences as long as a prompt of the task with five examples. `peak_mib` is what
resident memory rises by while a way runs, `estimated_mib` what `eval.lens_memory` says beforehand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import models
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.lens import LayerReadings, read_layers
from eval.lens_memory import lens_bytes
from eval.lens_parts import LensParts, find_parts
from eval.models import LanguageModel, wrap_model
from eval.scoring import pad_right
from launch.bench.scoring import with_peak
from launch.bench.timing import medians, report
from mining.common.tokenizer import Tokenizer

TARGET = 10.0
MOST_ADDED = 0.10
VOCABULARY = 50_000
TOP_K = 10
Floats = npt.NDArray[np.float64]


def make_model(
    width: int,
    layers: int,
    vocabulary: int = VOCABULARY,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> LanguageModel:
    """A Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * 2.8),
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        max_position_embeddings=512,
    )
    with torch.device(device or "cpu"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tokenizer = Tokenizer("", 0, vocabulary, frozenset(), Engine(models.BPE()))
    return wrap_model(network, tokenizer, f"width {width}")


def draw_prompts(n: int, length: int, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Sequences of about the same length."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, vocabulary, length - int(rng.integers(0, 8))).tolist() for _ in range(n)
    ]


def ours(model: LanguageModel, parts: LensParts, prompts: list[list[int]]) -> list[LayerReadings]:
    """The lens at the last position."""
    sets = [(frozenset({1, 2}), frozenset(range(3, 53)), frozenset({60, 61}))] * len(prompts)
    return read_layers(model, parts, prompts, sets, [60] * len(prompts), TOP_K, False)


@torch.inference_mode()
def everything(model: LanguageModel, parts: LensParts, prompts: list[list[int]]) -> Floats:
    """The probabilities of the most probable tokens of each layer [layers, n, TOP_K]."""
    ids, mask = pad_right(prompts, model.device)
    output = model.net(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    rows, last = torch.arange(len(ids)), mask.sum(dim=1) - 1
    found = []
    n_layers = len(parts.blocks)
    for layer, states in enumerate(output.hidden_states[1:], start=1):
        # The last entry of transformers is normed already.
        normed = states if layer == n_layers else parts.norm(states)
        probs = torch.softmax(parts.head(normed), dim=-1)
        found.append(probs[rows, last].topk(TOP_K, dim=1).values.double().numpy())
    return np.stack(found)


@torch.inference_mode()
def forward(model: LanguageModel, prompts: list[list[int]]) -> None:
    """The backbone's forward pass alone."""
    ids, mask = pad_right(prompts, model.device)
    model.net.base_model(input_ids=ids, attention_mask=mask, use_cache=False)


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--length", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--wide", type=int, default=640, help="width for what the lens adds")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    prompts = draw_prompts(options.items, options.length)
    narrow = make_model(256, options.layers)
    parts = find_parts(narrow, None, None)

    def tops() -> Floats:
        return np.stack([reading.top_probs for reading in ours(narrow, parts, prompts)])

    # The frugal way first: what the allocator keeps of a greedy one would hide what it takes.
    found, peak = with_peak(lambda: tops().tolist())
    expected, peak_everything = with_peak(lambda: everything(narrow, parts, prompts).tolist())
    worst = float(np.abs(found - expected).max())
    assert worst < 1e-5, f"the ways differ by {worst}"
    ways: dict[str, Callable[[], object]] = {
        "everything": lambda: everything(narrow, parts, prompts),
        "lens": lambda: ours(narrow, parts, prompts),
        "forward": lambda: forward(narrow, prompts),
    }
    wide = make_model(options.wide, options.layers)
    wide_parts = find_parts(wide, None, None)
    ways |= {
        "wide_lens": lambda: ours(wide, wide_parts, prompts),
        "wide_forward": lambda: forward(wide, prompts),
    }
    seconds = medians(ways, options.repeats)
    added = seconds["wide_lens"] / seconds["wide_forward"] - 1
    estimate = lens_bytes(narrow, parts, options.items, options.length) / (1 << 20)
    report(
        "lens",
        seconds["everything"] / seconds["lens"],
        TARGET,
        added_to_forward=round(added, 3),
        added_target=MOST_ADDED,
        added_met=added <= MOST_ADDED,
        added_to_forward_at_256=round(seconds["lens"] / seconds["forward"] - 1, 3),
        parameters=sum(p.numel() for p in wide.net.parameters()),
        layers=options.layers,
        items=options.items,
        length=options.length,
        vocabulary=VOCABULARY,
        largest_difference=worst,
        peak_mib={"lens": peak, "everything": peak_everything},
        estimated_mib=round(estimate),
        threads=torch.get_num_threads(),
        seconds={name: round(value, 4) for name, value in seconds.items()},
    )


if __name__ == "__main__":
    main()
