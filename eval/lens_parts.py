"""The modules that the lens needs, found by watching the model work on a small probe.

Names differ between families (`norm`, `ln_f`, `decoder.final_layer_norm`, ...), what happens does
not: a list of blocks hands its output through one or more modules that make the last hidden state,
and a head makes logits of that. Whatever is found must reproduce the model's own logits.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.models import LanguageModel, probe_ids, same_logits, unembed
from mining.common.errors import InputError


@dataclass(frozen=True)
class LensParts:
    """The blocks in order, the final normalisation, and the head that makes logits.

    `norm` is what stands between the last block and the head: also a chain, or nothing at all.
    """

    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module

    def logits(self, net: Any, hidden: Tensor) -> Tensor:
        """Logits float32 [..., vocabulary] of residual streams [..., width]."""
        return unembed(net, self.norm(hidden), self.head)


@dataclass(frozen=True)
class _Call:
    """One module's call in the probe: its first floating-point input and its output."""

    module: nn.Module
    given: Tensor | None
    made: Tensor


def find_parts(
    model: LanguageModel,
    norm_path: str | None,
    blocks_path: str | None,
    head_path: str | None = None,
) -> LensParts:
    """The model's parts, by what they do in a probe or by the paths in the settings.

    Raises InputError, naming the setting that helps, where they are not found, or where the last
    block's output through norm and head is not the model's own logits.
    """
    net = model.net
    head = _named(model, "unembedding", head_path) if head_path else net.get_output_embeddings()
    if head is None:
        raise InputError(
            f"unembedding: not found in {model.name} ({type(net).__name__}); give the path of the "
            "module that makes logits, such as 'lm_head'"
        )
    ids = probe_ids(net)
    with torch.inference_mode():
        calls = _watch(net, ids)
        expected = net(input_ids=ids, use_cache=False).logits[:, -1].float()
    if expected.isnan().any():
        raise InputError(
            f"{model.name}: its logits are not numbers; the weights hold values that are not "
            "finite, or the dtype is too small for the model: try float32"
        )
    blocks = _named(model, "blocks", blocks_path) if blocks_path else _find_blocks(model, calls)
    if not isinstance(blocks, nn.ModuleList):
        raise InputError(
            f"blocks: {blocks_path} in {model.name} is a {type(blocks).__name__}, expected the "
            "ModuleList of the model's blocks"
        )
    last = next((call for call in reversed(calls) if call.module is blocks[-1]), None)
    if last is None:
        raise InputError(f"blocks: {blocks_path} in {model.name} is not used by the model")
    if norm_path:
        norm = _named(model, "final_norm", norm_path)
    else:
        norm = _find_norm(model, calls, blocks, last.made)
    parts = LensParts(blocks, norm, head)
    with torch.inference_mode():
        found = parts.logits(net, last.made[:, -1])
    if not same_logits(net, found, expected):
        raise InputError(
            f"{model.name}: the lens at the last layer does not give the model's own logits; name "
            "the right modules in the settings final_norm, blocks and unembedding"
        )
    return parts


def block_output(output: Any) -> Tensor:
    """The hidden states of what a block returns: a tensor, or a tuple that begins with it."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def _watch(net: Any, ids: Tensor) -> list[_Call]:
    """Every module's call in a forward pass of the backbone, in the order in which they end."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(made, Tensor) and made.is_floating_point():
            calls.append(_Call(module, _first_states((*args, *kwargs.values())), made))

    backbone = net.base_model
    with contextlib.ExitStack() as hooks:
        for module in backbone.modules():
            hooks.enter_context(module.register_forward_hook(note, with_kwargs=True))
        output = backbone(input_ids=ids, use_cache=False)
    # Last, so that whoever looks for the end of the chain finds it.
    calls.append(_Call(backbone, None, output.last_hidden_state))
    return calls


def _first_states(values: tuple[Any, ...]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _find_blocks(model: LanguageModel, calls: list[_Call]) -> nn.Module:
    """The outermost list whose members are all called in order, each with the one before's output.

    Only the order of calls counts in families that change the states between blocks.
    """
    order = {id(call.module): place for place, call in enumerate(calls)}
    found: list[tuple[int, int, nn.Module]] = []
    for path, module in model.net.base_model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        places = [order.get(id(block)) for block in module]
        if None not in places and places == sorted(p for p in places if p is not None):
            # The longest of the outermost lists: some families hold short lists beside the blocks.
            found.append((path.count("."), -len(module), module))
    if not found:
        raise InputError(
            f"blocks: not found in {model.name} ({type(model.net).__name__}); give the path of the "
            f"list of blocks, such as 'model.layers' (the backbone holds {_children(model)})"
        )
    return min(found, key=lambda entry: entry[:2])[2]


def _find_norm(
    model: LanguageModel, calls: list[_Call], blocks: nn.ModuleList, last: Tensor
) -> nn.Module:
    """The modules through which the last block's output becomes the last hidden state."""
    inner = {id(module) for module in blocks.modules()}
    goal = calls[-1].made
    chain: list[nn.Module] = []
    states = last
    while not _same(states, goal):
        step = next(
            (
                call
                for call in calls
                if id(call.module) not in inner
                and call.given is not None
                and _same(call.given, states)
                and not _same(call.made, states)
            ),
            None,
        )
        if step is None or step.module in chain:
            raise InputError(
                f"final_norm: not found in {model.name} ({type(model.net).__name__}); give its "
                f"module path, such as 'model.norm' (the backbone holds {_children(model)})"
            )
        chain.append(step.module)
        states = step.made
    return chain[0] if len(chain) == 1 else nn.Sequential(*chain)


def _same(a: Tensor, b: Tensor) -> bool:
    # Some families flatten and restore positions on the way.
    return a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _named(model: LanguageModel, setting: str, path: str) -> nn.Module:
    try:
        found: nn.Module = model.net.get_submodule(path)
    except AttributeError:
        raise InputError(
            f"{setting}: {model.name} has no module {path!r} (its backbone holds "
            f"{_children(model)})"
        ) from None
    return found


def _children(model: LanguageModel) -> str:
    return ", ".join(name for name, _ in model.net.base_model.named_children())
