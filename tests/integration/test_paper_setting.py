"""configs/full/olmo1b-*.yaml on stand-ins of the same layout: a tiny OLMo with its tokenizer,

documents as Dolma stores them (JSON lines, .json.gz, no language field), and token files in an
order of training.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, OlmoConfig, PreTrainedTokenizerFast

from launch.cli import main
from launch.config import parse_config
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, read_shard
from mining.common.tokenizer import load_tokenizer
from tests.conftest import REPOSITORY, SHARED
from training.schedule import learning_rate

CONFIG = REPOSITORY / "configs" / "full" / "olmo1b-dolma.yaml"
SEQUENCES = REPOSITORY / "configs" / "full" / "olmo1b-sequences.yaml"
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


def test_the_schedule_goes_on_where_the_checkpoint_stands() -> None:
    train = parse_config(["--config", str(CONFIG)], "run").train
    # OLMo-1B: 2,000 steps of warm-up to 4e-4, then a cosine to a tenth of it at step 739,328.
    for step in (0, 999):
        done = (605_000 + step - 2_000) / (739_328 - 2_000)
        expected = 4e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        assert learning_rate(train, step, 1000) == pytest.approx(expected)
    assert learning_rate(train, 0, 1000) == pytest.approx(6.8686e-5, rel=1e-4)
    assert train.document_borders == "cross"  # as OLMo was trained


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
    # Identified for every document that is long enough to be kept.
    assert counts["languages_identified"] == counts["records"] - counts["dropped"]["too short"]
    assert {"en", "fr", "zh", "ja"} == set(counts["by_lang"])
    for arm in ("original", "random", "pivot"):
        folder = tmp_path / "run" / "train" / arm / "0" / "model"
        assert json.loads((folder / "config.json").read_text())["model_type"] == "olmo"
        assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 1024
        lines = map(json.loads, (folder.parent / "metrics.jsonl").read_text().splitlines())
        rates = [line["lr"] for line in lines if line["kind"] == "train"]
        train = parse_config(["--config", str(CONFIG)], "run").train
        assert rates == pytest.approx([learning_rate(train, step, 20) for step in range(20)])
    assert (tmp_path / "run" / "report" / "report.html").is_file()


def test_the_sequences_are_those_after_the_papers_step() -> None:
    config, dolma = (parse_config(["--config", str(p)], "run") for p in (SEQUENCES, CONFIG))
    files = config.corpus.token_files
    assert (files.layout, files.first_step, files.step_sequences) == ("sequences", 605_000, 2048)
    assert files.sequence_length == config.train.sequence_length == 2048
    for section in ("tokenizer", "count", "pivots", "train", "evaluate", "trace"):
        assert getattr(config, section) == getattr(dolma, section), section
    assert config.mix.budget_tokens == dolma.mix.budget_tokens


@pytest.mark.slow
@pytest.mark.shared_data
def test_sequences_of_a_stand_in_are_mined(tmp_path: Path) -> None:
    """From token files and order to the mix, by the commands."""
    length, batch, steps = 64, 16, 60
    texts: dict[str, list[str]] = {}
    for path in sorted((SHARED / "corpus").glob("*/*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            some = [json.loads(line)["text"][:2000] for line in itertools.islice(lines, 20)]
        texts.setdefault(path.parent.name, []).extend(some)
    standin_model(tmp_path / "olmo", [text for some in texts.values() for text in some[::4]])
    tokenizer = load_tokenizer(tmp_path / "olmo")
    arrays = []
    for name, some in texts.items():
        ids = [np.append(t, tokenizer.eos_id) for t in tokenizer.encode_batch(some)]
        arrays.append(np.concatenate(ids).astype("<u2")[: 40_000 + len(name)])
        (tmp_path / "tokens").mkdir(exist_ok=True)
        arrays[-1].tofile(tmp_path / "tokens" / f"{name}.npy")
    paths = "".join(f"    - {name}.npy\n" for name in texts)
    (tmp_path / "train.yaml").write_text(f"data:\n  paths:\n{paths}")
    sequences = np.concatenate([a[: len(a) // length * length] for a in arrays])
    sequences = sequences.reshape(-1, length)
    order = np.random.default_rng(0).permutation(len(sequences)).astype("<u4")
    order.tofile(tmp_path / "order.npy")
    settings = {
        "out": tmp_path / "run",
        "corpus.path": tmp_path / "tokens",
        "corpus.token_files.files": tmp_path / "train.yaml",
        "corpus.token_files.order": tmp_path / "order.npy",
        "corpus.token_files.sequence_length": length,
        "corpus.token_files.step_sequences": batch,
        "corpus.token_files.first_step": 20,
        "corpus.token_files.steps": steps,
        "tokenizer.path": tmp_path / "olmo",
        "count.top_items": 800,
        "mix.budget_tokens": 3000,
        "mix.validation_share": 0.05,
        "engine.workers": 1,
    }
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    for stage in ("tokenizer", "tokenize", "count", "pivots", "score", "mix"):
        assert main([stage, "--config", str(SEQUENCES), *arguments]) == 0, stage
    seen = order[20 * batch : (20 + steps) * batch]
    counts = read_manifest(tmp_path / "run" / "tokenize").counts
    assert counts["records"] == steps * batch
    found = [
        (int(batch.id[d]), batch.tokens[batch.offsets[d] : batch.offsets[d + 1]])
        for shard in list_shards(tmp_path / "run" / "tokenize" / "tokens")
        for batch in read_shard(shard)
        for d in range(len(batch))
    ]
    places = {int(number): place for place, number in enumerate(seen)}
    assert [places[s] for s, _ in found] == sorted(places[s] for s, _ in found)
    assert all(np.array_equal(tokens, sequences[s]) for s, tokens in found)
    # Some sequences of code or of tables look like other languages and are dropped.
    assert len(found) == counts["documents"] > 0.6 * len(seen)
    arms = json.loads((tmp_path / "run" / "mix" / "arms.json").read_text())["arms"]
    assert {arm: entry["budget_tokens"] for arm, entry in arms.items()} == dict.fromkeys(arms, 3000)
