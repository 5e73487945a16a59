"""Bands counted from an index: against brute force, whatever the memory; the cost formula."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch import cli
from mining import count, count_memory, pair_bands, pair_table
from mining.byte_sizes import format_bytes, parse_bytes
from mining.common.errors import SettingsError
from mining.common.files import read_json
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards
from mining.count import estimate_count, plan_count, run_count
from mining.count_cost import expected_pairs, work_of
from mining.count_memory import plan_memory
from mining.engine_settings import EngineSettings, SlurmSettings
from mining.kernels import cooccurrence
from mining.kernels.cooccurrence import GatherBand, index_block
from mining.pair_bands import band_counts, read_index, write_bands, write_index
from mining.settings import CountSettings
from tests.mining.test_count import make_shards, make_tokenizer, output_bytes, random_documents

ONE = EngineSettings(workers=1)
Sets = list[list[int]]


def store(folder: Path, documents: Sets, n_items: int, n_shares: int, block: int) -> None:
    """An index of the documents, dealt out to shares, in blocks of at most `block` documents."""
    for rank in range(n_shares):
        share = documents[rank::n_shares]
        blocks = []
        for start in range(0, len(share), block):
            here = share[start : start + block]
            offsets = np.cumsum([0, *map(len, here)]).astype(np.int64)
            items = np.array(list(itertools.chain.from_iterable(here)), dtype=np.uint32)
            blocks.append(index_block(items, offsets, n_items))
        write_index(pair_bands.index_folder(folder, rank), blocks)


def brute_force(documents: Sets) -> list[tuple[int, int, int]]:
    pairs: Counter[tuple[int, int]] = Counter()
    for document in documents:
        pairs.update(itertools.combinations(sorted(document), 2))
    return sorted((i, j, n) for (i, j), n in pairs.items())


def write_all(
    folder: Path, out: Path, n_items: int, n_shares: int, world: int, at_a_time: int
) -> dict[str, bytes]:
    for rank in range(world):
        write_bands(rank, world, folder, n_shares, n_items, out, at_a_time)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_division_gives_the_bytes_of_one_piece(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Empty documents, all items, one item, K beside a multiple of 512, blocks begun and left."""
    root = tmp_path_factory.mktemp("bands")
    n_items = data.draw(st.sampled_from([1, 2, 511, 512, 513, 1100]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 2, 17, 1100]), max_size=20))
    documents = [rng.permutation(n_items)[:size].tolist() for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "band_rows", lambda n_items: 512)
        store(root / "one", documents, n_items, 1, max(1, len(documents)))
        whole = write_all(root / "one", root / "whole", n_items, 1, 1, 3)
        n_shares, block = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 17))
        store(root / "cut", documents, n_items, n_shares, block)
        world, at_a_time = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        if data.draw(st.booleans()):  # sums of more documents than 32 bits count
            patch.setattr(pair_bands, "MAX_DOCUMENTS", 17)
        if data.draw(st.booleans()):  # where popcount does not compile
            patch.setattr(pair_bands, "band_counter", lambda: GatherBand)
        parts = write_all(root / "cut", root / "parts", n_items, n_shares, world, at_a_time)
    assert parts == whole
    tables = [pq.read_table(root / "whole" / name).to_pydict() for name in whole]
    found = [row for table in tables for row in zip(*table.values(), strict=True)]
    assert found == brute_force(documents)


def test_band_counts_adds_up_no_more_than_32_bits_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, [[0, 1]] * 5, 2, 1, 2)
    index = read_index(tmp_path, [0])
    assert [(band, counts.tolist()) for band, counts in band_counts(index, 2)] == [
        (0, [[0, 5], [0, 0]])
    ]
    monkeypatch.setattr(pair_bands, "MAX_DOCUMENTS", 4)
    with pytest.raises(OverflowError, match="5 documents"):
        next(band_counts(index, 2))


def test_pairs_are_written_in_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_table, "ROWS_PER_GROUP", 7)
    counts = np.random.default_rng(0).integers(0, 3, (9, 11)).astype(np.uint64)
    counts[3], counts[0, 0] = 0, (1 << 64) - 1
    pair_table.write_band(tmp_path / "band", counts, 100, 40)
    file = pq.ParquetFile(tmp_path / "band")
    assert file.metadata.row_group(0).num_rows == 7
    i, j = np.nonzero(counts)
    table = file.read()
    assert table["i"].to_pylist() == (i + 100).tolist()
    assert table["j"].to_pylist() == (j + 40).tolist()
    assert table["n"].to_pylist() == counts[i, j].tolist()


