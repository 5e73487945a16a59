"""Windowed co-occurrence: our kernel against Stanford GloVe's `cooccur`, same tokens, same counts.

    python -m launch.bench.windows [--glove CHECKOUT]

Generated documents with Zipf frequencies; every token is an item, as in GloVe, which closes the
gaps that other tokens leave. With a checkout that is built (`make` there), its program is run on
the tokens as text, reading and writing included. Without one, `GloveCounts` stands for it: its
algorithm compiled, on tokens that are numbers already, with nothing read or written, so that it is
faster than the program. One core.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from launch.bench.timing import medians, report
from mining.kernels.compiled import kernel
from mining.kernels.window import Rows, Weighting, distance_weights, pad_documents, window_counts

TARGET = 10.0
DOCUMENT_TOKENS = 500
WEIGHTINGS: tuple[Weighting, ...] = ("harmonic", "flat")
# The values of pairs (i, j) by i * n_items + j, both ways round, in order.
Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Documents:
    """Items 0..n_items - 1 by falling frequency; document d's are items[offsets[d]:...]."""

    items: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    n_items: int


class Counter(Protocol):
    """GloVe's way to count, as a program or compiled here."""

    def __call__(self, documents: Documents, window: int, weighting: Weighting) -> Pairs: ...


def make_documents(n_tokens: int, n_items: int) -> Documents:
    """Documents of about `n_tokens` in all."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1.0 / np.arange(1, n_items + 1))
    drawn = np.searchsorted(shares / shares[-1], rng.random(n_tokens), side="right")
    ranks = np.argsort(np.argsort(-np.bincount(drawn, minlength=n_items), kind="stable"))
    offsets = np.append(np.arange(0, n_tokens, DOCUMENT_TOKENS), n_tokens)
    return Documents(ranks[drawn].astype(np.uint32), offsets.astype(np.int64), n_items)


def count_ours(documents: Documents, window: int, weighting: Weighting) -> Rows:
    """The counts by our kernel: pairs i <= j, in whole numbers."""
    numbering = np.arange(documents.n_items, dtype=np.int32)
    stream = pad_documents(documents.items, documents.offsets, numbering, window)
    return window_counts(stream, distance_weights(window, weighting), False, documents.n_items)


def memory_limits(gigabytes: float) -> tuple[int, int]:
    """GloVe's largest product of ranks in its dense table, and the records of its buffer.

    A table of all i * j < p has about p (ln p + 0.154) cells.
    """
    n_records = 0.85 * gigabytes * 2**30 / 16
    product = 1e5
    for _ in range(100):
        product = n_records / (math.log(product) + 0.1544313298)
    return int(product), int(n_records / 6)


class GloveCounts:
    """GloVe's algorithm: a dense table for pairs of frequent items, a sorted buffer for others.

    numpy sorts and sums the buffer, which takes it less time than `qsort` takes the program.
    """

    def __init__(self, gigabytes: float) -> None:
        self.max_product, self.buffer_records = memory_limits(gigabytes)

    def __call__(self, documents: Documents, window: int, weighting: Weighting) -> Pairs:
        n_items = documents.n_items
        sizes = np.minimum(self.max_product // np.arange(1, n_items + 1), n_items)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        table = np.zeros(starts[-1], dtype=np.float64)
        distances = np.arange(1, window + 1)
        weights = 1.0 / distances if weighting == "harmonic" else np.ones(window)
        longest = int(np.diff(documents.offsets).max(initial=0))
        n_records = min(self.buffer_records, 2 * window * len(documents.items))
        n_records = max(n_records, 2 * window * longest)
        keys, values = np.empty(n_records, dtype=np.int64), np.empty(n_records, dtype=np.float64)
        parts: list[Pairs] = []
        first = 0
        while first < len(documents.offsets) - 1:
            first, n_held = _count_glove(
                documents.items, documents.offsets, first, n_items, weights, self.max_product,
                starts, table, keys, values,
            )  # fmt: skip
            parts.append(_summed(keys[:n_held], values[:n_held]))
        parts.append(_dense_records(starts, table, n_items))
        return _summed(*map(np.concatenate, zip(*parts, strict=True)))


@kernel
def _count_glove(
    items: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    first: int,
    n_items: int,
    weights: npt.NDArray[np.float64],
    max_product: int,
    starts: npt.NDArray[np.int64],
    table: npt.NDArray[np.float64],
    keys: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
) -> tuple[int, int]:
    """Count documents from `first` on until the buffer might overflow.

    Returns the first document left over and the length of the buffer.
    """
    n_held = 0
    for document in range(first, len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        if n_held + 2 * len(weights) * (end - start) > len(keys):
            return document, n_held
        for place in range(start, end):
            i = np.int64(items[place])
            for other in range(place - 1, max(start, place - len(weights)) - 1, -1):
                j = np.int64(items[other])
                weight = weights[place - other - 1]
                if j + 1 < max_product // (i + 1):
                    table[starts[j] + i] += weight
                    table[starts[i] + j] += weight
                else:
                    keys[n_held], values[n_held] = j * n_items + i, weight
                    keys[n_held + 1], values[n_held + 1] = i * n_items + j, weight
                    n_held += 2
    return len(offsets) - 1, n_held


@kernel
def _dense_records(
    starts: npt.NDArray[np.int64], table: npt.NDArray[np.float64], n_items: int
) -> Pairs:
    """The cells of the table that are not 0."""
    size = np.count_nonzero(table)
    keys, values = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float64)
    n_found = 0
    for i in range(n_items):
        for cell in range(starts[i], starts[i + 1]):
            if table[cell] != 0:
                keys[n_found], values[n_found] = i * n_items + cell - starts[i], table[cell]
                n_found += 1
    return keys, values


def _summed(keys: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Pairs:
    """The records in order, those of equal keys added up."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    first = np.flatnonzero(np.diff(ranked, prepend=-1))
    return ranked[first], np.add.reduceat(values[order], first) if len(first) else values[:0]


