"""Small tokenizers, models and tasks, built in code."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from eval.measures import CANDIDATE_SCHEMA, ITEM_SCHEMA
from mining.common.tokenizer import Tokenizer, load_tokenizer

EOS = "</s>"
TEMPLATE = {
    "instruction": "Please translate words from {source_language} to {target_language} .\n\n",
    "example": "{source_language} : {source}\n{target_language} : {target}\n\n",
    "query": "{source_language} : {source}\n{target_language} :",
    "answer": " {target}",
}


def save_tokenizer(engine: Engine, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}), "utf-8")
    return folder


@pytest.fixture
def word_level(tmp_path: Path) -> Callable[..., Tokenizer]:
    """A tokenizer with one id for each word between spaces; `folder` keeps it there."""

    def make(texts: Sequence[str], folder: Path | None = None) -> Tokenizer:
        words = sorted({word for text in texts for word in text.split()})
        vocab = {word: i for i, word in enumerate(["<unk>", EOS, *words])}
        engine = Engine(models.WordLevel(vocab, unk_token="<unk>"))
        engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        engine.add_special_tokens([EOS])
        return load_tokenizer(save_tokenizer(engine, folder or tmp_path / "word-level"))

    return make


@pytest.fixture
def byte_bpe(tmp_path: Path) -> Callable[[Sequence[str], int], Tokenizer]:
    """A byte-level BPE tokenizer (GPT-2's kind) trained on a few texts."""

    def make(texts: Sequence[str], vocab_size: int) -> Tokenizer:
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        engine.train_from_iterator(texts, trainer)
        return load_tokenizer(save_tokenizer(engine, tmp_path / "byte-bpe"))

    return make


@pytest.fixture
def metaspace(tmp_path: Path) -> Callable[[Sequence[str]], Tokenizer]:
    """A unigram tokenizer with a visible space (SentencePiece's kind) of the given pieces."""

    def make(pieces: Sequence[str]) -> Tokenizer:
        scored = [("<unk>", 0.0), (EOS, 0.0), *((piece, -float(len(pieces))) for piece in pieces)]
        engine = Engine(models.Unigram(scored, unk_id=0, byte_fallback=False))
        engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        engine.decoder = decoders.Metaspace(prepend_scheme="first")
        engine.add_special_tokens([EOS])
        return load_tokenizer(save_tokenizer(engine, tmp_path / "metaspace"))

    return make


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """A random transformers model by family; equal arguments give equal weights."""

    def make(family: str, vocab_size: int, seed: int = 0, **more: Any) -> Any:
        import transformers as t

        torch.manual_seed(seed)
        gpt2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
        kinds: dict[str, Callable[[], Any]] = {
            "llama": lambda: t.LlamaConfig(**SIZES, num_key_value_heads=2, **more),
            "neox": lambda: t.GPTNeoXConfig(**SIZES, **more),
            "olmo": lambda: t.OlmoConfig(**SIZES, **more),
            "olmo2": lambda: t.Olmo2Config(**SIZES, **more),
            "qwen2": lambda: t.Qwen2Config(**SIZES, num_key_value_heads=2, **more),
            "gemma": lambda: t.GemmaConfig(
                **SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **more
            ),
            "opt": lambda: t.OPTConfig(
                hidden_size=32,
                ffn_dim=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=256,
                word_embed_proj_dim=16,
                **more,
            ),
            "gemma2": lambda: t.Gemma2Config(
                **SIZES, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, **more
            ),
            "mistral": lambda: t.MistralConfig(**SIZES, num_key_value_heads=2, **more),
            "gpt2": lambda: t.GPT2Config(**gpt2, **more),
            "openai-gpt": lambda: t.OpenAIGPTConfig(**gpt2, **more),
            "bloom": lambda: t.BloomConfig(hidden_size=32, n_layer=3, n_head=4, **more),
        }
        config = kinds[family]()
        config.vocab_size = vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, None)
        net = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            # Larger weights than a training start's, so that predictions are far from uniform.
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)
        return net.eval()

    return make


