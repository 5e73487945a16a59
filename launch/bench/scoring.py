"""Word-translation scoring: shared prefixes against full prompts, on a model of about 100 M.

    python -m launch.bench.scoring

The other way is the reference's: for each draw of examples ten full prompts in one padded batch,
logits at every position. Says how much comes from decoding only the answers and how much from
computing the shared start of the ten prompts once. Target 6 of the project: ten times, equal within
1e-4 in float32.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import models
from transformers import AutoModelForCausalLM, LlamaConfig

from eval.models import wrap_model
from eval.prompts import Encoded
from eval.scoring import group_losses
from launch.bench.timing import medians, report
from mining.common.tokenizer import Tokenizer

TARGET = 10.0
VOCABULARY = 50_000
BATCH_TOKENS = 16_384


def make_groups(n_groups: int) -> list[list[Encoded]]:
    """Random prompts of the task's shape: ten source words after the same worked examples."""
    rng = np.random.default_rng(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, rng.integers(low, high)).tolist())

    groups = []
    for _ in range(n_groups):
        start, answer, query = ids(70, 100), ids(1, 4), ids(4, 5)
        contexts = [start + ids(1, 4) + query for _ in range(10)]
        groups.append([Encoded(context + answer, len(context)) for context in contexts])
    return groups


@torch.inference_mode()
def reference(model: torch.nn.Module, groups: list[list[Encoded]]) -> list[npt.NDArray[np.float64]]:
    """Mean negative log-likelihoods of the answers, the reference's way."""
    losses = []
    for group in groups:
        width = max(len(member.ids) for member in group)
        ids = torch.zeros(len(group), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, member in enumerate(group):
            ids[row, : len(member.ids)] = torch.tensor(member.ids)
            mask[row, : len(member.ids)] = 1
        logs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits, dim=-1)
        losses.append(
            np.array(
                [
                    -np.mean(
                        [
                            float(logs[row, place - 1, member.ids[place]])
                            for place in range(member.n_context, len(member.ids))
                        ]
                    )
                    for row, member in enumerate(group)
                ]
            )
        )
    return losses


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=1792,
        num_hidden_layers=8,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=512,
    )
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # The prompts are token ids already: no text is ever encoded.
    tokenizer = Tokenizer("", 0, VOCABULARY, frozenset(), Engine(models.WordLevel()))
    model = wrap_model(network, tokenizer, "bench")
    groups = make_groups(options.groups)
    full = reference(network, groups)
    shared = group_losses(model, groups, BATCH_TOKENS, True)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(full, shared, strict=True))
    assert difference < 1e-4, f"the two ways differ by {difference}"
    seconds = medians(
        {
            "reference": lambda: reference(network, groups),
            "answers_only": lambda: group_losses(model, groups, BATCH_TOKENS, False),
            "shared_prefix": lambda: group_losses(model, groups, BATCH_TOKENS, True),
        },
        options.repeats,
    )
    report(
        "scoring",
        seconds["reference"] / seconds["shared_prefix"],
        TARGET,
        answers_only_ratio=round(seconds["reference"] / seconds["answers_only"], 2),
        parameters=sum(p.numel() for p in network.parameters()),
        groups=options.groups,
        largest_difference=difference,
        threads=torch.get_num_threads(),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
