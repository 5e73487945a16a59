"""Settings of the `train` stage; importing this module loads no torch.

`Duration` carries its unit in the text: "1epoch", "500steps", "2000000tokens".
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from mining.common.errors import SettingsError, check_setting
from mining.common.stage import engine_setting, path_setting

_DURATION = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*(epoch|step|token)s?")


@dataclass(frozen=True)
class Duration:
    """A length of training: `value` of a `unit`, "epoch", "step" or "token"."""

    value: float
    unit: Literal["epoch", "step", "token"]

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "1epoch", "0.5epochs", "500steps", "2_000_000tokens"; SettingsError otherwise."""
        match = _DURATION.fullmatch(text.strip())
        value = float(match[1].replace("_", "")) if match else 0.0
        if not match or value <= 0 or (match[2] != "epoch" and not value.is_integer()):
            raise SettingsError(
                f"duration: found {text!r}, expected a positive number and its unit, "
                "such as 1epoch, 500steps or 2000000tokens"
            )
        unit: Literal["epoch", "step", "token"] = match[2]  # type: ignore[assignment]
        return cls(value, unit)

    def steps(self, n_sequences: int, sequence_length: int, global_batch_sequences: int) -> int:
        """The smallest number of steps that sees at least this much, at least 1."""
        if self.unit == "step":
            return int(self.value)
        if self.unit == "token":
            sequences = math.ceil(self.value / sequence_length)
        else:
            # As it is written: 0.7 * 10 in binary is more than 7, and would take an eighth one.
            sequences = math.ceil(Fraction(repr(self.value)) * n_sequences)
        return max(1, math.ceil(sequences / global_batch_sequences))


def snapshot_folder(step: int) -> str:
    """Where in a train stage's folder the snapshot of a step lies."""
    return f"snapshots/step-{step:06d}"