class GloveProgram:
    """The `cooccur` of a checkout of GloVe, on the documents as a text file."""

    def __init__(
        self, checkout: Path, gigabytes: float, documents: Documents, folder: Path
    ) -> None:
        self._program, self._memory = checkout.resolve() / "build" / "cooccur", gigabytes
        if not self._program.is_file():
            raise SystemExit(f"{self._program}: no such program; run `make` in {checkout}")
        self._folder = folder
        names = np.array([f"w{item}" for item in range(documents.n_items)])
        frequencies = np.bincount(documents.items, minlength=documents.n_items)
        with (folder / "vocabulary.txt").open("w", encoding="ascii") as file:
            file.writelines(f"{n} {f}\n" for n, f in zip(names, frequencies.tolist(), strict=True))
        with (folder / "text.txt").open("w", encoding="ascii") as file:
            for part in np.split(documents.items, documents.offsets[1:-1]):
                file.write(" ".join(names[part]) + "\n")

    def __call__(self, documents: Documents, window: int, weighting: Weighting) -> Pairs:
        command = [
            str(self._program), "-verbose", "0", "-symmetric", "1", "-window-size", str(window),
            "-distance-weighting", "1" if weighting == "harmonic" else "0",
            "-memory", str(self._memory), "-vocab-file", "vocabulary.txt",
        ]  # fmt: skip
        found = self._folder / "pairs.bin"
        with (self._folder / "text.txt").open("rb") as text, found.open("wb") as pairs:
            subprocess.run(
                command, cwd=self._folder, stdin=text, stdout=pairs, stderr=subprocess.DEVNULL,
                check=True,
            )  # fmt: skip
        records = np.fromfile(found, dtype=[("i", "<i4"), ("j", "<i4"), ("value", "<f8")])
        keys = (records["i"].astype(np.int64) - 1) * documents.n_items + records["j"] - 1
        return keys, records["value"]


def check_equal(ours: Rows, divisor: int, others: Pairs, n_items: int) -> None:
    """GloVe counts a pair of two items both ways round, and a pair of equal ones twice."""
    i = np.repeat(np.arange(n_items), np.diff(ours.offsets))
    j = ours.right.astype(np.int64)
    keys, values = others
    upper = keys // n_items <= keys % n_items
    assert np.array_equal(keys[upper], i * n_items + j), "the two ways find different pairs"
    values = values[upper] / np.where(i == j, 2, 1)
    if divisor == 1:
        assert np.array_equal(ours.sums, values), "the two ways count differently"
    assert np.allclose(ours.sums / divisor, values, rtol=1e-9), "the two ways count differently"


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--glove", type=Path, help="checkout of stanfordnlp/GloVe, built")
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--items", type=int, default=32_768)
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--memory", type=float, default=4.0, help="GloVe's, in GB")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    documents = make_documents(options.tokens, options.items)
    with tempfile.TemporaryDirectory() as folder:
        glove: Counter = GloveCounts(options.memory)
        if options.glove is not None:
            glove = GloveProgram(options.glove, options.memory, documents, Path(folder))
        rates: dict[str, dict[str, float]] = {}
        n_pairs = 0
        for weighting in WEIGHTINGS:
            ours = count_ours(documents, options.window, weighting)
            divisor = int(distance_weights(options.window, weighting)[0])
            others = glove(documents, options.window, weighting)
            check_equal(ours, divisor, others, options.items)
            n_pairs = len(ours.right)
            del ours, others
            ways = {
                "ours": lambda w=weighting: count_ours(documents, options.window, w),
                "glove": lambda w=weighting: glove(documents, options.window, w),
            }
            seconds = medians(ways, options.repeats)
            rates[weighting] = {name: options.tokens / time / 1e6 for name, time in seconds.items()}
            listed = ", ".join(f"{name} {rate:.2f}" for name, rate in rates[weighting].items())
            print(f"{weighting}, million tokens/s: {listed}", flush=True)
    ratios = {weighting: rate["ours"] / rate["glove"] for weighting, rate in rates.items()}
    report(
        "windows",
        ratios["harmonic"],
        TARGET,
        ratio_flat=round(ratios["flat"], 2),
        glove="program" if options.glove else "its algorithm, without reading and writing",
        tokens=options.tokens,
        items=options.items,
        window=options.window,
        pairs=n_pairs,
        million_tokens_per_second={
            weighting: {name: round(value, 3) for name, value in rate.items()}
            for weighting, rate in rates.items()
        },
    )


if __name__ == "__main__":
    main()
