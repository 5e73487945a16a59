"""accelerate's view of the processes, for every way of sharing the work among them.

`train.parallel` decides what is shared, the launcher only starts the processes: the same command
works under `torchrun` and `accelerate launch`.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from mining.common.errors import MissingDependencyError, SettingsError
from mining.common.files import read_json
from mining.common.logs import log
from training.settings import TrainSettings

# The first process hashes, scores and exports while the others wait: longer than the ten minutes
# after which NCCL takes a process for lost. train.stuck_after_seconds watches instead. DeepSpeed
# works in a group of its own that does not know of it, so that others wait at a barrier of torch's.
TIMEOUT = timedelta(days=7)

# What accelerate's own configuration would set, and what a DeepSpeed file may not say.
LAUNCHER_FLAGS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
# What a launcher would tell a process, and DeepSpeed wants to know of one that has no launcher.
ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SET_ELSEWHERE = {
    "train_batch_size": "global_batch_sequences",
    "train_micro_batch_size_per_gpu": "micro_batch_sequences",
    "gradient_accumulation_steps": "micro_batch_sequences",
    "gradient_clipping": "grad_clip",
    "optimizer": "learning_rate, betas and weight_decay",
    "scheduler": "schedule",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
}


def resolve_precision(settings: TrainSettings, device: Any) -> str:
    """ "float32" or "bf16": what `precision` means on this device."""
    import torch

    if settings.precision != "auto":
        return settings.precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "float32"


def sharing(settings: TrainSettings, world_size: int) -> str:
    """`parallel` as it is for so many processes: one has nothing to share, but may offload."""
    if world_size > 1 or settings.parallel == "ddp":
        return settings.parallel
    if settings.deepspeed is not None and offloads(read_deepspeed(settings)):
        return settings.parallel
    log.info("train: one process has nothing to share, trains plainly (not %s)", settings.parallel)
    return "ddp"


@contextmanager
def open_accelerator(settings: TrainSettings) -> Iterator[Any]:
    """accelerate's view of the processes and the device, as long as the block runs.

    Behind it the process is as before, so that its next training may share the work in another way.
    Mixed precision is left to the loss (training.loss) and FSDP's shards, so that it is the same
    from any launcher.
    SettingsError where accelerate's own configuration wants to share the work in its way.
    """
    before = {name: os.environ.get(name) for name in (*LAUNCHER_FLAGS, *ALONE)}
    try:
        accelerator = _start(settings)
        try:
            yield accelerator
        finally:
            _stop(accelerator)
    finally:
        for name, value in before.items():
            # accelerate sets the flags for itself; the next start would take them for the user's.
            if value is None:
                os.environ.pop(name, None)


def _start(settings: TrainSettings) -> Any:
    for flag, engine in LAUNCHER_FLAGS.items():
        if os.environ.get(flag, "false").lower() == "true":
            raise SettingsError(
                f"accelerate is configured for {engine}, expected plain processes: set "
                "train.parallel (ddp, fsdp, zero1, zero2, zero3) and take an accelerate config "
                "without it, such as configs/accelerate/one-node.yaml"
            )
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    # accelerate and DeepSpeed call torch by names that it is about to change.
    for module in ("accelerate", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    kind = sharing(settings, world)
    patient = InitProcessGroupKwargs(timeout=TIMEOUT)
    if kind == "fsdp":
        precision = resolve_precision(settings, torch.device("cpu" if cpu else "cuda"))
        return _start_fsdp(cpu, precision, patient)
    if kind.startswith("zero"):
        return _start_deepspeed(settings, cpu, world, patient)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp, patient])


def _stop(accelerator: Any) -> None:
    from accelerate.state import AcceleratorState

    accelerator.free_memory()
    # It would keep the way of sharing, and a next training may have another one.
    AcceleratorState._reset_state(reset_partial_state=True)


def fsdp_plugin(precision: str) -> Any:
    """accelerate's plugin for FSDP2, a unit per block.

    With bf16, weights are cast while they are in shards: half is sent, and what a block gathers is
    all there is of it. Autocast alone would leave a whole copy in bf16 of every weight behind for
    the backward pass. Gradients are summed in float32.
    """
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = None
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        mixed_precision_policy=policy,
    )  # fmt: skip


def _start_fsdp(cpu: bool, precision: str, patient: Any) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    plugin = fsdp_plugin(precision)
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="no", fsdp_plugin=plugin, kwargs_handlers=[patient]
    )
    if cpu:
        # accelerate takes FSDP for GPUs only, but what it then does works on a CPU as well.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _start_deepspeed(settings: TrainSettings, cpu: bool, world: int, patient: Any) -> Any:
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError(
            f"train.parallel {settings.parallel} needs DeepSpeed: pip install "
            "'semantic-pivots[deepspeed]'"
        )
    config = read_deepspeed(settings)
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = ("0", "0", "1", "127.0.0.1", str(port))
        os.environ.update(zip(ALONE, places, strict=True))
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    from accelerate import Accelerator, DeepSpeedPlugin, PartialState

    if cpu:
        import deepspeed

        # It would be compiled for a minute, and makes only reductions inside one machine faster.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # Before the Accelerator, which would look for GPUs: that one takes what it finds.
        PartialState(cpu=True, timeout=TIMEOUT)
    micro = settings.micro_batch(world)
    pieces = settings.global_batch_sequences // (world * micro)
    config |= {
        "train_batch_size": settings.global_batch_sequences,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": pieces,
        "gradient_clipping": settings.grad_clip or 0.0,
        # torch's own AdamW, also for offloaded state: the same updates in every kind, and nothing
        # to compile.
        "zero_force_ds_cpu_optimizer": False,
    }
    plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
    accelerator = Accelerator(
        mixed_precision="no", deepspeed_plugin=plugin, gradient_accumulation_steps=pieces,
        kwargs_handlers=[patient],
    )  # fmt: skip
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Else transformers builds and loads models in shards by itself, before DeepSpeed knows the
    # processes.
    unset_hf_deepspeed_config()
    return accelerator


def read_deepspeed(settings: TrainSettings) -> dict[str, Any]:
    """The DeepSpeed configuration of these settings, without batch and clipping.

    SettingsError for a file that says what other settings say, for another stage, and for state
    that would lie in files, which checkpoints do not see.
    """
    stage = int(settings.parallel.removeprefix("zero"))
    config: dict[str, Any] = {}
    if settings.deepspeed is not None:
        path = Path(settings.deepspeed)
        if not path.is_file():
            raise SettingsError(f"deepspeed: found {str(path)!r}, expected an existing JSON file")
        config = read_json(path)
        for key, ours in SET_ELSEWHERE.items():
            if key in config:
                raise SettingsError(f"deepspeed: {path} sets '{key}'; remove it, train.{ours} does")
    zero = config.setdefault("zero_optimization", {})
    if zero.setdefault("stage", stage) != stage:
        raise SettingsError(
            f"deepspeed: {settings.deepspeed} is of stage {zero['stage']}, expected {stage} "
            f"(train.parallel {settings.parallel})"
        )
    if zero.get("compute_grad_norm") is False:
        raise SettingsError(
            f"deepspeed: {settings.deepspeed} sets 'compute_grad_norm' to false; remove it, as a "
            "gradient that is not finite is known by its norm (train.on_nonfinite)"
        )
    if "nvme" in offloads(config):
        raise SettingsError(
            f"deepspeed: {settings.deepspeed} offloads to nvme, expected cpu or none: a checkpoint "
            "cannot read what lies there"
        )
    return config


def offloads(config: dict[str, Any]) -> set[str]:
    """Devices that a DeepSpeed configuration moves state to."""
    zero = config.get("zero_optimization", {})
    parts = (zero.get(key) or {} for key in ("offload_optimizer", "offload_param"))
    return {part.get("device", "none") for part in parts} - {"none"}