def test_memory_limit_changes_no_byte(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 1500)
    tokens = make_shards(tmp_path / "tokens", random_documents(200, 1500, 0.2), tokenizer, 2)
    run_count(CountSettings(top_items=1300), tmp_path / "free", tokens, tokenizer, ONE)
    limited = CountSettings(top_items=1300, memory_limit="900MB", map_tasks=2)
    run_count(limited, tmp_path / "limited", tokens, tokenizer, ONE)
    assert output_bytes(tmp_path / "limited") == output_bytes(tmp_path / "free")
    with pytest.raises(SettingsError, match=r"memory_limit: found 1000 .* at least (\d+)") as error:
        run_count(
            CountSettings(top_items=1300, memory_limit="1kB"),
            tmp_path / "none", tokens, tokenizer, ONE,
        )  # fmt: skip
    least = int(str(error.value).split("at least ")[1].split()[0])
    shards = list_shards(tokens / "tokens")
    assert plan_memory(least, 1300, 1502, shards, 1).bytes <= least
    with pytest.raises(SettingsError):
        plan_memory(least - 1, 1300, 1502, shards, 1)


@pytest.mark.parametrize("n_items", [2, 8192, 32_768, 131_072])
def test_a_task_stays_below_its_limit(tmp_path: Path, n_items: int) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 20)
    shards = list_shards(
        make_shards(tmp_path / "tokens", random_documents(9, 22), tokenizer, 1) / "tokens"
    )
    plans = [plan_memory(limit, n_items, 1 << 18, shards, 1) for limit in (2 << 30, 8 << 30)]
    assert plans[0].bytes <= 2 << 30
    assert plans[1].bytes <= 8 << 30
    assert plans[0].bands_at_a_time <= plans[1].bands_at_a_time


def test_sizes_are_read_as_people_write_them() -> None:
    assert parse_bytes(1000) == parse_bytes("1kB") == parse_bytes("1 K") == 1000
    assert parse_bytes("8GB") == 8 * 10**9
    assert parse_bytes("1.5GiB") == 3 << 29
    assert [parse_bytes(bad) for bad in ("", "GB", "-1", "0", "8 apples", "1,5GB")] == [None] * 6
    assert format_bytes(1_234_000_000) == "1.23 GB"
    with pytest.raises(SettingsError, match="memory_limit"):
        CountSettings(memory_limit="much")


