"""Time of a training step against a hand-written PyTorch loop and the Hugging Face Trainer.

Every way has the same random weights, batches in the same order, model (float32, sdpa, no cache of
keys and values), fused AdamW with the same groups, clipping, schedule and number of threads, logs a
loss each LINE steps, and is timed without evaluation and checkpoints. What each adds is its own:

- `ours`: training.loop as on any mix: reads ahead in a thread, seeds each step, takes kernels that
  repeat bit for bit, tells the loss apart by language;
- `by_hand`: the shortest loop, with our loss (training.loss); reads a batch when it needs it;
- `by_hand_plain_loss`: the same with cross-entropy of all logits at once, as one writes it;
- `trainer`: the Trainer of transformers with its model's own loss; its rows lie ready in memory.

Blocks of steps take turns, and of a block the median line counts. A ratio is the median over the
turns of another way's time over ours in the same turn (0.97: ours takes three in a hundred more);
`ratio` is that of the faster loop by hand. The target is met where the Trainer is not faster
either. All ways must end at the same loss.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from launch.bench.timing import report
from mining.common.token_file import write_token_file
from training.data import Sequences
from training.distributed import open_accelerator
from training.groups import find_groups
from training.guards import watchdog
from training.loop import Job, run_loop
from training.loss import NextTokenLoss
from training.metrics import NoTracker, Recorder
from training.model import from_config, make_optimizer, model_config, parameters
from training.order import DataOrder
from training.schedule import learning_rate
from training.settings import ModelSettings, TrainSettings

TARGET = 0.97
MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
LINE = 5  # steps between two measurements; the first line of a block is not counted
LANGS, DOCUMENT_TOKENS = ("en", "fr", "ja", "zh"), 500


class Laps(NoTracker):
    """A tracker that keeps what the trainer's own clock says, line by line."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.losses: list[float] = []

    def log(self, record: dict[str, Any]) -> None:
        """Take one record of a training."""
        if record["kind"] == "timing":
            self.lines.append(record)
        elif record["kind"] == "train":
            self.losses.append(record["loss"])


def known_sizes() -> list[str]:
    """The names in configs/models."""
    return sorted(path.stem for path in MODELS.glob("*.yaml"))


def named_model(size: str) -> tuple[ModelSettings, int]:
    """Settings of configs/models/SIZE.yaml, and the vocabulary that the file names."""
    text = (MODELS / f"{size}.yaml").read_text(encoding="utf-8")
    words = text.splitlines()[0].rstrip(".").split()
    return ModelSettings(**yaml.safe_load(text)["train"]["model"]), int(words[-1].replace(",", ""))


def make_model(settings: ModelSettings, vocabulary: int) -> Any:
    """The model with the weights that every way starts from."""
    torch.manual_seed(0)
    return from_config(model_config(settings, vocabulary, 0))


def size_of(settings: ModelSettings, vocabulary: int) -> int:
    """Parameters of the model, of which nothing is made."""
    with torch.device("meta"):
        return parameters(from_config(model_config(settings, vocabulary, 0)))


