"""Tokens a second, share of the GPU's peak (MFU) and memory of training in bf16, on one GPU.

By default models of about 125 M, 350 M and 1 B parameters at 2,048 tokens. MFU is what
training.speed says: 6 operations a weight and token and 12 * layers * width * length for attention,
over the maker's dense bf16 peak; `ratio` is that of the last size. Needs a CUDA device: without one
it says so and ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from launch.bench.timing import report
from launch.bench.training import (
    known_sizes,
    named_model,
    random_arm,
    size_of,
    train_ours,
)
from training.settings import ModelSettings, TrainSettings

TARGET = 0.5
LENGTH = 2048
# Sequences of a micro-batch that fit into 80 GB without activation checkpointing; on 140 GB
# llama-1b:16 is worth a try.
SIZES = {"llama-125m": 32, "llama-350m": 16, "llama-1b": 8}


def main() -> None:
    """Run the benchmark; each size has a JSON line, and so has the whole, last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", nargs="+", default=list(SIZES.items()),
        metavar="NAME:MICRO", help="names in configs/models with sequences of a micro-batch",
        type=size_and_micro,
    )  # fmt: skip
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    kinds = get_args(get_type_hints(ModelSettings)["attention"])
    parser.add_argument("--attention", default="sdpa", choices=kinds)
    parser.add_argument("--activation-checkpointing", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("training_gpu: needs a CUDA device and found none; nothing is measured")
        return
    figures = [measure(options, *entry) for entry in options.sizes]
    report(
        "training_gpu",
        figures[-1]["mfu"] or 0.0,
        TARGET,
        device=torch.cuda.get_device_name(),
        compiled=not options.no_compile,
        attention=options.attention,
        mfu={figure["size"]: figure["mfu"] for figure in figures},
        tokens_per_second={figure["size"]: figure["tokens_per_second"] for figure in figures},
        gpu_memory_gib={figure["size"]: figure["gpu_memory_gib"] for figure in figures},
    )


def size_and_micro(text: str) -> tuple[str, int]:
    """NAME:MICRO, or NAME alone where SIZES has a micro-batch for it."""
    name, _, micro = text.partition(":")
    known = known_sizes()
    if name not in known:
        raise argparse.ArgumentTypeError(f"no size {name!r}; known: {', '.join(known)}")
    if not micro and name not in SIZES:
        raise argparse.ArgumentTypeError(
            f"no micro-batch is known for {name}; give it, such as {name}:4"
        )
    if micro and not (micro.isdecimal() and int(micro)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME:MICRO, such as {name}:4")
    return name, int(micro or SIZES[name])


def measure(options: argparse.Namespace, size: str, micro: int) -> dict[str, Any]:
    """Train one size; medians over lines of five steps, the first three lines left out."""
    named, vocabulary = named_model(size)
    model = dataclasses.replace(named, attention=options.attention)
    batch = micro * options.accumulate
    settings = TrainSettings(
        model=model, sequence_length=LENGTH, global_batch_sequences=batch,
        micro_batch_sequences=micro, compile=not options.no_compile, log_every=5,
        activation_checkpointing=options.activation_checkpointing, validate_every=None,
        checkpoint_every=1 << 30,
    )  # fmt: skip
    # Of the size before, its compiled code and what it kept apart included.
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        arm = random_arm(Path(folder), vocabulary, (64 * batch + 1) * LENGTH)
        laps = train_ours(settings, vocabulary, arm, options.steps, "bf16")
    lines = laps.lines[3:]
    found = {
        "size": size,
        "parameters": size_of(model, vocabulary),
        "micro_batch": micro,
        "tokens_per_step": batch * LENGTH,
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
        "mfu": statistics.median(line["mfu"] for line in lines) if "mfu" in lines[0] else None,
        "gpu_memory_gib": lines[-1]["gpu_memory_gib"],
        "data_wait": statistics.median(line["data_wait"] for line in lines),
    }
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
