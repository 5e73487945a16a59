"""configs/full/olmo1b-dolma.yaml on a stand-in of the same layout: a tiny OLMo with its tokenizer,

and documents as Dolma stores them (JSON lines, .json.gz, no language field).
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, OlmoConfig, PreTrainedTokenizerFast

from launch.config import parse_config
from mining.common.stage import read_manifest
from tests.conftest import REPOSITORY, SHARED

CONFIG = REPOSITORY / "configs" / "full" / "olmo1b-dolma.yaml"
PER_FILE = 80


def test_it_is_the_papers_setting() -> None:
    config = parse_config(["--config", str(CONFIG)], "run")
    assert config.train.model.path == config.tokenizer.path == "allenai/OLMo-1B-hf"
    assert config.train.model.revision == "step605000-tokens2536B"
    assert config.mix.budget_tokens == 1000 * 2048 * 2048
    assert config.train.sequence_length == config.train.global_batch_sequences == 2048
    assert set(config.mix.arms) == {"original", "random", "pivot"}
    assert config.corpus.languages == ("en", "fr", "zh", "ja")
    assert config.corpus.lang_field is None


def standin_model(folder: Path, texts: list[str]) -> None:
    """A random OLMo of 0.1 M parameters with a byte-level BPE, saved as the hub stores it."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=engine, eos_token="<|endoftext|>").save_pretrained(
        folder
    )
    # As in OLMo-1B, the embedding has some rows more than the tokenizer has entries.
    config = OlmoConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.shared_data
def test_it_runs_on_a_stand_in(tmp_path: Path) -> None:
    texts = []
    for path in sorted((SHARED / "corpus").glob("*/*.jsonl.gz")):
        records = []
        for line in gzip.decompress(path.read_bytes()).splitlines()[:PER_FILE]:
            record = json.loads(line)
            texts.append(record["text"])
            dolma = {key: record[key] for key in ("id", "text", "source", "added")}
            records.append(dolma | {"created": record["added"], "metadata": {}})
        target = tmp_path / "dolma" / f"{path.parent.name}-{path.name.split('.')[0]}.json.gz"
        target.parent.mkdir(exist_ok=True)
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        target.write_bytes(gzip.compress(data, mtime=0))
    model = tmp_path / "olmo"
    standin_model(model, texts[::10])
    settings = {
        "out": tmp_path / "run",
        "seeds": "[0]",
        "corpus.path": tmp_path / "dolma",
        "tokenizer.path": model,
        "train.model.path": model,
        "count.top_items": 800,
        "mix.budget_tokens": 30000,
        "mix.max_document_tokens": 1024,
        "mix.validation_share": 0.05,
        "mix.max_validation_tokens": 2000,
        "train.sequence_length": 64,
        "train.global_batch_sequences": 8,
        "train.duration": "20steps",
        "evaluate.max_items": 3,
        "evaluate.draws": 1,
        "evaluate.examples": 0,
        "trace.examples": 0,
        "trace.max_items": 3,
        "evaluate.bootstrap_samples": 100,
        "trace.bootstrap_samples": 100,
        "report.bootstrap_samples": 100,
    }
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "launch.cli", "run", str(CONFIG), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = read_manifest(tmp_path / "run" / "tokenize").counts
    # Identified for every document, but those without text to speak of.
    assert counts["languages_identified"] == counts["records"]
    assert {"en", "fr", "zh", "ja"} == set(counts["by_lang"])
    for arm in ("original", "random", "pivot"):
        folder = tmp_path / "run" / "train" / arm / "0" / "model"
        assert json.loads((folder / "config.json").read_text())["model_type"] == "olmo"
        assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 1024
    assert (tmp_path / "run" / "report" / "report.html").is_file()
