"""The tuned lens: an affine translator for each layer, trained so that the lens says what the last
layer says (N. Belrose et al., Eliciting Latent Predictions with the Tuned Lens, 2023).

h_l -> h_l + A_l h_l + b_l before the final norm, with A_l and b_l from zero (the logit lens), and
the KL divergence from the model's own output as loss. The last layer needs none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mining.common.errors import InputError, MismatchError
from mining.common.files import write_bytes

FORMAT = "tuned-lens-1"


@dataclass(frozen=True)
class Translators:
    """Weights float32 [L, width, width] and biases [L, width] for the layers 0 to L - 1."""

    weights: Tensor
    biases: Tensor

    def apply(self, layer: int, hidden: Tensor) -> Tensor:
        """States [..., width] of a layer (0: the embeddings), translated; in their own dtype."""
        if layer >= len(self.weights):
            return hidden
        states = hidden.float()
        moved = states + states @ self.weights[layer].T + self.biases[layer]
        return moved.to(hidden.dtype)


def untrained(n_layers: int, width: int, device: torch.device) -> Translators:
    """Translators that change nothing, ready to be trained."""
    weights = torch.zeros(n_layers, width, width, device=device, requires_grad=True)
    biases = torch.zeros(n_layers, width, device=device, requires_grad=True)
    return Translators(weights, biases)


def save_translators(path: Path, found: Translators, model: str, kl: Sequence[float]) -> None:
    """Write them as safetensors, with the model's content hash and the KL of each layer."""
    tensors = {"weights": found.weights.detach().cpu(), "biases": found.biases.detach().cpu()}
    # One entry, as the library writes several in an order that changes from run to run.
    about = {"format": FORMAT, "model": model, "kl": list(kl)}
    write_bytes(path, save(tensors, {"about": json.dumps(about)}))


def read_translators(path: Path, model: str, device: torch.device) -> Translators:
    """Read them; `model` is the content that they must have been trained on.

    Raises InputError where the file is no such file, MismatchError where it is of another model.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; train the lens with trace.tuned_text first")
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("format") != FORMAT:
                raise InputError(f"{path}: format {about.get('format')}, expected {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in ("weights", "biases")}
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    if about["model"] != model:
        raise MismatchError(
            f"{path}: was trained on another model (content {about['model'][:12]}, this one has "
            f"{model[:12]}); train it anew with trace.tuned_text"
        )
    return Translators(tensors["weights"].to(device), tensors["biases"].to(device))
