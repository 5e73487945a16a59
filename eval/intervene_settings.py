"""Settings of the intervene stage; imports nothing heavy, so that `--help` stays quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eval.settings import Dtype
from mining.common.errors import check_setting


@dataclass(frozen=True)
class InterveneSettings:
    """Changes what is inside the model and watches the answer: cause, where the trace only looks.

    The prompts, items and classes are those of the trace.

    Attributes:
        max_items: items of each direction and class, at most, chosen by a hash; null takes all.
        pivots: pivots of a pair whose directions are removed, the strongest; as many are removed
            as controls.
        layers: first and last layer after which they are removed; null takes the middle half.
        positions: where they are removed: all positions of the prompt, or the one that answers.
        patch_layers: layers whose state at the answering position is replaced, one at a time, by
            that of a prompt for another concept; null takes up to eight, evenly spaced.
        revision: revision of a hub model; null takes its default.
        batch_tokens: tokens, padding included, in a batch.
        device: auto, cpu, mps, cuda or cuda:N.
        dtype: of the weights; auto is float32 on a CPU, else bfloat16 where the device has it.
        bootstrap_samples: samples of concepts that the intervals come from.
        confidence: level of the intervals.
    """

    max_items: int | None = 100
    pivots: int = 10
    layers: tuple[int, int] | None = None
    positions: Literal["all", "answer"] = "all"
    patch_layers: tuple[int, ...] | None = None
    revision: str | None = None
    batch_tokens: int = 16384
    device: str = "auto"
    dtype: Dtype = "auto"
    bootstrap_samples: int = 1000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_setting(self, "max_items", self.max_items is None or self.max_items >= 1, "1 or more")
        check_setting(self, "pivots", self.pivots >= 1, "at least 1")
        ordered = self.layers is None or 1 <= self.layers[0] <= self.layers[1]
        check_setting(self, "layers", ordered, "first and last, from 1, in order")
        found = self.patch_layers
        rising = found is None or (len(found) > 0 and list(found) == sorted(set(found)))
        positive = not found or found[0] >= 1
        check_setting(self, "patch_layers", rising and positive, "rising numbers from 1")
        check_setting(self, "batch_tokens", self.batch_tokens >= 1, "at least 1")
        check_setting(self, "bootstrap_samples", self.bootstrap_samples >= 1, "at least 1")
        check_setting(self, "confidence", 0 < self.confidence < 1, "between 0 and 1")

    def ablated_layers(self, n_layers: int) -> list[int]:
        """The layers after which directions are removed."""
        first, last = self.layers or (1 + n_layers // 4, max(1, n_layers - (n_layers + 3) // 4))
        return list(range(first, max(first, last) + 1))

    def patched_layers(self, n_layers: int) -> list[int]:
        """The layers whose state is replaced."""
        if self.patch_layers is not None:
            return list(self.patch_layers)
        n = min(MAX_PATCHED, n_layers)
        return sorted({round(k * n_layers / n) for k in range(1, n + 1)})


MAX_PATCHED = 8
