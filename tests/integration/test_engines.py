"""2,000 real documents on every engine, in two splits, with three numbers of items: same bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from launch.bench.engines import (
    SPLITS,
    Digests,
    Prepared,
    find_differences,
    open_engine,
    prepare,
    run_split,
)
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards
from mining.settings import CorpusSettings

pytestmark = [pytest.mark.shared_data, pytest.mark.slow]
N_DOCUMENTS = 2000
ITEMS = (100, 512, 1300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    from tests.conftest import SHARED

    corpus = CorpusSettings(path=str(SHARED / "corpus"))
    return prepare(corpus, N_DOCUMENTS, folder, vocab_size=4000, workers=1)


def run_engine(
    prepared: Prepared, name: str, workers: int, folder: Path, at_once: int = 1
) -> dict[str, Digests]:
    """The digests of both splits; `at_once` of them at work at the same time."""
    with open_engine(name, workers) as engine, ThreadPoolExecutor(at_once) as pool:
        found = pool.map(
            lambda split: run_split(prepared, split, engine, ITEMS, folder / name / split), SPLITS
        )
        return dict(zip(SPLITS, found, strict=True))


@pytest.fixture(scope="module")
def local(prepared: Prepared, folder: Path) -> dict[str, Digests]:
    return run_engine(prepared, "local", 1, folder)


def test_counts_do_not_depend_on_the_split(
    prepared: Prepared, local: dict[str, Digests], folder: Path
) -> None:
    assert find_differences({"local": local}) == []
    for name, split in SPLITS.items():
        manifest = read_manifest(prepared.tokens[name], "tokenize")
        assert manifest.counts["documents"] == N_DOCUMENTS
        assert {n["documents"] for n in manifest.counts["by_lang"].values()} == {500}
        assert len(list_shards(prepared.tokens[name] / "tokens")) == split.n_files
        for n_items in ITEMS:
            count = folder / "local" / name / f"count-{n_items}"
            assert pq.read_metadata(count / "items.parquet").num_rows == n_items
            assert read_manifest(count).counts["pairs"] > n_items * (n_items - 1) / 4
    few, more = (local[split]["score/scores/00000.parquet"] for split in ("few", "more"))
    assert few != more


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("spark", marks=pytest.mark.spark),
        pytest.param("spark-standalone", marks=pytest.mark.spark),
    ],
)
def test_engine_gives_the_local_engines_bytes(
    prepared: Prepared, local: dict[str, Digests], folder: Path, name: str
) -> None:
    # Slurm's tasks wait more than they work here.
    found = run_engine(prepared, name, 2, folder, at_once=2 if name == "slurm" else 1)
    assert set(found["few"]) == set(local["few"])
    assert find_differences({"local": local, name: found}) == []


def test_a_difference_is_found(local: dict[str, Digests]) -> None:
    changed = {split: dict(digests) for split, digests in local.items()}
    changed["more"]["count-512/items.parquet"] = "0" * 64
    del changed["few"]["mix/arms.json"]
    assert find_differences({"local": local, "other": changed}) == [
        "other/few/count-512/items.parquet",
        "other/few/mix/arms.json",
        "other/more/count-512/items.parquet",
    ]
