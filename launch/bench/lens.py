"""The logit lens: what it adds to the forward pass, and against decoding everything.

    python -m launch.bench.lens

The other way is the reference's: `output_hidden_states`, then norm, unembedding and softmax at
every position of every layer, once each, of which the answering position is read. Target: ten
times, at a width of 256 and a vocabulary of 50,000, with the same numbers, which are compared
before anything is timed.

And at about 100 M parameters (`added_to_forward`) the lens should add at most a tenth to the
backbone's forward pass, which it needs in any case; both run in turns on the same batch, nothing
else between them. `arithmetic` is what the unembedding's products alone add to those of the blocks:
one position of every layer against all positions of the blocks. In a narrow model with a large
vocabulary that is above a tenth already, so the last line has both widths.

Random weights; sequences as long as a prompt of the task with five examples. `peak_mib` is what
resident memory rises by while a way runs, `estimated_mib` what `eval.lens_memory` says beforehand.
About two minutes on two cores.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.lens import LayerReadings, read_layers
from eval.lens_memory import lens_bytes
from eval.lens_parts import LensParts, find_parts
from eval.models import LanguageModel, wrap_model
from eval.scoring import backbone_inputs, pad_right
from launch.bench.scoring import with_peak
from launch.bench.timing import medians, report
from mining.common.tokenizer import Tokenizer

TARGET = 10.0
MOST_ADDED = 0.10
WIDTH = 256
VOCABULARY = 50_000
TOP_K = 10
# As in the trace: a few tokens of the source word, the pivots, a few of the target; the languages.
SETS = (frozenset({1, 2}), frozenset(range(3, 53)), frozenset({60, 61}))
LANGUAGES = 4
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


def ours(
    model: LanguageModel,
    parts: LensParts,
    prompts: list[list[int]],
    languages: Tensor | None = None,
) -> list[LayerReadings]:
    """The lens at the last position; `languages` [v, vocabulary] are the tokens of v languages."""
    sets, answers = [SETS] * len(prompts), [60] * len(prompts)
    return read_layers(model, parts, prompts, sets, answers, TOP_K, False, languages)


def numbers(readings: list[LayerReadings]) -> Floats:
    """The largest probabilities and those of SETS [layers, n, TOP_K + sets]."""
    return np.stack([np.hstack([r.top_probs, r.masses]) for r in readings])


@torch.inference_mode()
def everything(model: LanguageModel, parts: LensParts, prompts: list[list[int]]) -> Floats:
    """The same as `numbers`, by decoding every position of every layer."""
    ids, mask = pad_right(prompts, model.device)
    # Of the backbone: the whole model would decode the last layer's positions once more.
    output = model.net.base_model(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
    )
    rows, last = torch.arange(len(ids)), mask.sum(dim=1) - 1
    found = []
    n_layers = len(parts.blocks)
    for layer, states in enumerate(output.hidden_states[1:], start=1):
        # The last entry of transformers is normed already.
        normed = states if layer == n_layers else parts.norm(states)
        probs = torch.softmax(parts.head(normed), dim=-1)[rows, last].double()
        masses = [probs[:, sorted(members)].sum(dim=1, keepdim=True) for members in SETS]
        found.append(torch.cat([probs.topk(TOP_K, dim=1).values, *masses], dim=1).numpy())
    return np.stack(found)


@torch.inference_mode()
def forward(model: LanguageModel, prompts: list[list[int]]) -> None:
    """The backbone's forward pass alone, with the inputs that the lens gives it."""
    ids, mask = pad_right(prompts, model.device)
    order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    model.net.base_model(**backbone_inputs(model, ids, mask, order), use_cache=False)


def added_to_forward(
    model: LanguageModel, parts: LensParts, prompts: list[list[int]], repeats: int
) -> dict[str, Any]:
    """What the lens takes above the forward pass, as a share of it, by medians."""
    languages = one_language_each(model)
    seconds = medians(
        {
            "forward": lambda: forward(model, prompts),
            "lens": lambda: ours(model, parts, prompts, languages),
        },
        repeats,
    )
    added = seconds["lens"] / seconds["forward"] - 1
    width = model.net.config.hidden_size
    # Of a block, for a token: attention's four matrices and the three of the feed-forward part.
    block = width * (4 * width + 3 * model.net.config.intermediate_size)
    tokens = max(map(len, prompts))
    return {
        "width": width,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "added": round(added, 3),
        "target": MOST_ADDED,
        "met": added <= MOST_ADDED,
        "arithmetic": round(width * model.n_embeddings / (tokens * block), 3),
        "forward_seconds": round(seconds["forward"], 4),
        "lens_seconds": round(seconds["lens"], 4),
    }


def one_language_each(model: LanguageModel) -> Tensor:
    """Tokens of LANGUAGES languages, float32 [LANGUAGES, vocabulary]."""
    lang = torch.arange(model.n_embeddings, device=model.device) % LANGUAGES
    return (lang == torch.arange(LANGUAGES, device=model.device).unsqueeze(1)).float()


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--length", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--wide", type=int, default=640, help="width for what the lens adds")
    parser.add_argument("--repeats", type=int, default=5, help="of decoding everything")
    parser.add_argument("--repeats-added", type=int, default=15, help="of the forward pass")
    options = parser.parse_args()
    prompts = draw_prompts(options.items, options.length)
    narrow = make_model(WIDTH, options.layers)
    parts = find_parts(narrow, None, None)
    languages = one_language_each(narrow)
    # The frugal way first: what the allocator keeps of a greedy one would hide what it takes.
    found, peak = with_peak(lambda: numbers(ours(narrow, parts, prompts, languages)).tolist())
    expected, peak_everything = with_peak(lambda: everything(narrow, parts, prompts).tolist())
    worst = float(np.abs(found - expected).max())
    assert worst < 1e-5, f"the ways differ by {worst}"
    seconds = medians(
        {
            "everything": lambda: everything(narrow, parts, prompts),
            "lens": lambda: ours(narrow, parts, prompts, languages),
        },
        options.repeats,
    )
    at_256 = added_to_forward(narrow, parts, prompts, options.repeats_added)
    wide = make_model(options.wide, options.layers)
    at_wide = added_to_forward(wide, find_parts(wide, None, None), prompts, options.repeats_added)
    estimate = lens_bytes(narrow, parts, options.items, options.length) / (1 << 20)
    report(
        "lens",
        seconds["everything"] / seconds["lens"],
        TARGET,
        added_to_forward=at_wide["added"],
        added_target=MOST_ADDED,
        added_met=at_wide["met"],
        added_at_256=at_256,
        added_at_wide=at_wide,
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
