"""The `pivots` stage against the definitions written out in plain Python."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining.common.errors import InputError, MismatchError
from mining.common.manifest import read_manifest
from mining.common.seeds import hash64
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.count import run_count
from mining.engine_settings import EngineSettings
from mining.kernels.pivots import NPMI_BINS
from mining.pivots import FACTORS, run_pivots
from mining.settings import CountSettings, PivotsSettings
from tests.conftest import folder_bytes
from tests.mining.test_count import make_shards, make_tokenizer

LANGUAGES = ("en", "fr", "ja")
N_DOCUMENTS = 300


def make_count(folder: Path, seed: int, n_items: int = 30, languages: Any = LANGUAGES) -> Path:
    """A finished `count` folder of random documents: some items of one language, some of all."""
    rng = np.random.default_rng(seed)
    home = rng.integers(-1, len(languages), size=n_items)
    topic = rng.integers(0, 5, size=n_items)
    member = np.zeros((N_DOCUMENTS, n_items), dtype=bool)
    lang = rng.integers(0, len(languages), size=N_DOCUMENTS)
    for d in range(N_DOCUMENTS):
        fits = (home == -1) | (home == lang[d])
        likely = np.where(topic == rng.integers(0, 5), 0.6, 0.08)
        member[d] = fits & (rng.random(n_items) < likely)
    member = member[:, np.argsort(-member.sum(axis=0), kind="stable")]
    doc_freq = member.sum(axis=0)
    columns = {
        "item": pa.array(range(n_items), pa.uint32()),
        "id": pa.array([7 + 3 * k for k in range(n_items)], pa.uint32()),
        "text": [f"t{k}" for k in range(n_items)],
        "tokens": pa.array([[7 + 3 * k] for k in range(n_items)], pa.list_(pa.uint32())),
        "has_letter": [k % 7 != 3 for k in range(n_items)],
        "doc_freq": pa.array(doc_freq, pa.uint64()),
    }
    for code, name in enumerate(languages):
        columns[f"doc_freq_{name}"] = pa.array(member[lang == code].sum(axis=0), pa.uint64())
    run = begin("count", folder, {"seed": seed}, {})
    assert run is not None
    write_table(folder / "items.parquet", pa.table(columns))
    both = member.astype(np.int64).T @ member.astype(np.int64)
    rows = [
        (i, j, int(both[i, j]))
        for i, j in itertools.combinations(range(n_items), 2)
        if both[i, j] > 0
    ]
    for band, start in enumerate((0, 10)):
        part = [r for r in rows if (r[0] >= 10) == bool(start)]
        table = pa.table(
            {
                "i": pa.array([r[0] for r in part], pa.uint32()),
                "j": pa.array([r[1] for r in part], pa.uint32()),
                "n": pa.array([r[2] for r in part], pa.uint64()),
            }
        )
        write_table(folder / "pairs" / f"{band:05d}.parquet", table)
    run.finish(
        {
            "documents": N_DOCUMENTS,
            "languages": list(languages),
            "unit": "token",
            "fingerprint": "abc",
        }
    )
    return folder


def plain_pivots(count: Path, settings: PivotsSettings) -> dict[str, list[Any]]:
    """The whole table, item by item, as METHOD section 4 words it."""
    items = pq.read_table(count / "items.parquet").to_pydict()
    near: dict[int, dict[int, float]] = {k: {} for k in items["item"]}
    for path in (count / "pairs").glob("*"):
        for row in pq.read_table(path).to_pylist():
            i, j, n = row["i"], row["j"], row["n"]
            pmi = math.log(n * N_DOCUMENTS / (items["doc_freq"][i] * items["doc_freq"][j]))
            value = n if settings.statistic == "count" else pmi / -math.log(n / N_DOCUMENTS)
            near[i][j] = near[j][i] = value
    edge = settings.edge_count if settings.statistic == "count" else settings.edge_npmi
    langs = []
    for k in items["item"]:
        shares = {la: items[f"doc_freq_{la}"][k] / items["doc_freq"][k] for la in LANGUAGES}
        langs.append(next((la for la in LANGUAGES if shares[la] >= settings.language_share), None))
    result: dict[str, list[Any]] = {"lang": langs, "degree": [], "statistic": [], "is_pivot": []}
    for k in items["item"]:
        reach, gap = {}, {}
        for la in LANGUAGES:
            values = {o: v for o, v in near[k].items() if langs[o] == la}
            reach[la] = sum(v >= edge for v in values.values())
            falling = sorted((max(v, 0.0) for v in values.values()), reverse=True)
            falling += [0.0] * (settings.rank + 1)
            gap[la] = falling[0] - falling[settings.rank]
            best = sorted((o for o in values if values[o] > 0), key=lambda o: (-values[o], o))
            texts = [f"t{o}" for o in best[: settings.neighbours]]
            result.setdefault(f"neighbours_{la}", []).append(texts)
            result.setdefault(f"reach_{la}", []).append(reach[la])
            result.setdefault(f"gap_{la}", []).append(gap[la])
        degree = sum(v >= edge for v in near[k].values())
        result["degree"].append(degree)
        statistic, threshold = {
            "degree": (degree, settings.min_degree + 1),
            "breadth": (sorted(reach.values())[-2], settings.min_reach),
            "specificity": (sorted(gap.values())[-2], settings.min_gap),
        }[settings.definition]
        result["statistic"].append(statistic)
        allowed = items["doc_freq"][k] >= settings.min_doc_freq
        allowed &= items["has_letter"][k] or not settings.require_letters
        allowed &= settings.definition == "degree" or langs[k] is None
        result["is_pivot"].append(allowed and statistic >= threshold)
    return result


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [
        PivotsSettings(min_gap=0.2),
        PivotsSettings(rank=1, min_gap=0.1, neighbours=2, require_letters=False),
        PivotsSettings(definition="degree", min_degree=3, edge_npmi=0.1, min_doc_freq=30),
        PivotsSettings(definition="breadth", min_reach=1, edge_npmi=0.15, language_share=0.7),
        PivotsSettings(statistic="count", min_gap=2, rank=2, min_doc_freq=5),
        PivotsSettings(
            definition="degree", statistic="count", min_degree=1, edge_count=7, min_doc_freq=5
        ),
    ],
)
def test_definitions(tmp_path: Path, seed: int, settings: PivotsSettings) -> None:
    count = make_count(tmp_path / "count", seed)
    run_pivots(settings, tmp_path / "pivots", count)
    found = pq.read_table(tmp_path / "pivots" / "pivots.parquet").to_pydict()
    expected = plain_pivots(count, settings)
    for name, column in expected.items():
        if name.startswith("gap_") or name == "statistic":
            assert found[name] == pytest.approx(column, abs=1e-12), name
        else:
            assert found[name] == column, name
    assert 0 < sum(expected["is_pivot"]) < 30  # the example tells the definitions apart
    items = pq.read_table(count / "items.parquet").to_pydict()
    for name in ("item", "id", "text", "tokens", "doc_freq"):
        assert found[name] == items[name]
    counts = read_manifest(tmp_path / "pivots", "pivots").counts
    assert counts["items"] == 30
    assert counts["pivots"] == sum(expected["is_pivot"])
    assert counts["definition"] == settings.definition
    assert counts["items_without_language"] == expected["lang"].count(None)


def test_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    count = make_count(tmp_path / "count", 3)
    for name in ("a", "b"):
        run_pivots(PivotsSettings(), tmp_path / name, count)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_pivots_need_two_languages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = make_count(tmp_path / "count", 0, languages=("en",))
    monkeypatch.setattr("mining.pivots.log.propagate", True)
    run_pivots(PivotsSettings(min_gap=0, min_doc_freq=1), tmp_path / "pivots", count)
    assert read_manifest(tmp_path / "pivots").counts["pivots"] == 0
    assert "one language" in caplog.text


def test_missing_pairs_are_named(tmp_path: Path) -> None:
    count = make_count(tmp_path / "count", 0)
    for path in (count / "pairs").glob("*"):
        path.unlink()
    with pytest.raises(InputError, match=r"output pairs/\S+ is missing; run `pivots count` again"):
        run_pivots(PivotsSettings(), tmp_path / "pivots", count)


def read(folder: Path, name: str = "pivots") -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = pq.read_table(folder / f"{name}.parquet").to_pydict()
    return table


def all_pairs(count: Path, statistic: str) -> list[float]:
    items = read(count, "items")
    values = []
    for path in sorted((count / "pairs").glob("*")):
        for row in pq.read_table(path).to_pylist():
            a, b = (items["doc_freq"][row[key]] for key in ("i", "j"))
            pmi = math.log(row["n"] * N_DOCUMENTS / (a * b)) / -math.log(row["n"] / N_DOCUMENTS)
            values.append(float(row["n"]) if statistic == "count" else pmi)
    return values


@pytest.mark.parametrize("statistic", ["npmi", "count"])
def test_edges_by_quantile(tmp_path: Path, statistic: Any) -> None:
    count = make_count(tmp_path / "count", 4)
    options = PivotsSettings(statistic=statistic, edge_quantile=0.8)
    run_pivots(options, tmp_path / "pivots", count)
    edge = read_manifest(tmp_path / "pivots").counts["edge_threshold"]
    values = all_pairs(count, statistic)
    falling = sorted(values)
    wanted = falling[int(0.8 * len(values))]
    assert edge == pytest.approx(wanted, abs=0 if statistic == "count" else 4 / NPMI_BINS)
    assert sum(read(tmp_path / "pivots")["degree"]) == 2 * sum(v >= edge for v in values)


def test_top_share_of_the_candidates(tmp_path: Path) -> None:
    count = make_count(tmp_path / "count", 5)
    for name, share in (("third", 1 / 3), ("all", 1.0)):
        run_pivots(PivotsSettings(top_share=share, rank=2), tmp_path / name, count)
        found, counts = read(tmp_path / name), read_manifest(tmp_path / name).counts
        chosen = [s for s, p in zip(found["statistic"], found["is_pivot"], strict=True) if p]
        positive = sum(
            s > 0 and n >= 20 and la is None and k % 7 != 3
            for k, (s, n, la) in enumerate(
                zip(found["statistic"], found["doc_freq"], found["lang"], strict=True)
            )
        )
        assert len(chosen) == min(math.ceil(share * counts["candidates"]), positive)
        assert min(chosen) == counts["threshold"]


def test_excluded_items_are_no_pivots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = make_count(tmp_path / "count", 0)
    run_pivots(PivotsSettings(min_gap=0.2), tmp_path / "before", count)
    before = read(tmp_path / "before")
    chosen = [t for t, p in zip(before["text"], before["is_pivot"], strict=True) if p]
    path = tmp_path / "exclude.txt"
    path.write_text(f"{chosen[0]} \n\nnever\n", "utf-8")
    monkeypatch.setattr("mining.pivots.log.propagate", True)
    run_pivots(PivotsSettings(min_gap=0.2, exclude=str(path)), tmp_path / "after", count)
    after = read(tmp_path / "after")
    assert [t for t, p in zip(after["text"], after["is_pivot"], strict=True) if p] == chosen[1:]
    assert [t for t, e in zip(after["text"], after["excluded"], strict=True) if e] == chosen[:1]
    assert "1 lines of" in caplog.text
    assert "such as never" in caplog.text
    manifest = read_manifest(tmp_path / "after")
    assert manifest.counts["excluded"] == 1
    path.write_text("never\n", "utf-8")
    run_pivots(PivotsSettings(min_gap=0.2, exclude=str(path)), tmp_path / "after", count)
    assert read_manifest(tmp_path / "after").inputs["exclude"] != manifest.inputs["exclude"]


def test_the_set_at_other_thresholds(tmp_path: Path) -> None:
    count = make_count(tmp_path / "count", 1)
    run_pivots(PivotsSettings(min_gap=0.2), tmp_path / "pivots", count)
    table, found = read(tmp_path / "pivots", "thresholds"), read(tmp_path / "pivots")
    counts = read_manifest(tmp_path / "pivots").counts
    assert table["threshold"] == pytest.approx([0.2 * factor for factor in FACTORS])
    assert table["pivots"][FACTORS.index(1.0)] == counts["pivots"]
    assert table["pivots"][0] == counts["candidates"]
    assert table["pivots"] == sorted(table["pivots"], reverse=True)
    assert table["jaccard"] == [None] * len(FACTORS)
    assert counts["stability"] is None
    assert counts["scripts"] == {
        "Latin": {"items": 30, "pivots": counts["pivots"], "share": 1.0},
    }
    assert sum(found["is_pivot"]) == counts["pivots"]


def token_documents() -> list[tuple[str, str, list[int]]]:
    """Tokens of topics, some of one language, some of both."""
    rng = np.random.default_rng(2)
    documents = []
    for k in range(400):
        lang = int(rng.integers(0, 2))
        topic = int(rng.integers(0, 6))
        near = [2 + 5 * topic + 2 * lang, 3 + 5 * topic + 2 * lang, 6 + 5 * topic]
        others = rng.integers(2, 42, size=4).tolist()
        chosen = [t for t in near if rng.random() < 0.7] + others
        documents.append((("en", "fr")[lang], ("web", "book")[k % 2], chosen))
    return documents


@pytest.mark.parametrize("context", ["document", "sequence"])
@pytest.mark.parametrize(
    "options",
    [
        PivotsSettings(min_doc_freq=10, min_gap=0.05, rank=1, language_share=0.7),
        PivotsSettings(definition="degree", statistic="count", min_degree=2, edge_count=10),
    ],
)
def test_stability_equals_two_runs_on_the_halves(
    tmp_path: Path, options: PivotsSettings, context: Any
) -> None:
    """Each half as a corpus of its own, with the same items, gives the same set."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    documents = token_documents()
    one = EngineSettings(workers=1)
    tokens = make_shards(tmp_path / "tokens", documents, tokenizer, 3)
    counting = CountSettings(top_items=40, sources=("web",), context=context, sequence_length=6)
    run_count(counting, tmp_path / "count", tokens, tokenizer, one)
    whole = dataclasses.replace(options, stability=True)
    run_pivots(whole, tmp_path / "pivots", tmp_path / "count", tokens, one)
    ids = [f"{k % 3:05d}/{k // 3}" for k in range(len(documents))]
    by_count = options.statistic == "count"
    halved = dataclasses.replace(
        options,
        min_doc_freq=options.min_doc_freq // 2,
        edge_count=options.edge_count // 2 if by_count else options.edge_count,
    )
    sets = []
    for half in range(2):
        root = tmp_path / str(half)
        mine = [d for d, id_ in zip(documents, ids, strict=True) if hash64("half", id_) & 1 == half]
        shards = make_shards(root / "tokens", mine, tokenizer, 1)
        run_count(counting, root / "count", shards, tokenizer, one)
        run_pivots(halved, root / "pivots", root / "count")
        found = read(root / "pivots")
        sets.append({i for i, p in zip(found["id"], found["is_pivot"], strict=True) if p})
    counts = read_manifest(tmp_path / "pivots").counts
    assert counts["stability"]["pivots"] == [len(s) for s in sets]
    assert counts["stability"]["jaccard"] == pytest.approx(
        len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    )
    assert counts["stability"]["jaccard"] > 0
    assert sum(counts["stability"]["documents"]) == counts_documents(tmp_path / "count")
    table = read(tmp_path / "pivots", "thresholds")
    assert table["jaccard"][FACTORS.index(1.0)] == counts["stability"]["jaccard"]
    two = EngineSettings(workers=2)
    run_pivots(whole, tmp_path / "again", tmp_path / "count", tokens, two)
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "pivots")


def counts_documents(count: Path) -> int:
    return int(read_manifest(count).counts["documents"])


def test_stability_needs_the_shards_that_were_counted(tmp_path: Path) -> None:
    count = make_count(tmp_path / "count", 0)
    with pytest.raises(InputError, match="needs the folder of the tokenize stage"):
        run_pivots(PivotsSettings(stability=True), tmp_path / "pivots", count)
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    tokens = make_shards(tmp_path / "tokens", token_documents(), tokenizer, 1)
    with pytest.raises(MismatchError, match="fingerprint"):
        run_pivots(PivotsSettings(stability=True), tmp_path / "pivots", count, tokens)
