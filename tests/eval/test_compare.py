"""The compare stage on folders of `evaluate`."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.compare import MAX_ALL_PAIRS, Member, compare_models, run_compare
from eval.compare_runs import run_compare_runs, run_names
from eval.evaluate_summary import summarise
from eval.figures_compare import heatmap_figures, series_figure
from eval.settings import CompareSettings
from eval.stats import Bootstrap
from mining.common.errors import InputError, MismatchError
from mining.common.files import read_json, write_json, write_text
from mining.common.manifest import read_manifest
from mining.common.shards import write_table
from mining.common.stage import FilesInput, begin

QUICK = CompareSettings(permutations=500, bootstrap_samples=100)
LANGS = ["source_lang", "target_lang"]
Evaluated = Callable[..., Path]


@pytest.fixture
def evaluated(tmp_path: Path, evaluation_tables) -> Evaluated:
    """A function that writes a finished evaluate folder of random tables."""

    def make(
        label: str, seed: int, n: int = 20, task: str = "task", root: str = "", **more: Any
    ) -> Path:
        file = tmp_path / f"{task}.yaml"
        write_text(file, task)
        out = tmp_path / root / "evaluate" / label / str(seed)
        run = begin("evaluate", out, {"label": label}, {"task": FilesInput({"task.yaml": file})})
        assert run is not None
        tables = evaluation_tables(n, n_draws=2, seed=hash_of(label, seed), **more)
        write_table(out / "items.parquet", tables[0])
        write_table(out / "candidates.parquet", tables[1])
        write_json(out / "summary.json", summarise(*tables, Bootstrap(50, 0.95, 0), ()))
        run.finish({})
        return out

    return make


def hash_of(label: str, seed: int) -> int:
    return sum(map(ord, label)) + 1000 * seed


def comparisons(out: Path) -> pd.DataFrame:
    return pq.read_table(out / "comparisons.parquet").to_pandas()


def test_pairs_differences_and_common_items(tmp_path: Path, evaluated: Evaluated) -> None:
    folders = {
        ("original", 0): evaluated("original", 0, n=15),
        ("random", 0): evaluated("random", 0),
        ("pivot", 0): evaluated("pivot", 0, skill=3.0),
    }
    out = tmp_path / "compare"
    run_compare(QUICK, out, folders, {}, 0)
    found = comparisons(out)
    assert set(found["level"]) == {"model"}
    one = found[found["measure"] == "score"].set_index(["model", "reference"])
    assert list(one.index) == [("original", "random"), ("pivot", "random"), ("pivot", "original")]
    items = {key[0]: pq.read_table(path / "items.parquet").to_pandas().dropna(subset=["score"])
             for key, path in folders.items()}  # fmt: skip
    for a, b in one.index:
        both = items[a].merge(items[b], on=["concept", *LANGS], suffixes=("", "_b"))
        by_direction = both.groupby(LANGS)
        gap = (by_direction["score"].mean() - by_direction["score_b"].mean()).mean()
        row = one.loc[(a, b)]
        assert row["difference"] == pytest.approx(gap)
        assert row["mean"] - row["reference_mean"] == pytest.approx(gap)
        assert row["n_items"] == len(both)
        assert row["n_concepts"] == both["concept"].nunique()
        assert row["low"] <= row["difference"] <= row["high"]
    assert one.loc[("pivot", "original"), "n_items"] < one.loc[("pivot", "random"), "n_items"]
    assert one.loc[("pivot", "random"), "p_holm"] == pytest.approx(3 / 501)
    assert set(found["measure"]) == {
        f"{form}{name}" for form in ("", "target_") for name in ("score", "accuracy", "mrr")
    }
    summary = read_json(out / "summary.json")
    assert [m["model"] for m in summary["models"]] == ["original", "random", "pivot"]
    assert len(summary["comparisons"]) == len(found)
    directions = pq.read_table(out / "directions.parquet").to_pandas()
    expected = items["pivot"].groupby(LANGS)["score"].mean()
    part = directions[directions["model"] == "pivot"].set_index(LANGS)["mean"]
    for pair in itertools.permutations(("en", "fr", "zh"), 2):
        assert part[pair] == pytest.approx(expected[pair])
    for model in ("original", "random", "pivot"):
        with Image.open(out / "figures" / f"heatmap-{model}.png") as image:
            assert image.width >= 1000
    assert not (out / "figures" / "series.png").exists()


def test_seeds_are_averaged_by_item_and_compared_singly(
    tmp_path: Path, evaluated: Evaluated
) -> None:
    keys = [(arm, seed) for arm in ("random", "pivot") for seed in (0, 1)]
    folders = {key: evaluated(*key) for key in keys}
    run_compare(QUICK, tmp_path / "compare", folders, {}, 0)
    found = comparisons(tmp_path / "compare")
    found = found[found["measure"] == "mrr"]
    assert found["level"].tolist() == ["model"] + 6 * ["run"]
    means = []
    for arm in ("pivot", "random"):
        frames = [pq.read_table(folders[(arm, s)] / "items.parquet").to_pandas() for s in (0, 1)]
        rank = (1 / frames[0]["rank"] + 1 / frames[1]["rank"]) / 2
        means.append(rank.groupby([frames[0][name] for name in LANGS]).mean().mean())
    assert found["difference"].iloc[0] == pytest.approx(means[0] - means[1])
    pairs = set(zip(found["model"], found["reference"], strict=True))
    assert {("pivot/1", "pivot/0"), ("pivot/0", "random/0"), ("pivot/1", "random/1")} <= pairs
    names = {path.stem for path in (tmp_path / "compare" / "figures").glob("*.svg")}
    assert names == {f"heatmap-{arm}-{seed}" for arm, seed in keys}


def test_many_models_are_compared_with_the_baseline_only() -> None:
    n = MAX_ALL_PAIRS + 1
    rng = np.random.default_rng(0)
    grids = {(f"m{i}", 0): {"score": rng.normal(0, 1, (4, 2))} for i in range(n)}
    settings = CompareSettings(baseline="m3", permutations=100, bootstrap_samples=10)
    found = compare_models(grids, {}, settings, Bootstrap(10, 0.9, 0))
    assert [row["model"] for row in found] == [f"m{i}" for i in range(n) if i != 3]
    assert {row["reference"] for row in found} == {"m3"}
    assert all(row["p_exact"] for row in found)  # of four concepts
    assert min(row["p"] for row in found) >= 2 / 16
    runs = {(f"m{i}", seed): grids[(f"m{i}", 0)] for i in range(n) for seed in (0, 1)}
    found = compare_models(runs, {}, settings, Bootstrap(10, 0.9, 0))
    pairs = {(row["model"], row["reference"]) for row in found if row["level"] == "run"}
    assert pairs == {(f"m{i}/{s}", f"m3/{s}") for i in range(n) for s in (0, 1) if i != 3}


def test_a_series_is_drawn_against_its_steps(tmp_path: Path, evaluated: Evaluated) -> None:
    steps = (10, 100, 2000)
    folders = {(f"olmo@step{s}", 0): evaluated(f"olmo@step{s}", 0, n=8) for s in steps}
    members = {(f"olmo@step{s}", 0): Member("olmo", s) for s in steps}
    folders[("other", 0)] = evaluated("other", 0, n=8)
    out = tmp_path / "compare"
    run_compare(QUICK, out, folders, members, 0)
    series = pq.read_table(out / "series.parquet").to_pandas()
    scores = series[series["measure"] == "score"]
    assert scores["step"].tolist() == list(steps)
    for key, mean in zip(members, scores["mean"], strict=True):
        assert mean == read_json(folders[key] / "summary.json")["score"]["mean"]
    assert (out / "figures" / "series.svg").is_file()
    found = comparisons(out)
    pairs = zip(found["level"], found["model"], found["reference"], strict=True)
    assert list(dict.fromkeys(pairs)) == [
        (
            "model",
            "other",
            "olmo@step2000",
        ),  # no model is named `random`: the first is the baseline
        ("series", "olmo@step100/0", "olmo@step10/0"),
        ("series", "olmo@step2000/0", "olmo@step100/0"),
    ]
    chart = series_figure(series)
    assert chart is not None
    assert chart.x.log
    line, points = chart.panels[0].series
    assert (line.name, line.mode, points.mode) == ("olmo", "line", "points")
    assert line.x == [10, 100, 2000]
    short = series_figure(series[series["step"] >= 100])
    assert short is not None
    assert not short.x.log


def test_an_arm_stands_for_its_snapshots() -> None:
    rng = np.random.default_rng(0)
    labels = ("pivot", "random", "pivot@step-5", "pivot@step-9")
    grids = {(a, s): {"score": rng.normal(0, 1, (9, 2))} for a in labels for s in (0, 1)}
    members = {(f"pivot@step-{n}", s): Member("pivot", n) for n in (5, 9) for s in (0, 1)}
    found = compare_models(grids, members, QUICK, Bootstrap(10, 0.9, 0))
    pairs = [(row["level"], row["model"], row["reference"]) for row in found]
    assert pairs[0] == ("model", "pivot", "random")
    assert [pair[0] for pair in pairs] == ["model", *6 * ["run"], *2 * ["series"]]
    assert pairs[-1] == ("series", "pivot@step-9/1", "pivot@step-5/1")


def test_heatmaps_share_a_scale_about_zero(tmp_path: Path, evaluated: Evaluated) -> None:
    folders = {(m, 0): evaluated(m, 0, skill=k) for m, k in (("a", 3.0), ("b", 0.0))}
    run_compare(QUICK, tmp_path / "compare", folders, {}, 0)
    directions = pq.read_table(tmp_path / "compare" / "directions.parquet").to_pandas()
    first, second = heatmap_figures(directions)
    top = directions["mean"].abs().max()
    assert first.limits == second.limits == (-top, top)
    row = directions[(directions["model"] == "a") & (directions["source_lang"] == "fr")].iloc[0]
    cell = first.panels[0].text[first.rows.index("fr")][first.columns.index(row["target_lang"])]
    value, bounds = cell.split("\n")
    assert float(value) == pytest.approx(row["mean"], abs=5e-4)
    assert bounds == f"[{row['low']:.3f}, {row['high']:.3f}]".replace("-", "\u2212")


def test_one_model_other_tasks_and_a_rerun(tmp_path: Path, evaluated: Evaluated) -> None:
    folders = {("a", 0): evaluated("a", 0)}
    out = tmp_path / "compare"
    run_compare(QUICK, out, folders, {}, 0)
    assert comparisons(out).empty
    before = (out / "manifest.json").read_bytes()
    for path in (out, tmp_path / "again"):
        run_compare(QUICK, path, folders, {}, 0)
        assert (path / "manifest.json").read_bytes() == before
    assert read_manifest(out, "compare").counts["figures"] == 1
    folders[("b", 0)] = evaluated("b", 0, task="other")
    with pytest.raises(MismatchError, match="task differs"):
        run_compare(QUICK, tmp_path / "c", folders, {}, 0)


def test_tables_have_their_schema_even_when_empty(tmp_path: Path, evaluated: Evaluated) -> None:
    run_compare(QUICK, tmp_path / "compare", {("a", 0): evaluated("a", 0)}, {}, 0)
    for name in ("comparisons", "series"):
        table = pq.read_table(tmp_path / "compare" / f"{name}.parquet")
        assert table.num_rows == 0
        assert pa.types.is_string(table.schema.field("model").type)
    assert np.isfinite(
        pq.read_table(tmp_path / "compare" / "directions.parquet")["mean"].to_numpy()
    ).all()


def test_runs_side_by_side(
    tmp_path: Path, evaluated: Evaluated, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pivots")
    small, large = "a/small run", "b/large"
    for root, arms in ((small, ("pivot", "random")), (large, ("low", "pivot", "random"))):
        for arm in arms:
            skill = 6.0 if (root, arm) == ("b/large", "pivot") else 0.0
            evaluated(arm, 0, root=root, skill=skill)
    evaluated("pivot@step-5", 0, root="b/large")
    series = {"models": [{"model": "pivot@step-5", "seed": 0, "series": "pivot", "step": 5}]}
    own = begin("compare", tmp_path / "b/large/compare", {}, {})
    assert own is not None
    write_json(own.out / "summary.json", series)
    own.finish({})
    runs = [tmp_path / small, tmp_path / large]
    out = tmp_path / "out"
    page = run_compare_runs(QUICK, "pivot", out, runs, 0)
    found = comparisons(out / "compare")
    scores = found[found["measure"] == "score"].set_index(["model", "reference"])
    assert list(scores.index) == [
        ("small run: pivot", "small run: random"),
        ("large: low", "large: random"),
        ("large: pivot", "large: random"),
        ("large: pivot", "small run: pivot"),
        ("large: random", "small run: random"),
    ]
    text = page.read_text("utf-8")
    row = scores.loc[("large: pivot", "large: random")]
    assert row["low"] > 0
    assert f"+{row['difference']:.3f} [+{row['low']:.3f}, +{row['high']:.3f}]" in text
    assert "large: higher" in text
    assert "pivots compare 'small run' large --out COMPARISON" in html.unescape(text)
    assert "compare: heatmaps: 6/6 models" in caplog.text
    measures = len(set(found["measure"]))
    assert f"compare: model: {5 * measures}/{5 * measures} comparisons" in caplog.text
    assert (out / "page" / "figures" / "heatmaps.png").is_file()
    assert (out / "page" / "figures" / "series.png").is_file()
    before = (out / "page" / "manifest.json").stat().st_mtime_ns
    run_compare_runs(QUICK, "pivot", out, runs, 0)
    assert (out / "page" / "manifest.json").stat().st_mtime_ns == before


def test_names_of_runs(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert run_names(folders[:1]) == ["run"]
    assert run_names(folders[:2]) == ["x/run", "y/run"]
    with pytest.raises(InputError, match="named twice"):
        run_names([folders[0], folders[2], folders[0]])
    with pytest.raises(InputError, match="no finished evaluation"):
        run_compare_runs(QUICK, "pivot", tmp_path / "out", folders[:2], 0)
