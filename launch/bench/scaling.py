"""How the time of the `count` stage grows: measured points, and the line of the cost formula.

    python -m launch.bench.scaling [--figure docs/figures/scaling] > scaling.txt
    python -m launch.bench.scaling --estimate scaling.txt

Four curves (documents, items, workers, tokens a document), each around the same middle. The rates
of the formula are measured once, on a sample of the middle's shards; work is counted for each
point. `--estimate` takes the rates from the last line of such an output, and prints what 10 TB of
text would take on a cluster, with the arithmetic (docs/SCALING.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from launch.bench.documents import write_shards, write_tokenizer
from launch.bench.internet_scale import Cluster, describe
from launch.bench.timing import report
from mining.common.manifest import read_manifest
from mining.count import estimate_count, run_count
from mining.count_cost import Estimate, Rates
from mining.engine_settings import EngineSettings
from mining.settings import CountSettings

TARGET = 0.5  # of the smaller to the larger of measured and expected time, at every point
NAMES = {
    "tokens": "tokens of the corpus",
    "items": "items K",
    "workers": "workers",
    "mean": "tokens of a document",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """What is counted at one point of a curve."""

    tokens: int
    items: int
    workers: int
    mean: int


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=40_000_000, help="tokens in the middle")
    parser.add_argument("--items", type=int, default=8192, help="items in the middle")
    parser.add_argument("--ids", type=int, default=65_536, help="size of the vocabulary")
    parser.add_argument("--figure", type=Path, default=None, help="writes FIGURE.svg and .png")
    parser.add_argument("--estimate", type=Path, default=None, help="an output to take rates from")
    for field in dataclasses.fields(Cluster):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    if options.estimate is not None:
        last = json.loads(options.estimate.read_text(encoding="utf-8").splitlines()[-1])
        names = [field.name for field in dataclasses.fields(Cluster)]
        cluster = Cluster(**{name: getattr(options, name) for name in names})
        print("\n".join(describe(cluster, Rates(**last["rates"]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, Path(folder))


def _measure(options: argparse.Namespace, root: Path) -> None:
    middle = Point(options.tokens, options.items, 1, 600)
    curves = {
        "tokens": [middle.tokens // 4, middle.tokens // 2, middle.tokens, 2 * middle.tokens],
        "items": [middle.items // 4, middle.items, 2 * middle.items, 4 * middle.items],
        "workers": [1, 2],
        "mean": [150, 600, 2400],
    }
    tokenizer = write_tokenizer(root / "tokenizer", options.ids)
    done: dict[Point, dict[str, float]] = {}
    _time(root, tokenizer, dataclasses.replace(middle, tokens=1_000_000), options.ids)  # warm
    rates = _estimate(root, tokenizer, middle, options.ids).rates
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, values in curves.items():
        rows[name] = []
        for value in values:
            point = dataclasses.replace(middle, **{name: value})
            if point not in done:
                found = _estimate(root, tokenizer, point, options.ids)
                expected = dataclasses.replace(found, rates=rates).seconds
                seconds = _time(root, tokenizer, point, options.ids)
                done[point] = {"seconds": seconds, "expected": expected}
                print(f"{name} {value}: {seconds:.3g} s, expected {expected:.3g}", flush=True)
            rows[name].append({"at": value, **done[point]})
    if options.figure is not None:
        _draw(rows, options.figure)
    close = [min(p["seconds"], p["expected"]) / max(p.values()) for p in done.values()]
    report(
        "scaling",
        min(close),
        TARGET,
        middle=dataclasses.asdict(middle),
        rates=dataclasses.asdict(rates),
        curves=rows,
    )


def _shards(root: Path, tokenizer: Path, point: Point, n_ids: int) -> Path:
    folder = root / f"tokens-{point.tokens}-{point.mean}"
    return write_shards(folder, tokenizer, point.tokens, point.mean, n_ids)


def _estimate(root: Path, tokenizer: Path, point: Point, n_ids: int) -> Estimate:
    tokens = _shards(root, tokenizer, point, n_ids)
    engine = EngineSettings(workers=point.workers)
    found = estimate_count(CountSettings(top_items=point.items), tokens, tokenizer, engine)
    assert isinstance(found, Estimate)  # of documents
    return found


def _time(root: Path, tokenizer: Path, point: Point, n_ids: int) -> float:
    tokens = _shards(root, tokenizer, point, n_ids)
    out = root / "count"
    start = time.perf_counter()
    engine = EngineSettings(workers=point.workers)
    run_count(CountSettings(top_items=point.items), out, tokens, tokenizer, engine)
    seconds = time.perf_counter() - start
    assert read_manifest(out).counts["items"] == min(point.items, n_ids - 2)
    shutil.rmtree(out)
    return seconds


def _draw(rows: dict[str, list[dict[str, Any]]], figure: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "scaling"
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, len(rows), figsize=(14, 3.6), layout="constrained")
    for (name, points), ax in zip(rows.items(), axes, strict=True):
        at = [point["at"] for point in points]
        ax.plot(at, [point["expected"] for point in points], label="formula")
        ax.plot(at, [point["seconds"] for point in points], "o", label="measured")
        ax.set(xlabel=NAMES[name], ylabel="seconds", xscale="log")
        ax.set_ylim(bottom=0)
        ax.set_xticks(at, [f"{value:,}" for value in at], minor=False, rotation=30)
        ax.minorticks_off()
        ax.legend()
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(figure.with_suffix(".svg"), metadata={"Date": None})
    drawn.savefig(figure.with_suffix(".png"), dpi=150)
    plt.close(drawn)


if __name__ == "__main__":
    main()
