"""The `pivots` stage against the definitions written out in plain Python."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mining.common.errors import InputError
from mining.common.shards import write_table
from mining.common.stage import begin, read_manifest
from mining.pivots import run_pivots
from mining.settings import PivotsSettings
from tests.conftest import folder_bytes

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
            near[i][j] = near[j][i] = pmi / -math.log(n / N_DOCUMENTS)
    langs = []
    for k in items["item"]:
        shares = {la: items[f"doc_freq_{la}"][k] / items["doc_freq"][k] for la in LANGUAGES}
        langs.append(next((la for la in LANGUAGES if shares[la] >= settings.language_share), None))
    result: dict[str, list[Any]] = {"lang": langs, "degree": [], "statistic": [], "is_pivot": []}
    for k in items["item"]:
        reach, gap = {}, {}
        for la in LANGUAGES:
            values = {o: v for o, v in near[k].items() if langs[o] == la}
            reach[la] = sum(v >= settings.edge_npmi for v in values.values())
            falling = sorted((max(v, 0.0) for v in values.values()), reverse=True)
            falling += [0.0] * (settings.rank + 1)
            gap[la] = falling[0] - falling[settings.rank]
            best = sorted((o for o in values if values[o] > 0), key=lambda o: (-values[o], o))
            texts = [f"t{o}" for o in best[: settings.neighbours]]
            result.setdefault(f"neighbours_{la}", []).append(texts)
            result.setdefault(f"reach_{la}", []).append(reach[la])
            result.setdefault(f"gap_{la}", []).append(gap[la])
        degree = sum(v >= settings.edge_npmi for v in near[k].values())
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
    with pytest.raises(InputError, match="holds no pairs"):
        run_pivots(PivotsSettings(), tmp_path / "pivots", count)
