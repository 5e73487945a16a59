"""What a world planted, in a tokenizer's ids; the broken arm breaks the ties and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from mining.common.errors import InputError
from mining.common.tokenizer import load_tokenizer
from mining.planted import read_planted

WORDS = [f"w{i}" for i in range(20)]
PIVOTS = [f"bap{i}" for i in range(10, 22)]


def make_truth(folder: Path, pivots: Iterable[str]) -> Path:
    folder.mkdir()
    concepts = {
        pivot: {lang: [f"topic{1 + i % 3}-{i:02d}"] for lang in ("la", "lb")}
        for i, pivot in enumerate(pivots)
    }
    truth = {"languages": {"la": "LA", "lb": "LB"}, "pivots": concepts}
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return folder


def test_ids_topics_and_permutations(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    tokenizer = load_tokenizer(word_tokenizer([*WORDS, *PIVOTS]))
    planted = read_planted(make_truth(tmp_path / "world", PIVOTS), tokenizer)
    assert sorted(tokenizer.decode([i]).strip() for i in planted.ids) == sorted(PIVOTS)
    assert planted.mask(tokenizer.vocab_size).sum() == len(PIVOTS)
    maps = planted.broken(tokenizer.vocab_size, seed=3)
    assert sorted(maps) == ["la", "lb"]
    for new in maps.values():
        assert sorted(new.tolist()) == list(range(tokenizer.vocab_size))
        topic = dict(zip(planted.ids.tolist(), planted.topic, strict=True))
        for old, found in enumerate(new.tolist()):
            assert topic.get(old) == topic.get(found)
            assert old in topic or old == found
    assert (maps["la"] != maps["lb"]).any()
    again = planted.broken(tokenizer.vocab_size, seed=3)
    assert (again["la"] == maps["la"]).all()


def test_pivots_that_are_no_single_tokens_are_refused(
    tmp_path: Path, word_tokenizer: Callable[[Iterable[str]], Path]
) -> None:
    tokenizer = load_tokenizer(word_tokenizer([*WORDS, *PIVOTS[:-2]]))
    with pytest.raises(InputError, match="same token"):
        read_planted(make_truth(tmp_path / "world", PIVOTS), tokenizer)
    with pytest.raises(InputError, match="no such file"):
        read_planted(tmp_path, tokenizer)