@dataclass(frozen=True)
class ModelSettings:
    """A decoder to train from scratch, or a checkpoint to continue from.

    Attributes:
        path: folder or hub id of a Hugging Face checkpoint to continue from; its tokenizer must be
            the mix's, and the sizes below are not used. Null starts from random weights.
        revision: revision of the hub id.
        optimizer: AdamW's state to continue with: a folder checkpoints/step-N of ours, which
            train.keep_every keeps; null starts with empty moments.
        style: what a fresh model looks like: llama; olmo (norms without parameters, as OLMo-1B and
            7B); olmo2 (norms after attention and MLP, and on queries and keys).
        attention: kernel of the attention; flash_attention_2 needs a GPU, bf16 and the package
            flash-attn.
        hidden_size: width of the residual stream.
        n_layers: number of blocks.
        n_heads: attention heads; divides hidden_size.
        n_kv_heads: key-value heads (grouped-query attention); null means n_heads.
        intermediate_size: width of the gated MLP; null means 8/3 of hidden_size, rounded up to a
            multiple of 32.
        tie_embeddings: one matrix for embedding and unembedding.
        max_length: longest sequence the model takes, tokens.
        rope_theta: base of the rotary position embedding.
        init_std: standard deviation of the random weights.
    """

    path: str | None = path_setting()
    revision: str | None = None
    optimizer: str | None = path_setting()
    style: Literal["llama", "olmo", "olmo2"] = "llama"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    hidden_size: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int | None = None
    intermediate_size: int | None = None
    tie_embeddings: bool = True
    max_length: int = 512
    rope_theta: float = 10000.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for key in ("hidden_size", "n_layers", "n_heads"):
            check_setting(self, key, getattr(self, key) >= 1, "at least 1")
        check_setting(
            self,
            "hidden_size",
            self.hidden_size % (2 * self.n_heads) == 0,
            f"a multiple of twice n_heads ({self.n_heads}), so that a head's width is even",
        )
        kv = self.n_kv_heads
        check_setting(
            self,
            "n_kv_heads",
            kv is None or (kv >= 1 and self.n_heads % kv == 0),
            f"a divisor of n_heads ({self.n_heads}), or null",
        )
        check_setting(
            self,
            "intermediate_size",
            self.intermediate_size is None or self.intermediate_size >= 1,
            "at least 1, or null",
        )
        check_setting(
            self,
            "optimizer",
            self.optimizer is None or self.path is not None,
            "null where path is null: it belongs to the checkpoint that is continued",
        )
        check_setting(self, "max_length", self.max_length >= 2, "at least 2")
        check_setting(self, "rope_theta", self.rope_theta > 1, "above 1")
        check_setting(self, "init_std", 0 < self.init_std < 1, "between 0 and 1")

    def mlp_size(self) -> int:
        """Width of the gated MLP."""
        return self.intermediate_size or -(-8 * self.hidden_size // (3 * 32)) * 32


@dataclass(frozen=True)
class WandbSettings:
    """Weights & Biases: a run for every stage. Changes nothing in any result.

    Attributes:
        mode: auto takes WANDB_MODE where it is set, else online where WANDB_API_KEY is set, else
            offline; without the package, auto logs a line and goes on.
        project: name of the project there.
        entity: team or user; null for the account's default.
        group: name that the runs of one experiment share; null takes that of the run's folder.
        folder: where W&B keeps its files, in wandb/; null takes the run's folder.
    """

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    project: str = "semantic-pivots"
    entity: str | None = None
    group: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        check_setting(self, "project", bool(self.project), "a name")


@dataclass(frozen=True)
class SourceSettings:
    """Further token files to train on beside the mix's arm, made with the mix's tokenizer.

    Attributes:
        path: a `.ds` file, a file of ids without header (a raw memmap, as OLMo reads), or a folder
            of such files.
        weight: share of the sequences that come from here, in proportion to the other sources'
            weights and to train.arm_weight.
        dtype: type of the ids; null takes uint16 where the vocabulary fits, else uint32.
    """

    path: str = field(metadata={"recorded": False})
    weight: float = 1.0
    dtype: Literal["uint16", "uint32"] | None = None

    def __post_init__(self) -> None:
        check_setting(self, "path", bool(self.path), "a file or folder (train.sources)")
        check_setting(self, "weight", 0 < self.weight < math.inf, "above 0 (train.sources)")


@dataclass(frozen=True)
class TrainSettings:
    """Trains a model on one arm of a mix.

    Attributes:
        model: the model to build, or the checkpoint to continue from.
        sources: further token files beside the arm, each with its weight.
        arm_weight: weight of the arm among the sources; 0 trains on the sources alone.
        sequence_length: tokens of a training sequence; documents are packed back to back.
        document_borders: cross: attention crosses the borders of packed documents, as in OLMo;
            masked: it does not, and positions start again, as if each document stood alone behind
            an end-of-text token.
        global_batch_sequences: sequences of a step, over all processes.
        global_batch_tokens: the same in tokens, a multiple of sequence_length; null leaves it to
            global_batch_sequences, else that is not used.
        micro_batch_sequences: sequences that one process takes through the model at once; null
            takes its whole share of the batch.
        duration: length of training with its unit, such as 1epoch, 500steps, 2000000tokens. An
            epoch is as many sequences as all sources hold together.
        start_step: steps that the schedule has behind it when this training begins: the
            checkpoint's, where one is continued.
        schedule_steps: steps of the whole schedule, those before start_step too; null ends it with
            this training.
        learning_rate: peak of the schedule.
        min_lr_share: the schedule ends at this share of the peak.
        schedule: shape after the warm-up: cosine, linear, wsd (constant, then linear down), or
            constant.
        decay_share: wsd: share of the steps that go down, at most those after the warm-up.
        warmup_steps: steps of linear warm-up; null takes warmup_share.
        warmup_share: share of the steps that warm up.
        weight_decay: AdamW's, on matrices only (not on norms, biases and embeddings).
        betas: AdamW's two decay rates.
        adam_epsilon: AdamW's denominator term.
        grad_clip: largest norm of the gradient; null never clips.
        precision: auto is bf16 autocast on a GPU that has it, float32 elsewhere; weights and
            optimizer state are float32 always.
        device: auto takes a GPU where there is one.
        compile: compile the model's blocks with torch.compile (needs a C++ compiler on CPU).
        activation_checkpointing: compute each block's activations again in the backward pass: less
            memory, about a third more work.
        on_nonfinite: what a loss or gradient that is not finite does: stop the training, or skip
            the step's update (then each step waits for the device). The batch is written to
            nonfinite/ in both cases. A training that was stopped so goes on with skip.
        stuck_after_seconds: a process in which no step ends for so long says where it stands and
            ends itself, so that the launcher ends the others; null waits for ever.
        parallel: how several processes share the work. ddp: each holds the whole model; fsdp:
            weights, gradients and optimizer state in shards (FSDP2); zero1, zero2, zero3: DeepSpeed
            with optimizer state, also gradients, also weights in shards. May change while training
            is interrupted, as may the number of processes. One process alone trains plainly, unless
            DeepSpeed offloads.
        deepspeed: DeepSpeed JSON that tunes zero1 to zero3 (buckets, offload to the CPU); what the
            other settings say, such as batch and clipping, must not stand in it.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints kept while training runs.
        keep_every: checkpoints after a multiple of this many steps stay for good, with optimizer
            state, in checkpoints/; null keeps none once training is finished.
        snapshots: steps after which the model is exported as it is then, to be evaluated as a
            series; each is a whole model on disk.
        log_every: steps between lines of metrics.jsonl.
        validate_every: steps between validations; null only at the start and the end.
        validation_tokens: tokens per language of a validation, at most; null for all.
        score_every: steps between word-translation scores of the model in training, which has one
            before the first step and after the last too: a few items of the run's task, one draw
            (`pivots evaluate` is the measurement). Not with parallel fsdp and zero3. Null never.
        score_items: items of each direction for that.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    sources: tuple[SourceSettings, ...] = ()
    arm_weight: float = 1.0
    sequence_length: int = 256
    document_borders: Literal["cross", "masked"] = "cross"
    global_batch_sequences: int = 8
    global_batch_tokens: int | None = None
    micro_batch_sequences: int | None = engine_setting()
    duration: str = "1epoch"
    start_step: int = 0
    schedule_steps: int | None = None
    learning_rate: float = 1e-3
    min_lr_share: float = 0.1
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    decay_share: float = 0.2
    warmup_steps: int | None = None
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    adam_epsilon: float = 1e-8
    grad_clip: float | None = 1.0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = engine_setting(False)
    # Not recorded: without such a step it changes nothing, and with one, only who skips is done.
    on_nonfinite: Literal["stop", "skip"] = engine_setting("stop")
    stuck_after_seconds: int | None = engine_setting(3600)
    parallel: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = engine_setting("ddp")
    deepspeed: str | None = path_setting()
    checkpoint_every: int = engine_setting(500)
    keep_checkpoints: int = engine_setting(2)
    keep_every: int | None = engine_setting()
    snapshots: tuple[int, ...] = ()
    log_every: int = 10
    validate_every: int | None = 250
    validation_tokens: int | None = 16_384
    score_every: int | None = None
    score_items: int = 20

    def micro_batch(self, n_processes: int) -> int:
        """Sequences of one micro-batch; SettingsError where the batch does not divide evenly."""
        share, rest = divmod(self.global_batch_sequences, n_processes)
        micro = self.micro_batch_sequences or share
        if rest or not micro or share % micro:
            raise SettingsError(
                f"global_batch_sequences: found {self.global_batch_sequences}, expected a multiple "
                f"of {n_processes} process(es) times micro_batch_sequences ({micro or 1})"
            )
        return micro

    def __post_init__(self) -> None:
        Duration.parse(self.duration)
        check_setting(self, "sequence_length", self.sequence_length >= 2, "at least 2")
        check_setting(
            self,
            "sequence_length",
            self.model.path is not None or self.sequence_length <= self.model.max_length,
            f"at most model.max_length ({self.model.max_length})",
        )
        if self.global_batch_tokens is not None:
            sequences, rest = divmod(self.global_batch_tokens, self.sequence_length)
            expected = f"a multiple of sequence_length ({self.sequence_length}), or null"
            check_setting(self, "global_batch_tokens", not rest and sequences > 0, expected)
            # So that everything reads the batch in one place.
            object.__setattr__(self, "global_batch_sequences", sequences)
        check_setting(self, "arm_weight", 0 <= self.arm_weight < math.inf, "at least 0")
        check_setting(
            self,
            "arm_weight",
            self.arm_weight > 0 or bool(self.sources),
            "above 0 where there are no sources",
        )
        for key in ("global_batch_sequences", "checkpoint_every", "keep_checkpoints", "log_every"):
            check_setting(self, key, getattr(self, key) >= 1, "at least 1")
        rising = all(low < high for low, high in itertools.pairwise((0, *self.snapshots)))
        check_setting(self, "snapshots", rising, "rising steps from 1")
        check_setting(self, "start_step", self.start_step >= 0, "at least 0")
        check_setting(
            self,
            "schedule_steps",
            self.schedule_steps is None or self.schedule_steps > self.start_step,
            f"above start_step ({self.start_step}), or null",
        )
        check_setting(
            self,
            "score_every",
            self.score_every is None or self.parallel not in ("fsdp", "zero3"),
            f"null where parallel is {self.parallel}, as no process has the whole model; snapshots "
            "can be evaluated",
        )
        for key in (
            "micro_batch_sequences", "validate_every", "validation_tokens", "stuck_after_seconds",
            "score_every", "score_items", "keep_every",
        ):  # fmt: skip
            value = getattr(self, key)
            check_setting(self, key, value is None or value >= 1, "at least 1, or null")
        micro = self.micro_batch_sequences
        check_setting(
            self,
            "micro_batch_sequences",
            micro is None or self.global_batch_sequences % micro == 0,
            f"a divisor of global_batch_sequences ({self.global_batch_sequences}), or null",
        )
        check_setting(
            self,
            "deepspeed",
            self.deepspeed is None or self.parallel.startswith("zero"),
            f"null with parallel {self.parallel}, or parallel zero1, zero2 or zero3",
        )
        check_setting(
            self,
            "keep_every",
            self.keep_every is None or self.keep_every % self.checkpoint_every == 0,
            f"a multiple of checkpoint_every ({self.checkpoint_every}), or null",
        )
        check_setting(self, "learning_rate", 0 < self.learning_rate < 10, "between 0 and 10")
        check_setting(self, "min_lr_share", 0 <= self.min_lr_share <= 1, "between 0 and 1")
        check_setting(self, "decay_share", 0 < self.decay_share <= 1, "above 0, at most 1")
        check_setting(
            self,
            "warmup_steps",
            self.warmup_steps is None or self.warmup_steps >= 0,
            "at least 0, or null",
        )
        check_setting(self, "warmup_share", 0 <= self.warmup_share <= 1, "between 0 and 1")
        check_setting(self, "weight_decay", 0 <= self.weight_decay < 10, "at least 0, below 10")
        check_setting(self, "betas", all(0 <= b < 1 for b in self.betas), "two shares below 1")
        check_setting(self, "adam_epsilon", 0 < self.adam_epsilon < 1, "between 0 and 1")
        check_setting(
            self, "grad_clip", self.grad_clip is None or self.grad_clip > 0, "above 0, or null"
        )