@pytest.fixture
def word_task() -> Callable[..., Path]:
    """A task file of made-up words: w-en-3 and so on; concept 0 is the same in every language."""

    def make(folder: Path, n: int, langs: Sequence[str] = ("en", "fr"), groups: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        header = ["id", "pos", "class", *langs, "group"]
        lines = ["\t".join(header)]
        for i in range(n):
            words = ["same" if i == 0 else f"w{lang}{i}" for lang in langs]
            group = f"g{i % groups}" if groups else ""
            lines.append("\t".join([f"c{i}", "noun", f"k{i % 2}", *words, group]))
        (folder / "concepts.tsv").write_text("\n".join(lines) + "\n", "utf-8")
        names = {lang: f"Language-{lang}" for lang in langs}
        task = {
            "format": 1,
            "name": "made-up",
            "version": 1,
            "license": "CC0-1.0",
            "languages": names,
            **TEMPLATE,
            "concepts": "concepts.tsv",
        }
        # JSON is YAML.
        (folder / "task.yaml").write_text(json.dumps(task), "utf-8")
        return folder / "task.yaml"

    return make


@pytest.fixture
def evaluation_tables() -> Callable[..., tuple[pa.Table, pa.Table]]:
    """Tables of `evaluate` in its schemas, of random log-probabilities.

    Each item's candidates lie around `-3 * difficulty`; `skill` lifts the right one. Concept 0 is
    identical in the first direction, and concept 1 has but two wrong candidates.
    """

    def make(
        n: int, n_draws: int = 3, skill: float = 0.5, seed: int = 0,
        langs: Sequence[str] = ("en", "fr", "zh"), n_wrong: int = 9, noise: float = 0.4,
        forms: Sequence[str] = ("source", "target"), shift: float = 0.0,
    ) -> tuple[pa.Table, pa.Table]:  # fmt: skip
        rng = np.random.default_rng(seed)
        items, candidates = [], []
        ease = rng.normal(0, 1, n)
        directions = list(itertools.permutations(langs, 2))
        for k, (source, target) in enumerate(directions):
            for i in range(n):
                key = {"concept": f"c{i:05d}", "source_lang": source, "target_lang": target}
                identical = i == 0 and k == 0
                row = {
                    **key, "pos": "noun" if i % 3 else "verb", "class": f"k{i % 4}",
                    "group": f"g{i % 2}", "source": f"{source}{i}",
                    "target": f"{source if identical else target}{i}", "identical": identical,
                    "shared_script": "zh" not in (source, target), "doc_freq": i,
                    "form_difficulty": float(rng.integers(0, 11) / 10), "n_distractors": 0,
                    "n_draws": 0,
                }  # fmt: skip
                size = 3 if i == 1 else n_wrong + 1
                for form in () if identical else forms:
                    n_tokens = rng.integers(1, 4, size) + np.zeros((n_draws, 1), dtype=int)
                    logs = rng.normal(-4 + 0.5 * ease[i], 1, size) + shift
                    logs[0] += skill + 0.5 * ease[i]
                    logs = (logs + rng.normal(0, noise, (n_draws, size))) * n_tokens
                    n_bytes = rng.integers(2, 9, size)
                    row |= _form_columns(form, logs, n_tokens, n_bytes)
                    candidates += [
                        {**key, "form": form, "position": c, "word": f"w{c}",
                         "n_tokens": n_tokens[:, c].tolist(), "n_bytes": int(n_bytes[c]),
                         "log_probs": logs[:, c].tolist()}
                        for c in range(size)
                    ]  # fmt: skip
                items.append(row)
        return (
            pa.Table.from_pylist(items, schema=ITEM_SCHEMA),
            pa.Table.from_pylist(candidates, schema=CANDIDATE_SCHEMA),
        )

    return make


def _form_columns(form: str, logs: Any, n_tokens: Any, n_bytes: Any) -> dict[str, Any]:
    """An item's columns from its log p [n_draws, n_candidates], written down anew."""
    prefix = "" if form == "source" else "target_"
    row: dict[str, Any] = {}
    for suffix, units in (("", n_tokens), ("_bytes", n_bytes), ("_sum", 1)):
        mean = (logs / units).mean(axis=0)
        p = np.exp(mean)
        row[f"{prefix}score{suffix}"] = float(p[0] - p[1:].mean())
        row[f"{prefix}rank{suffix}"] = 1 + int((mean[1:] >= mean[0]).sum())
    row[f"{prefix}correct"] = row[f"{prefix}rank"] == 1
    if form == "target":
        return row | {"n_target_distractors": len(n_bytes) - 1}
    mean = (logs / n_tokens).mean(axis=0)
    return row | {
        "n_distractors": len(n_bytes) - 1,
        "n_draws": len(logs),
        "p_gold": float(np.exp(mean[0])),
        "loss": -float(mean[0]),
    }
