"""Which tokens belong to a language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from eval.vocabularies import language_vocabularies
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.common.task import read_task

CPU = torch.device("cpu")


def write_count(folder: Path, fingerprint: str, unit: str = "token") -> Path:
    run = begin("count", folder, {}, {})
    assert run is not None
    columns = {
        "tokens": [[2], [3], [4], [5, 6], [7], [8], [9]],
        "doc_freq": [10, 10, 10, 10, 0, 10, 10],
        "doc_freq_en": [9, 8, 0, 10, 0, 0, 8],
        "doc_freq_fr": [1, 2, 10, 0, 0, 0, 0],
        # Documents of an unknown language, and of several.
        "doc_freq_und": [0, 0, 0, 0, 0, 10, 0],
        "doc_freq_mul": [0, 0, 0, 0, 0, 0, 2],
    }
    write_table(folder / "items.parquet", pa.table(columns))
    run.finish({"unit": unit, "fingerprint": fingerprint})
    return folder


@pytest.mark.parametrize(("unit", "known"), [("token", True), ("word", True), ("token", False)])
def test_by_counts_where_they_are_of_these_tokens(
    tmp_path: Path, word_task: Any, word_level: Any, unit: str, known: bool
) -> None:
    # The corpus that was counted has no document in German.
    task = read_task(word_task(tmp_path / "task", 4, ("en", "fr", "de")))
    words = [word for concept in task.concepts for word in concept.words.values()]
    tokenizer = word_level(words)
    count = write_count(tmp_path / "count", tokenizer.fingerprint if known else "0" * 64, unit)
    found = language_vocabularies(task, tokenizer, count, 20, CPU)
    english, french = (set(found.members[k].nonzero()[:, 0].tolist()) for k in (0, 1))
    if unit == "token" and known:
        assert found.source == "counts"
        # 90 % of the documents; items of several tokens are not tokens.
        assert (english, french) == ({2}, {4})
        assert found.languages == ["en", "fr", "de"]
        assert not found.members[2].any()
    else:
        assert found.source == "task"
        assert english == {tokenizer.encode(f"wen{i}")[0] for i in (1, 2, 3)}
        # The word that both languages have belongs to neither.
        assert not french & english
        assert tokenizer.encode("same")[0] not in french
        assert found.members[2].any()
    sizes = found.sizes()
    assert (sizes["en"], sizes["fr"]) == (len(english), len(french))
