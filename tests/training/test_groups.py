"""Training loss by language and source."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mining.common.errors import MismatchError
from mining.common.token_file import write_token_file
from training.data import Sequences
from training.groups import LossGroups, find_groups
from training.loss import NextTokenLoss, sums_by_group
from training.settings import SourceSettings, TrainSettings, WandbSettings
from training.train import run_train


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    """Documents of 4, 1, 6 and 2 tokens (13 in all, three sequences of 4) in three languages."""
    folder = tmp_path / "arm"
    sizes = (3, 0, 5, 1)
    documents = [np.full(n, 7, dtype=np.uint32) for n in sizes]
    write_token_file(folder / "tokens.ds", documents, 50, 0)
    langs = pa.array(["fr", "en", "fr", "zh"])
    pq.write_table(pa.table({"lang": langs}), folder / "documents.parquet")
    return folder


def test_predicted_tokens_belong_to_their_document(arm: Path, tmp_path: Path) -> None:
    np.full(9, 3, dtype="<u2").tofile(tmp_path / "more.npy")
    sources = [SourceSettings(str(tmp_path / "more.npy"))]
    sequences = Sequences(arm / "tokens.ds", 50, 4, sources)
    groups = LossGroups(arm, sequences, sources)
    assert groups.names == ("en", "fr", "zh", "1-more")
    # Token 0 is never predicted; 1-3 are French, 4 English, 5-10 French, 11 and 12 Chinese.
    assert groups.of(np.array([0, 3, 2])).tolist() == [[1, 1, 1, 0], [3, 3, 3, 3], [1, 1, 2, 2]]


def test_another_table_of_documents_is_refused(arm: Path) -> None:
    sequences = Sequences(arm / "tokens.ds", 50, 4)
    pq.write_table(pa.table({"lang": pa.array(["fr"])}), arm / "documents.parquet")
    with pytest.raises(MismatchError, match="has 1 documents"):
        LossGroups(arm, sequences, ())
    (arm / "documents.parquet").unlink()
    assert find_groups(arm, sequences, ()) is None


def test_sums_by_group() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    table = sums_by_group(losses, torch.tensor([[2, 0], [2, 2]]), 3)
    assert table.tolist() == [2.0, 0.0, 13.0, 1.0, 0.0, 3.0]


def test_the_sums_are_the_loss() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                    num_attention_heads=2)
    )  # fmt: skip
    loss_of = NextTokenLoss(model, "float32", n_groups=2)
    tokens, groups = torch.randint(0, 50, (3, 9)), torch.randint(0, 2, (3, 8))
    loss, table = loss_of(tokens, groups)
    assert not table.requires_grad
    assert (table[:2].sum() / table[2:].sum()).item() == pytest.approx(loss.item(), abs=1e-6)
    logits = model(input_ids=tokens[:, :-1]).logits.flatten(0, 1)
    here = groups.flatten() == 1
    alone = torch.nn.functional.cross_entropy(logits[here], tokens[:, 1:].flatten()[here])
    assert (table[1] / table[3]).item() == pytest.approx(alone.item(), abs=1e-5)


@pytest.fixture
def told_apart(mix: Path, tmp_path: Path) -> Path:
    """The test mix with the languages of its documents, as the mix stage notes them."""
    folder = tmp_path / "mix"
    shutil.copytree(mix, folder)
    tokens = np.fromfile(folder / "pivot/tokens.ds", dtype="<u2").reshape(-1, 16)
    langs = np.where(tokens[:, 0] < 30, "en", "fr")
    pq.write_table(pa.table({"lang": langs}), folder / "pivot/documents.parquet")
    return folder


def test_lines_have_the_loss_by_language(
    told_apart: Path, mix: Path, tiny: TrainSettings, no_wandb: WandbSettings, tmp_path: Path
) -> None:
    def lines(name: str, folder: Path, **changes: Any) -> list[dict[str, Any]]:
        settings = dataclasses.replace(tiny, duration="10steps", **changes)
        run_train(settings, no_wandb, tmp_path / name, folder, "pivot", 7)
        text = (tmp_path / name / "metrics.jsonl").read_text()
        return [r for r in map(json.loads, text.splitlines()) if r["kind"] == "train"]

    found = lines("a", told_apart)
    plain = lines("plain", mix)
    split = lines("split", told_apart, micro_batch_sequences=1)
    for mine, theirs, parts in zip(found, plain, split, strict=True):
        assert set(mine["loss_by"]) == {"en", "fr"}
        low, high = sorted(mine["loss_by"].values())
        assert low <= mine["loss"] <= high
        # Telling languages apart changes nothing of the training.
        assert {k: v for k, v in mine.items() if k != "loss_by"} == theirs
        assert parts["loss_by"] == pytest.approx(mine["loss_by"], abs=1e-4)
