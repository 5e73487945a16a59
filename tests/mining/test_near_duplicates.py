from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mining import near_duplicates
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, read_shard
from mining.engine_settings import EngineSettings
from mining.near_duplicates import _later_ones, _Signatures
from mining.settings import CorpusSettings, TokenizeSettings
from mining.tokenize import run_tokenize
from tests.conftest import folder_bytes


def documents() -> list[dict[str, Any]]:
    """Ten texts of 200 words; then one with a word changed, one half changed, one of the other."""
    rng = np.random.default_rng(0)
    words = [f"w{chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(400)]
    texts = [rng.choice(words, 200).tolist() for _ in range(10)]
    chinese = ["我们", "喜欢", "学习", "语言", "模型", "因为", "它们", "很", "有趣", "今天", "天气"]
    texts.append(rng.choice(chinese, 150).tolist())
    changed = [*texts[3][:100], "other", *texts[3][101:]]
    half = [*texts[4][:100], *rng.choice(words, 100).tolist()]
    again = [*changed[:50], "more", *changed[51:]]  # near the changed one, less near the first
    chinese_again = [*texts[10][:80], "昨天", *texts[10][81:]]
    joined = [" ".join(text) for text in [*texts[:10], changed, half, again, texts[3][:4]]]
    joined += ["".join(texts[10]), "".join(chinese_again), "a b c"]
    return [{"id": f"d{k}", "text": text, "lang": "en"} for k, text in enumerate(joined)]


def test_near_duplicates_go_and_the_first_stays_whatever_the_parts(
    tmp_path: Path,
    write_jsonl: Callable[[Path, Iterable[dict[str, Any]]], Path],
    word_tokenizer: Callable[[Iterable[str]], Path],
) -> None:
    tokenizer = word_tokenizer(["x"])
    kept = {}
    for n_files in (1, 4):
        folder = tmp_path / f"docs-{n_files}"
        records = documents()
        for k in range(n_files):
            cut = slice(k * len(records) // n_files, (k + 1) * len(records) // n_files)
            write_jsonl(folder / f"{k}.jsonl.gz", records[cut])
        corpus = CorpusSettings(path=str(folder))
        settings = TokenizeSettings(near_duplicates=True)
        for workers in (1, 2) if n_files == 4 else (1,):
            out = tmp_path / f"out-{n_files}-{workers}"
            run_tokenize(settings, corpus, out, tokenizer, EngineSettings(workers=workers))
        shards = list_shards(out / "tokens")
        kept[n_files] = [i for shard in shards for batch in read_shard(shard) for i in batch.id]
        counts = read_manifest(out, "tokenize").counts
        assert counts["dropped"] == {"near-duplicate text": 3}
        assert counts["records"] == counts["documents"] + 3
    dropped = {"d10", "d12", "d15"}
    assert kept[1] == [r["id"] for r in documents() if r["id"] not in dropped]
    assert kept[4] == kept[1]
    assert folder_bytes(tmp_path / "out-4-1") == folder_bytes(tmp_path / "out-4-2")


def test_signatures_by_pieces_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = _Signatures(str(tmp_path), language=near_duplicates._IcuWords())
    shingles = np.random.default_rng(0).integers(0, 1 << 60, (100, 1)).astype(np.uint64)
    whole = step.get_signature(shingles)
    assert (len(whole), len(whole[0])) == (14, 8)
    monkeypatch.setattr(near_duplicates, "CHUNK_SHINGLES", 7)
    assert step.get_signature(shingles) == whole


def test_the_first_of_each_cluster_stays() -> None:
    pairs = [((1, 0), (0, 5)), ((1, 0), (2, 2)), ((0, 1), (0, 9)), ((0, 9), (0, 1))]
    later = _later_ones(np.array(pairs, dtype=np.uint32))
    assert later.tolist() == [[0, 9], [1, 0], [2, 2]]
    assert len(_later_ones(np.zeros((0, 2, 2), dtype=np.uint32))) == 0