def random_arm(folder: Path, vocabulary: int, n_tokens: int) -> Path:
    """An arm as the mix has it, of at least `n_tokens` random tokens in documents of LANGS."""
    n_documents = -(-n_tokens // DOCUMENT_TOKENS)
    shape = (n_documents, DOCUMENT_TOKENS)
    tokens = np.random.default_rng(0).integers(1, vocabulary, shape, dtype=np.uint32)
    write_token_file(folder / "tokens.ds", iter(tokens), vocabulary, 0)
    langs = [LANGS[number % len(LANGS)] for number in range(n_documents)]
    pq.write_table(pa.table({"lang": langs}), folder / "documents.parquet")
    return folder


def train_ours(
    settings: TrainSettings, vocabulary: int, arm: Path, n_steps: int, precision: str
) -> Laps:
    """Run the trainer, without the checkpoint that it ends with: gigabytes on a borrowed GPU."""
    laps = Laps()
    sequences = Sequences(arm / "tokens.ds", vocabulary, settings.sequence_length)
    with (
        tempfile.TemporaryDirectory() as out,
        open_accelerator(settings) as accelerator,
        watchdog("bench", None) as dog,
        mock.patch("training.loop.save_checkpoint", return_value=Path(out)),
    ):
        job = Job(
            title="bench",
            settings=settings,
            seed=0,
            n_steps=n_steps,
            precision=precision,
            sequences=sequences,
            end_of_text=None,
            groups=find_groups(arm, sequences, ()),
            validation=[],
            checkpoints=Path(out) / "checkpoints",
            export_snapshot=lambda step, weights: None,
            score=None,
        )
        model = make_model(settings.model, vocabulary)
        run_loop(accelerator, model, job, Recorder(Path(out), laps, active=True), dog)
    return laps


class ByHand:
    """What one writes without a trainer: memmap, model, fused AdamW, clipping, schedule."""

    def __init__(self, settings: TrainSettings, vocabulary: int, arm: Path, n_steps: int) -> None:
        self.settings, self.vocabulary, self.n_steps = settings, vocabulary, n_steps
        self.sequences = Sequences(arm / "tokens.ds", vocabulary, settings.sequence_length)

    def batches(self) -> Iterator[torch.Tensor]:
        """The batches that the trainer sees, int64 [batch, length + 1]."""
        order = DataOrder(0, len(self.sequences), self.settings.global_batch_sequences)
        for step in range(self.n_steps):
            yield torch.from_numpy(self.sequences.batch(order.ids(step)))

    def run(self, loss_of: Callable[[Any, torch.Tensor], torch.Tensor]) -> Laps:
        """Train a fresh model."""
        settings, laps = self.settings, Laps()
        model = make_model(settings.model, self.vocabulary).train()
        optimizer = make_optimizer(model, settings, torch.device("cpu"))
        losses, since = [], time.perf_counter()
        for step, tokens in enumerate(self.batches()):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step, self.n_steps)
            loss = loss_of(model, tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            if (step + 1) % LINE == 0:
                laps.losses.append(float(torch.stack(losses).mean()))
                now = time.perf_counter()
                laps.lines.append({"seconds": (now - since) / LINE})
                losses, since = [], time.perf_counter()
        return laps


def our_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Our loss."""
    loss: torch.Tensor = NextTokenLoss(model, "float32")(tokens)
    return loss


def plain_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of all logits at once."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train_hugging_face(by_hand: ByHand) -> Laps:
    """The Trainer of transformers with the same batches in the same order."""
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    settings, laps = by_hand.settings, Laps()
    # With shift_labels the model predicts as many tokens as in the other ways.
    rows = [
        {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]}
        for batch in by_hand.batches()
        for row in batch
    ]

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(rows)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.since = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "loss" in logs:
                now = time.perf_counter()
                laps.lines.append({"seconds": (now - self.since) / LINE})
                laps.losses.append(float(logs["loss"]))
                self.since = time.perf_counter()

    model = make_model(settings.model, by_hand.vocabulary)
    optimizer = make_optimizer(model, settings, torch.device("cpu"))
    peak = settings.learning_rate
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(settings, step, by_hand.n_steps) / peak
    )
    with tempfile.TemporaryDirectory() as out:
        # What costs time and the other ways do not do is off: a look at each loss (the filter of
        # what is not finite), pinned memory without a GPU, a file for its own log.
        arguments = TrainingArguments(
            output_dir=out, max_steps=by_hand.n_steps, logging_steps=LINE, use_cpu=True,
            per_device_train_batch_size=settings.global_batch_sequences, save_strategy="no",
            max_grad_norm=settings.grad_clip or 0.0, report_to=[], disable_tqdm=True,
            remove_unused_columns=False, logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = InOrder(
            model=model, args=arguments, train_dataset=rows, callbacks=[Watch()],
            optimizers=(optimizer, schedule),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return laps


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="llama-10m", choices=known_sizes())
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--lines", type=int, default=6, help=f"lines of {LINE} steps in a block")
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each way")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    model, vocabulary = named_model(options.size)
    settings = TrainSettings(
        model=model, sequence_length=options.sequence_length, device="cpu", log_every=LINE,
        global_batch_sequences=options.batch, validate_every=None, checkpoint_every=1 << 30,
    )  # fmt: skip
    n_steps = LINE * options.lines
    with tempfile.TemporaryDirectory() as folder:
        n_tokens = (n_steps * options.batch + 1) * options.sequence_length
        arm = random_arm(Path(folder), vocabulary, n_tokens)
        by_hand = ByHand(settings, vocabulary, arm, n_steps)
        ways: dict[str, Callable[[], Laps]] = {
            "ours": lambda: train_ours(settings, vocabulary, arm, n_steps, "float32"),
            "by_hand": lambda: by_hand.run(our_loss),
            "by_hand_plain_loss": lambda: by_hand.run(plain_loss),
            "trainer": lambda: train_hugging_face(by_hand),
        }
        measure(options, ways, settings, vocabulary)


def measure(
    options: argparse.Namespace,
    ways: dict[str, Callable[[], Laps]],
    settings: TrainSettings,
    vocabulary: int,
) -> None:
    """Let the ways take turns and print the last line."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    names = list(ways)
    for turn in range(options.repeats):
        # Another one goes first each time.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # A trainer that is left over must not be collected on another one's time.
            gc.collect()
            laps = ways[name]()
            seconds[name].append(statistics.median(line["seconds"] for line in laps.lines[1:]))
            losses[name] = laps.losses[-1]
    apart = max(losses.values()) - min(losses.values())
    assert apart < 2e-3, f"the ways learn different things: {losses}"
    over = {
        name: sorted(other / ours for other, ours in zip(times, seconds["ours"], strict=True))
        for name, times in seconds.items()
        if name != "ours"
    }
    ratios = {name: statistics.median(values) for name, values in over.items()}
    ratio = min(ratios["by_hand"], ratios["by_hand_plain_loss"])
    report(
        "training",
        ratio,
        TARGET,
        met=ratio >= TARGET and ratios["trainer"] >= 1.0,
        over_ours={name: round(value, 3) for name, value in ratios.items()},
        over_ours_range={
            name: [round(values[0], 3), round(values[-1], 3)] for name, values in over.items()
        },
        size=options.size,
        parameters=size_of(settings.model, vocabulary),
        tokens_per_step=settings.global_batch_sequences * settings.sequence_length,
        threads=torch.get_num_threads(),
        largest_difference_of_loss=apart,
        milliseconds_per_step={
            name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()
        },
    )


if __name__ == "__main__":
    main()
