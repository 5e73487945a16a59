"""Loads any Hugging Face causal language model and decodes chosen positions of it.

Only transformers' own code runs (`trust_remote_code` is off). The tokenizer is the model's
`tokenizer.json`, read as everywhere in the project; no special tokens are added, as in the paper's
reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mining.common.errors import InputError
from mining.common.logs import log
from mining.common.manifest import MANIFEST, read_manifest
from mining.common.stage import LOCK, WORK, FilesInput, Input, NamedInput, StageInput
from mining.common.tokenizer import Tokenizer, hub_file, load_tokenizer
from training.model import load_pretrained

# What a probe of an unknown architecture may raise when it cannot do what it is asked to.
PROBE_ERRORS = (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError)
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
# The spacing of bfloat16 from 32 on, as large as the tolerances are meant for.
PROBE_TOLERANCE_HALF = 0.25
PROBE_SIZE = 32
PROBE_LENGTH = 7


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model.

    `decodes_rows`: the unembedding of the backbone's last hidden states gives the model's own
    logits, so that only the positions asked for need decoding. `takes_positions`: the backbone has
    an argument `position_ids`. `max_positions`: longest input, None where the model sets no limit.
    """

    name: str
    net: Any
    tokenizer: Tokenizer
    device: torch.device
    takes_positions: bool
    decodes_rows: bool
    max_positions: int | None

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding table; ids must be below it."""
        return int(self.net.get_input_embeddings().weight.shape[0])


def model_input(source: str, revision: str | None) -> Input:
    """The model as a stage's input: a train stage, any folder (by content), or a hub id."""
    path = Path(source)
    if not path.is_dir():
        if path.is_absolute() or len(path.parts) > 2:  # a hub id is NAME or OWNER/NAME
            raise InputError(
                f"{source}: no such folder; train the model first (`pivots train`), or name those "
                "that are there (`only`)"
            )
        commit = resolve_revision(source, revision)
        return NamedInput(f"{source}@{revision or 'main'} (commit {commit})")
    if _is_train_stage(path):
        return StageInput(path, "train")
    if path.name == "model" and any((path.parent / n).exists() for n in (MANIFEST, WORK, LOCK)):
        return StageInput(path.parent, "train")
    return FilesInput.folder(path)


def resolve_revision(source: str, revision: str | None) -> str | None:
    """The commit that a hub id's revision (a branch or tag may move) means now; None for folders.

    Raises InputError where the id is neither in the local cache nor on a hub that can be reached.
    """
    if Path(source).is_dir():
        return None
    # In the hub's cache a file lies in snapshots/<commit>/.
    return hub_file(source, "config.json", revision).parent.name


def model_name(source: str, revision: str | None, label: Mapping[str, Any]) -> str:
    """What people call the model; free of this machine's paths, so that outputs do not hold any."""
    if label.get("arm") is not None:
        return f"{label['arm']}/{label.get('seed', 0)}"
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return f"{source}@{revision}" if revision else source


def resolve_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The torch device and dtype that the settings mean on this machine."""
    name = device
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device: found {device!r}, but this machine has no CUDA device; use auto")
    if dtype == "auto":
        half = name.startswith("cuda") and torch.cuda.is_bf16_supported()
        return torch.device(name), torch.bfloat16 if half else torch.float32
    kind: torch.dtype = getattr(torch, dtype)
    return torch.device(name), kind


def load_model(
    source: str, revision: str | None, device: str, dtype: str, name: str | None = None
) -> LanguageModel:
    """Load a model and its tokenizer from a folder (also a train stage's) or a hub id.

    Raises InputError where it cannot be found or read, or is no causal language model.
    """
    place, kind = resolve_device(device, dtype)
    folder = _folder(source)
    # One commit for both, whatever happens to a branch in between.
    commit = resolve_revision(source, revision)
    tokenizer = load_tokenizer(folder, commit, needs_eos=False)
    net = load_pretrained(folder, commit, kind)
    return wrap_model(net.to(place), tokenizer, name or str(source))


def model_tokenizer(source: str, revision: str | None) -> Tokenizer:
    """The tokenizer of a model, which is not loaded itself."""
    commit = resolve_revision(source, revision)
    return load_tokenizer(_folder(source), commit, needs_eos=False)


def _folder(source: str) -> Path | str:
    """The folder that holds the model, or the hub id."""
    path = Path(source)
    if not path.is_dir():
        return source
    folder = path / "model" if _is_train_stage(path) else path
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no config.json, so it is no Hugging Face model")
    return folder


def wrap_model(net: Any, tokenizer: Tokenizer, name: str) -> LanguageModel:
    """A transformers model in memory as a LanguageModel, in evaluation mode."""
    net.eval()
    config = net.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    parameters = inspect.signature(net.base_model.forward).parameters
    decodes = _decodes_rows(net)
    if not decodes:
        log.warning("%s: unknown output head, all positions are decoded (slower)", name)
    return LanguageModel(
        name=name,
        net=net,
        tokenizer=tokenizer,
        device=next(net.parameters()).device,
        takes_positions="position_ids" in parameters,
        decodes_rows=decodes,
        max_positions=limit if isinstance(limit, int) and limit > 0 else None,
    )


def unembed(net: Any, hidden: Tensor, head: Any = None) -> Tensor:
    """Logits float32 [..., vocabulary] of normed hidden states [..., width].

    Follows the families that scale or cap their logits (Cohere, Granite, Gemma). `head` is the
    module that makes them where it is not the model's output embeddings.
    """
    config = net.config.get_text_config()
    logits: Tensor = (head or net.get_output_embeddings())(hidden)
    scale = getattr(net, "logit_scale", None)
    if isinstance(scale, int | float):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits.float()


def probe_ids(net: Any) -> Tensor:
    """A short input [1, PROBE_LENGTH] of varied ids for probing what a model can do."""
    rows = int(net.get_input_embeddings().weight.shape[0])
    ids = torch.arange(1, PROBE_LENGTH + 1) * 7919 % rows
    return ids.unsqueeze(0).to(next(net.parameters()).device)


def probe_tolerance(net: Any) -> float:
    """The difference in logits that rounding explains, for the dtype of the weights.

    In logits up to PROBE_SIZE.
    """
    return PROBE_TOLERANCE.get(next(net.parameters()).dtype, PROBE_TOLERANCE_HALF)


def same_logits(net: Any, found: Tensor, expected: Tensor) -> bool:
    """Whether two arrays of logits differ by no more than rounding, which grows with their size."""
    if found.shape != expected.shape:
        return False
    size = max(1.0, float(expected.abs().max()) / PROBE_SIZE)
    return float((found - expected).abs().max()) <= size * probe_tolerance(net)


@torch.inference_mode()
def _decodes_rows(net: Any) -> bool:
    if net.get_output_embeddings() is None or net.base_model is net:
        return False
    ids = probe_ids(net)
    expected = net(input_ids=ids, use_cache=False).logits.float()
    try:
        hidden = net.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found = unembed(net, hidden)
    except PROBE_ERRORS:
        return False
    return same_logits(net, found, expected)


def _is_train_stage(path: Path) -> bool:
    return (path / MANIFEST).is_file() and read_manifest(path).stage == "train"