@settings(max_examples=30)
@given(st.integers(1, 1300), st.integers(0, 1 << 32))
def test_work_is_what_a_loop_over_tiles_counts(n_items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    doc_freq = np.sort(rng.integers(0, 9, n_items))[::-1]
    additions = cells = 0
    for start in range(0, n_items, 512):
        for j in range(start, n_items):
            additions += int(doc_freq[j])
            cells += 512
    work = work_of(doc_freq, 40_000, 1e6, 5, 1, 2)
    assert (work.row_additions, work.triangle) == (additions, cells)
    assert work.cells == 3 * cells  # blocks of 16,384 documents
    assert work.postings == doc_freq.sum()
    pairs_of_bands = [first for first, _ in cooccurrence.bands(n_items)][::2]
    assert work.read_again == sum(doc_freq[first:].sum() for first in pairs_of_bands)


def test_pairs_that_occur_are_extrapolated_from_a_sample() -> None:
    rng = np.random.default_rng(0)
    n_items, n_documents, n_sample = 400, 4000, 500
    share = 0.3 * np.arange(1, n_items + 1) ** -0.8
    matrix = rng.random((n_documents, n_items)) < share
    order = np.argsort(-matrix[:n_sample].sum(axis=0), kind="stable")
    matrix = matrix[:, order].astype(np.int64)
    seen, occur = (np.triu(part.T @ part, 1) > 0 for part in (matrix[:n_sample], matrix))
    rows = np.arange(0, 100)
    expected = expected_pairs(
        matrix[:n_sample].sum(axis=0).astype(np.float64),
        n_sample, rows, int(seen[rows].sum()), n_documents,
    )  # fmt: skip
    assert expected == pytest.approx(occur.sum(), rel=0.15)


def test_dry_run_and_run_say_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    tokens = make_shards(tmp_path / "tokenize", random_documents(300, 62), tokenizer, 3)
    chosen = CountSettings(top_items=50)
    text = plan_count(chosen, tokens, tokenizer, ONE)
    n_tokens = sum(max(1, len(tokens)) for _, _, tokens in random_documents(300, 62))
    assert f"{n_tokens:.4g} tokens" in text
    out = tmp_path / "run"
    arguments = [f"--out={out}", f"--inputs.tokenize={tokens}", f"--inputs.tokenizer={tokenizer}"]
    assert cli.main(["count", "--dry_run", *arguments]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "time", "memory", "disk", "output"
    ]  # fmt: skip
    assert not out.exists()
    with pytest.raises(SystemExit):
        cli.main(["count", "--help"])
    assert "--dry_run" in capsys.readouterr().out

    monkeypatch.setattr(count, "MIN_SAMPLE_TOKENS", 1)
    run_count(chosen, tmp_path / "count", tokens, tokenizer, ONE)
    noted = read_json(tmp_path / "count" / "run.json")
    assert noted["expected"]["tokens"] == n_tokens
    assert noted["count_seconds"] > 0


@pytest.mark.parametrize("directed", [False, True])
def test_windows_are_planned_too(tmp_path: Path, directed: bool) -> None:
    """A dry run, a limit that changes no byte, and one that is too low."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    tokens = make_shards(tmp_path / "tokenize", random_documents(300, 62), tokenizer, 3)
    free = CountSettings(top_items=50, context="window", window=3, directed=directed)
    lines = plan_count(free, tokens, tokenizer, ONE).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["time", "memory", "disk", "output"]
    run_count(free, tmp_path / "free", tokens, tokenizer, ONE)
    expected = estimate_count(free, tokens, tokenizer, ONE)
    pairs = read_manifest(tmp_path / "free").counts["pairs"]
    assert expected.work.pairs == pytest.approx(pairs, rel=0.1)
    limited = dataclasses.replace(free, memory_limit="700MB", map_tasks=2)
    run_count(limited, tmp_path / "limited", tokens, tokenizer, EngineSettings(workers=2))
    assert output_bytes(tmp_path / "limited") == output_bytes(tmp_path / "free")
    with pytest.raises(SettingsError, match=r"memory_limit: found 1000 .* at least (\d+)"):
        plan_count(dataclasses.replace(free, memory_limit="1kB"), tokens, tokenizer, ONE)


def test_a_run_notes_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    tokens = make_shards(tmp_path / "tokenize", random_documents(300, 62), tokenizer, 3)
    monkeypatch.setattr("mining.count.MIN_SAMPLE_TOKENS", 1)
    with caplog.at_level("INFO", "pivots"):
        run_count(CountSettings(top_items=50), tmp_path / "run", tokens, tokenizer, ONE)
    took = re.search(
        r"count: took \S+ s \(\S+ expected\), \S+ .B of memory \(at most \S+ .B expected\), "
        r"(\S+ \S+) of pairs \(\S+ \S+ expected\)",
        caplog.text,
    )
    noted = read_json(tmp_path / "run" / "run.json")
    assert took is not None
    assert took[1] == format_bytes(noted["output_bytes"])
    assert noted["memory_bytes"] > 0
    assert noted["expected"]["seconds"] > 0


def test_a_slurm_job_must_have_the_memory_that_a_task_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be killed after hours, once the largest piece came."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    tokens = make_shards(tmp_path / "tokenize", random_documents(9, 62), tokenizer, 1)
    job = EngineSettings(kind="slurm", slurm=SlurmSettings(cpus_per_task=2))
    monkeypatch.setattr(count_memory, "BASE_BYTES", 5 << 30)
    message = r"mem_per_cpu_gb: found 2, so that a job has 4.29 GB, .* set it to 3, or count.memory"
    with pytest.raises(SettingsError, match=message):
        run_count(CountSettings(), tmp_path / "out", tokens, tokenizer, job)
    assert not (tmp_path / "out").exists()
