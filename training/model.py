"""The model: built from settings with seeded weights, or loaded; its optimizer; its export."""

from __future__ import annotations

import inspect
import pickle
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mining.common.errors import (
    InputError,
    MismatchError,
    MissingDependencyError,
    SettingsError,
)
from mining.common.files import read_json, remove_tree
from mining.common.logs import log
from mining.common.manifest import mapping, require_same
from mining.common.seeds import child_seed
from mining.common.tokenizer import Tokenizer, load_tokenizer
from training.settings import ModelSettings, TrainSettings

# What loading a damaged or foreign checkpoint raises: transformers computes with whatever its
# config.json says.
LOAD_ERRORS = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ArithmeticError,
    SafetensorError, StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip
LAYER_OF_WEIGHT = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
SHOWN = 3
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spm.model",
)


def build_model(settings: ModelSettings, tokenizer: Tokenizer, seed: int) -> Any:
    """A transformers causal model in float32 on the CPU, from settings or from a checkpoint.

    Raises MismatchError where a checkpoint's tokenizer is not `tokenizer`, or its embedding has
    fewer rows than `tokenizer` has entries; MissingDependencyError without flash-attn where that is
    asked for.
    """
    if settings.attention == "flash_attention_2" and not find_spec("flash_attn"):
        raise MissingDependencyError(
            "train.model.attention is flash_attention_2, but the package flash-attn is not "
            "installed; install it beside a CUDA build of torch, or set sdpa"
        )
    if settings.path is not None:
        model = _load(settings, tokenizer)
    else:
        model = _fresh(settings, tokenizer, seed)
    log.info("train: %s with %s parameters", model.config.model_type, f"{parameters(model):,}")
    return model


