"""Changes to the residual stream while a model runs: directions removed, states replaced.

A layer is a block's number, from 1; what is changed is the block's output.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eval.lens_parts import LensParts, block_output

# States [n, length, width] to the states that take their place.
Edit = Callable[[Tensor], Tensor]

RELATIVE_RANK = 1e-5


@contextlib.contextmanager
def edited(parts: LensParts, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Within it, the blocks that `edits` names by layer put out what their edit makes of it.

    The hooks are removed whatever happens.
    """

    def hook(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            states = edit(block_output(output))
            if isinstance(output, Tensor):
                return states
            return type(output)([states, *output[1:]])

        return change

    with contextlib.ExitStack() as hooks:
        for layer, edit in edits.items():
            hooks.enter_context(parts.blocks[layer - 1].register_forward_hook(hook(edit)))
        yield


def without_directions(basis: Tensor, only: Tensor | None = None) -> Edit:
    """Remove what lies in each row's subspace; `basis` float32 [n, width, r], orthonormal columns.

    Columns of zeros remove nothing. `only` int64 [n] leaves all but one position of a row alone.
    """

    def edit(states: Tensor) -> Tensor:
        part = states.float()
        inside = torch.matmul(torch.matmul(part, basis), basis.transpose(1, 2))
        if only is not None:
            places = torch.arange(states.shape[1], device=states.device)
            inside = inside * (places == only.unsqueeze(1)).unsqueeze(2)
        left: Tensor = (part - inside).to(states.dtype)
        return left

    return edit


def with_states(replacement: Tensor, positions: Tensor) -> Edit:
    """Put the states [n, width] at one position of each row, int64 [n]."""

    def edit(states: Tensor) -> Tensor:
        changed = states.clone()
        rows = torch.arange(len(states), device=states.device)
        changed[rows, positions] = replacement.to(states.dtype)
        return changed

    return edit


def orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span: float32 [n, r, width] to [n, width, r].

    Rows of zeros, and what depends on other rows, give columns of zeros.
    """
    _, size, right = torch.linalg.svd(directions.float(), full_matrices=False)
    present = size > RELATIVE_RANK * size.amax(dim=1, keepdim=True).clamp_min(1e-30)
    basis: Tensor = (right * present.unsqueeze(2)).transpose(1, 2)
    return basis


def token_directions(parts: LensParts, tokens: Tensor, width: int) -> Tensor:
    """What each token's logit reads from the residual stream: float32 [k, width] for int64 [k].

    A final norm makes logit(h) = u h / s(h) + b, where u is the token's row of the unembedding
    times the norm's gain, centred if the norm centres. Found by the gradient at a vector x, which
    lacks u's part along x because s grows with it; the odd part of the logit gives that.
    """
    weight = parts.head.weight
    assert isinstance(weight, Tensor)
    # In float32: in half precision a direction would be off by what is to be measured.
    norm = copy.deepcopy(parts.norm).float()
    rows = weight.detach()[tokens].float()
    probe = torch.ones(width, device=weight.device)
    probe[1::2] = -1
    with torch.inference_mode(False), torch.enable_grad():
        x = probe.expand(len(tokens), width).clone().requires_grad_()
        (slope,) = torch.autograd.grad((norm(x) * rows).sum(), x)
    with torch.no_grad():
        odd = ((norm(probe) - norm(-probe)) / 2 * rows).sum(dim=1)
        along = (odd - slope @ probe) / (probe @ probe)
        found: Tensor = slope + along.unsqueeze(1) * probe
        return found
