"""What makes a transformer read a row as a tree: the mask, a start that all rows share, ALiBi."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def tree_mask(ends: Tensor, n_start: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [n, 1, width, n_start + width]: 0 where a node sees, else the lowest number.

    Node j's descendants are j..ends[j] - 1; a node sees the start, its ancestors and itself.
    """
    order = torch.arange(ends.shape[1], device=ends.device)
    seen = (order.unsqueeze(1) >= order) & (order.unsqueeze(1) < ends.unsqueeze(1))
    seen = torch.nn.functional.pad(seen, (n_start, 0), value=True)
    mask = torch.zeros(seen.shape, dtype=dtype, device=ends.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


class SharedStart(DynamicCache):  # type: ignore[misc]  # the library brings no types
    """Keys and values of a start that all rows continue: computed once, handed to any batch.

    Other than a cache, once `closed` it keeps nothing of the batches that it is handed to.
    """

    closed = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The start's keys and values before the given ones, for each row."""
        if not self.closed:
            kept: tuple[Tensor, Tensor] = super().update(
                key_states, value_states, layer_idx, *args, **kwargs
            )
            return kept
        layer, n_rows = self.layers[layer_idx], len(key_states)
        keys = layer.keys.expand(n_rows, -1, -1, -1)
        values = layer.values.expand(n_rows, -1, -1, -1)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def takes_alibi(backbone: Any) -> bool:
    """Whether a backbone is of BLOOM's kind: distances, not positions, made from the mask."""
    return hasattr(backbone, "build_alibi_tensor")


@contextlib.contextmanager
def alibi_by_depth(backbone: Any, n_start: int, depths: Tensor) -> Iterator[None]:
    """Let a BLOOM backbone bias attention by the keys' depth in the tree.

    It takes a key's place from the sum of a two-dimensional mask, which a tree does not have.
    """
    original = backbone.build_alibi_tensor
    start = torch.arange(n_start, device=depths.device).expand(len(depths), -1)
    keys = torch.cat([start, depths], dim=1)

    def build(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        line = torch.ones(1, int(keys.max()) + 1, device=keys.device)
        biases: Tensor = original(line, num_heads, dtype)[:, 0, :]  # [heads, depth]
        return biases[:, keys].transpose(0, 1).flatten(0, 1).unsqueeze(1)

    backbone.build_alibi_tensor = build
    try:
        yield
    finally:
        del backbone.build_alibi_tensor