def _fresh(settings: ModelSettings, tokenizer: Tokenizer, seed: int) -> Any:
    config = model_config(settings, tokenizer.vocab_size, tokenizer.eos_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(child_seed(seed, "init"))
        return from_config(config)


def model_config(settings: ModelSettings, vocab_size: int, eos_id: int) -> Any:
    """The transformers config of a fresh model."""
    from transformers import LlamaConfig, Olmo2Config, OlmoConfig

    kinds = {"llama": LlamaConfig, "olmo": OlmoConfig, "olmo2": Olmo2Config}
    return kinds[settings.style](
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_kv_heads or settings.n_heads,
        intermediate_size=settings.mlp_size(),
        max_position_embeddings=settings.max_length,
        rope_theta=settings.rope_theta,
        initializer_range=settings.init_std,
        tie_word_embeddings=settings.tie_embeddings,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=None,
        attn_implementation=settings.attention,
    )


def from_config(config: Any) -> Any:
    """A causal model with random weights in float32, drawn from torch's generator."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _load(settings: ModelSettings, tokenizer: Tokenizer) -> Any:
    path, revision = settings.path, settings.revision
    assert path is not None
    theirs = load_tokenizer(path, revision)
    require_same(
        "tokenizer fingerprint",
        {f"the checkpoint {path}": theirs.fingerprint, "the mix": tokenizer.fingerprint},
    )
    model = load_pretrained(path, revision, torch.float32, settings.attention)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < tokenizer.vocab_size:
        raise MismatchError(
            f"{path}: embeds {rows} tokens, but its tokenizer has {tokenizer.vocab_size}; "
            "use the checkpoint that belongs to this tokenizer"
        )
    return model


def load_pretrained(
    source: Path | str, revision: str | None, dtype: torch.dtype, attention: str | None = None
) -> Any:
    """A transformers causal model from a folder or hub id, on the CPU.

    Raises InputError where it is none, and where its weights are not all that its config asks for:
    transformers would draw the others at random.
    """
    from transformers import AutoModelForCausalLM

    if Path(source).is_dir():
        _check_layers(Path(source))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(source), revision=revision or "main", dtype=dtype, attn_implementation=attention,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except LOAD_ERRORS as error:
        raise InputError(
            f"{source}: not a causal language model that transformers can load ({error})"
        ) from None
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{source}: the weights lack {len(missing)} that config.json asks for "
            f"({', '.join(missing[:SHOWN])}); bring them back, or the config that belongs to them"
        )
    return model


def _check_layers(folder: Path) -> None:
    """InputError where config.json asks for more layers than the weights have.

    Before they are made, as there could be billions.
    """
    config = mapping(read_json(folder / "config.json"))
    asked = config.get("num_hidden_layers", config.get("n_layer"))
    layers: set[int] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as weights:
                layers.update(map(int, LAYER_OF_WEIGHT.findall(" ".join(weights.keys()))))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a file of weights ({error})") from None
    if layers and isinstance(asked, int) and asked > len(layers):
        raise InputError(
            f"{folder / 'config.json'}: asks for {asked} layers, the weights have {len(layers)}; "
            "use the config that belongs to them"
        )


def check_attention(settings: ModelSettings, precision: str, device: torch.device) -> None:
    """SettingsError for flash attention without a GPU and bf16, which it has no kernel for."""
    fits = precision == "bf16" and device.type == "cuda"
    if settings.attention == "flash_attention_2" and not fits:
        raise SettingsError(
            f"model.attention: found 'flash_attention_2', expected 'sdpa' with {precision} on "
            f"{device.type}: it works in bf16 on a GPU"
        )


def check_borders(model: Any) -> None:
    """SettingsError where the model takes no positions, so that documents cannot be kept apart."""
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise SettingsError(
            f"document_borders: found 'masked', expected 'cross' for a {model.config.model_type} "
            "model, which takes no positions"
        )


def check_length(model: Any, sequence_length: int) -> None:
    """SettingsError where the model cannot take sequences of this length."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and sequence_length > longest:
        raise SettingsError(
            f"sequence_length: found {sequence_length}, expected at most {longest}, the longest "
            "that the checkpoint takes"
        )


def parameters(model: Any, embeddings: bool = True) -> int:
    """Number of parameters, tied ones once; without the input embedding on request."""
    total: int = sum(p.numel() for p in model.parameters())
    apart: int = 0 if embeddings else model.get_input_embeddings().weight.numel()
    return total - apart


def weights_in_products(model: Any) -> int:
    """Parameters that every token multiplies with: all but a separate input embedding."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return parameters(model, embeddings=tied)


def compile_blocks(model: Any) -> None:
    """Let torch.compile make a model's blocks faster, one code for all of them.

    Not the whole model: transformers cannot see, while it is compiled, that a causal mask may be
    left out, and with a mask attention has no flash kernel.
    """
    kinds = model._no_split_modules or ()
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    for module in blocks or [model.base_model]:
        module.compile()


def make_optimizer(model: Any, settings: TrainSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, fused where the device has such a kernel."""
    embedding = model.get_input_embeddings().weight
    trained = [p for p in model.parameters() if p.requires_grad]
    decays = [p for p in trained if p.ndim >= 2 and p is not embedding]
    decay_ids = {id(p) for p in decays}
    groups = [
        {"params": decays, "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if id(p) not in decay_ids], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.adam_epsilon,
        fused=device.type in ("cpu", "cuda"),
    )


def export_model(
    model: Any, weights: dict[str, Tensor], tokenizer: Tokenizer, tokenizer_folder: Path, out: Path
) -> None:
    """Write a Hugging Face folder: weights, config, generation config and tokenizer.

    `weights` are those of `model`, which may itself hold but a shard of them, by name, tied ones
    once. The bytes depend on weights, settings and tokenizer only.
    """
    from transformers import GenerationConfig
    from transformers.utils import logging as transformers_logging

    remove_tree(out)
    # The folder that a checkpoint came from is no property of the model.
    model.config._name_or_path = ""
    model.config.use_cache = True
    model.config.eos_token_id = tokenizer.eos_id
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=model.config.pad_token_id,
    )
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(out, state_dict=dict(weights))
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, out / name)
