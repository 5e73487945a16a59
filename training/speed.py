"""Speed of a training: tokens a second, and the share of a GPU's peak that they make."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from training.model import weights_in_products

# Dense bf16 peaks in FLOP/s from the makers' data sheets (no sparsity). The first entry whose words
# all stand in the device's name counts. An unknown GPU gets no figure, nor does another variant of
# a known one, or a slice of it (MIG).
BF16_PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A40", 150e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
OTHER_PEAKS = frozenset({"MIG", "Laptop", "Ti", "D", "SUPER"})


def flops_per_token(weights: int, n_layers: int, hidden_size: int, sequence_length: int) -> float:
    """Floating-point operations of forward and backward pass per token.

    6 per weight that multiplies (`weights`: all but a separate input embedding), and 12 * layers *
    width * length for attention, whose masked half counts too: PaLM (arXiv 2204.02311), appendix B.
    """
    return 6.0 * weights + 12.0 * n_layers * hidden_size * sequence_length


def peak_flops(device_name: str) -> float | None:
    """bf16 peak of a GPU by its name, or None where it is not in the table."""
    words = device_name.replace("-", " ").split()
    if OTHER_PEAKS.intersection(words):
        return None
    for name, peak in BF16_PEAKS:
        if all(word in words for word in name.split()):
            return peak
    return None


class Clock:
    """Measures the time of steps; validation and checkpoints are left out by `start` after them."""

    def __init__(
        self,
        model: Any,
        sequence_length: int,
        tokens_per_step: int,
        precision: str,
        device: torch.device,
        n_devices: int,
    ) -> None:
        self._tokens_per_step, self._device = tokens_per_step, device
        config = model.config
        self._flops = flops_per_token(
            weights_in_products(model),
            config.num_hidden_layers,
            config.hidden_size,
            sequence_length,
        )
        known = None
        if device.type == "cuda" and precision == "bf16":
            known = peak_flops(torch.cuda.get_device_name(device))
        self._peak = known * n_devices if known else None
        self.start(0)

    def start(self, step: int) -> None:
        """Time runs from now, `step` steps being done."""
        self._since, self._step = time.perf_counter(), step

    def lap(self, step: int, n_steps: int) -> dict[str, float]:
        """Figures of the steps since the last lap or start, `step` of `n_steps` being done.

        seconds (of one step), tokens_per_second (all processes), mfu (share of the peak; known GPUs
        in bf16 only), eta_seconds (what the rest takes at this speed, without validation and
        checkpoints), memory_gib and gpu_memory_gib (largest so far, this process).
        """
        seconds = (time.perf_counter() - self._since) / max(1, step - self._step)
        rate = self._tokens_per_step / seconds
        figures = {"seconds": round(seconds, 6), "tokens_per_second": round(rate, 1)}
        if self._peak:
            figures["mfu"] = round(rate * self._flops / self._peak, 4)
        if self._device.type == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated(self._device)
            figures["gpu_memory_gib"] = round(peak_bytes / (1 << 30), 3)
        figures["eta_seconds"] = round(seconds * (n_steps - step), 1)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures["memory_gib"] = round(peak_kib / (1 << 20), 3)
        self.start(step)
        return figures
