"""The logit lens: what each layer would answer if it were the last (METHOD section 2).

p_l = softmax(W_U norm(h_l)) for the block outputs h_l, l = 1..L, at one position of each prompt.
Block outputs are taken with hooks, since transformers' last `hidden_states` entry is normed already
and would be normed twice. Only the one position is kept and decoded, layer by layer: memory is
bounded by batch x vocabulary, whatever the number of layers and items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eval.models import LanguageModel, probe_ids, probe_tolerance, unembed
from eval.scoring import backbone_inputs, pad_right
from mining.common.errors import InputError

NORM_PATHS = (
    "norm",
    "final_layer_norm",
    "ln_f",
    "final_layernorm",
    "norm_f",
    "final_norm",
    "decoder.final_layer_norm",
    "language_model.norm",
    "decoder.norm",
)
BLOCK_PATHS = ("layers", "h", "blocks", "decoder.layers", "language_model.layers")


@dataclass(frozen=True)
class LensParts:
    """The modules that the lens needs: the blocks in order, and the final normalisation."""

    blocks: nn.ModuleList
    norm: nn.Module


@dataclass(frozen=True)
class LayerReadings:
    """What the lens shows at one layer for n items.

    `top_ids` int64 [n, k] and `top_probs` float64 [n, k] fall by probability, ties by id; `masses`
    float64 [n, s] are the probabilities of each item's s sets of tokens; `entropy` float64 [n] is
    in nats; `rank` int64 [n] is the 1-based rank of each item's answer token.
    """

    top_ids: npt.NDArray[np.int64]
    top_probs: npt.NDArray[np.float64]
    masses: npt.NDArray[np.float64]
    entropy: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]


def find_parts(model: LanguageModel, norm_path: str | None, blocks_path: str | None) -> LensParts:
    """The model's blocks and final norm, by its structure or by the paths in the settings.

    The parts are checked: the last block's output through norm and unembedding must be the model's
    own logits. Raises InputError, naming the setting that helps, where they are not found or wrong.
    """
    net = model.net
    blocks = _find(model, "blocks", blocks_path, BLOCK_PATHS)
    norm = _find(model, "final_norm", norm_path, NORM_PATHS)
    if not isinstance(blocks, nn.ModuleList):
        raise InputError(
            f"blocks: {blocks_path or 'the module found'} in {model.name} is a "
            f"{type(blocks).__name__}, expected the ModuleList of the model's blocks"
        )
    if net.get_output_embeddings() is None:
        raise InputError(f"{model.name}: has no output embeddings, so there is nothing to decode")
    parts = LensParts(blocks, norm)
    ids = probe_ids(net)
    last = torch.tensor([ids.shape[1] - 1], device=ids.device)
    states = block_states(model, parts, ids, torch.ones_like(ids), last, embeddings=False)
    with torch.inference_mode():
        found = unembed(net, parts.norm(states[-1]))
        expected = net(input_ids=ids, use_cache=False).logits[:, -1].float()
    if expected.isnan().any():
        raise InputError(
            f"{model.name}: its logits are not numbers; the weights hold values that are not "
            "finite, or the dtype is too small for the model: try float32"
        )
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=0, atol=probe_tolerance(net)
    ):
        raise InputError(
            f"{model.name}: the lens at the last layer does not give the model's own logits; name "
            "the right modules in the settings final_norm and blocks"
        )
    return parts


@torch.inference_mode()
def block_states(
    model: LanguageModel,
    parts: LensParts,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    embeddings: bool,
) -> list[Tensor]:
    """Residual streams [n, width] at one position of each row: one tensor per block, in order.

    With `embeddings`, the first block's input comes first. `ids` and `mask` are [n, length],
    `positions` [n]. Hooks are removed whatever happens.
    """
    rows = torch.arange(len(ids), device=ids.device)
    states: list[Tensor] = []

    def keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        states.append(hidden[rows, positions])

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        states.append(hidden[rows, positions])

    hooks = [block.register_forward_hook(keep_output) for block in parts.blocks]
    if embeddings:
        hooks.append(parts.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    try:
        order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        model.net.base_model(**backbone_inputs(model, ids, mask, order), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def read_layers(
    model: LanguageModel,
    parts: LensParts,
    sequences: Sequence[Sequence[int]],
    sets: Sequence[Sequence[frozenset[int]]],
    answers: Sequence[int],
    top_k: int,
    embeddings: bool,
) -> list[LayerReadings]:
    """The lens at the last token of each sequence, for every layer.

    `sets[i]` are item i's sets of token ids, the same number for each item; `answers[i]` is the
    token whose rank is wanted. The first entry is layer 0 where `embeddings` are asked for.
    """
    ids, mask = pad_right(sequences, model.device)
    last = mask.sum(dim=1) - 1
    states = block_states(model, parts, ids, mask, last, embeddings)
    wanted = torch.tensor(answers, device=model.device)
    n_sets = len(sets[0])
    members = [_padded_sets([item[s] for item in sets], model.device) for s in range(n_sets)]
    return [
        _read(model, parts, states[layer], members, wanted, top_k) for layer in range(len(states))
    ]


def batches_by_length(sequences: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of the sequences in batches of at most `batch_tokens` (padding too), by length."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(sequences[index]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _read(
    model: LanguageModel,
    parts: LensParts,
    hidden: Tensor,
    members: Sequence[tuple[Tensor, Tensor]],
    wanted: Tensor,
    top_k: int,
) -> LayerReadings:
    log_probs = torch.log_softmax(unembed(model.net, parts.norm(hidden)), dim=-1)
    probs = log_probs.exp()
    top = probs.topk(min(top_k, probs.shape[1]), dim=1)
    masses = [(probs.gather(1, ids) * present).sum(dim=1) for ids, present in members]
    answer = probs.gather(1, wanted.unsqueeze(1))
    top_ids = top.indices.cpu().numpy().astype(np.int64)
    top_probs = top.values.double().cpu().numpy()
    order = np.lexsort((top_ids, -top_probs), axis=1)
    return LayerReadings(
        top_ids=np.take_along_axis(top_ids, order, axis=1),
        top_probs=np.take_along_axis(top_probs, order, axis=1),
        masses=torch.stack(masses, dim=1).double().cpu().numpy(),
        # A probability that underflows to 0 has a finite logarithm here, so 0 * log 0 is 0.
        entropy=-(probs * log_probs).sum(dim=1).double().cpu().numpy(),
        rank=1 + (probs > answer).sum(dim=1).cpu().numpy().astype(np.int64),
    )


def _padded_sets(sets: Sequence[frozenset[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids int64 and presence float32, both [n, largest set]; absent entries have the id 0."""
    width = max(1, *(len(members) for members in sets))
    ids = np.zeros((len(sets), width), dtype=np.int64)
    present = np.zeros((len(sets), width), dtype=np.float32)
    for i, members in enumerate(sets):
        ids[i, : len(members)] = sorted(members)
        present[i, : len(members)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(present).to(device)


def _find(model: LanguageModel, setting: str, path: str | None, known: Sequence[str]) -> nn.Module:
    if path is not None:
        found = _module(model.net, path)
        if found is None:
            children = ", ".join(name for name, _ in model.net.base_model.named_children())
            raise InputError(
                f"{setting}: {model.name} has no module {path!r} (its backbone holds {children})"
            )
        return found
    for candidate in known:
        if (found := _module(model.net.base_model, candidate)) is not None:
            return found
    children = ", ".join(name for name, _ in model.net.base_model.named_children())
    raise InputError(
        f"{setting}: not found in {model.name} ({type(model.net).__name__}); give its module path, "
        f"such as 'model.norm' (the backbone holds {children})"
    )


def _module(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None
