"""The pivot statistics of METHOD section 4, from pairs that stream by once.

The state of all K items is small (a few values per item and language), so that pairs never have to
be in memory together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mining.kernels.assoc import npmi
from mining.kernels.compiled import kernel

NO_LANGUAGE = -1
NPMI_BINS = 1 << 16
COUNT_BINS = 1 << 20
LOGS, SLACK = 1 << 14, 1e-9


class Links(NamedTuple):
    """What is known of each item's edges.

    `degree` int64 [K] counts the edges, `reach` int64 [K, L] those to items of each language.
    `strongest` float64 [K, L, m] holds the m strongest links to items of each language in falling
    order (ties by item), `neighbours` int64 [K, L, m] the items they lead to; where there are
    fewer, 0 and item -1.
    """

    degree: npt.NDArray[np.int64]
    reach: npt.NDArray[np.int64]
    strongest: npt.NDArray[np.float64]
    neighbours: npt.NDArray[np.int64]


def empty_links(n_items: int, n_languages: int, n_strongest: int) -> Links:
    """The links of items without any edge yet."""
    return Links(
        degree=np.zeros(n_items, dtype=np.int64),
        reach=np.zeros((n_items, n_languages), dtype=np.int64),
        strongest=np.zeros((n_items, n_languages, n_strongest), dtype=np.float64),
        neighbours=np.full((n_items, n_languages, n_strongest), -1, dtype=np.int64),
    )


@kernel
def add_links(
    i: npt.NDArray[np.uint32],
    j: npt.NDArray[np.uint32],
    n: npt.NDArray[np.uint64],
    doc_freq: npt.NDArray[np.float64],
    language: npt.NDArray[np.int64],
    n_documents: float,
    edge: float,
    by_count: bool,
    degree: npt.NDArray[np.int64],
    reach: npt.NDArray[np.int64],
    strongest: npt.NDArray[np.float64],
    neighbours: npt.NDArray[np.int64],
) -> None:
    """Take some pairs (i, j, count; all [n_pairs], every pair once over all calls) into the links.

    `doc_freq` float64 [K]; `language` int64 [K], NO_LANGUAGE where an item has none. A link is as
    strong as its NPMI or, `by_count`, its number of documents; an edge is at least `edge` strong.
    The order of the pairs does not matter.
    """
    last = strongest.shape[2] - 1
    log_freq = np.log(doc_freq)
    log_documents = np.log(n_documents)
    logs = np.log(np.arange(1, LOGS + 1))
    for pair in range(len(i)):
        a, b = int(i[pair]), int(j[pair])
        of_a, of_b = language[a], language[b]
        value = float(n[pair])
        if not by_count:
            # Sums of logarithms from a table tell of most pairs that they are an edge or none, and
            # no strongest link; where it is close, or it is one, the exact value is needed.
            log_both = logs[n[pair] - 1] if n[pair] <= LOGS else np.log(value)
            log_lift = log_both + log_documents - log_freq[a] - log_freq[b]
            log_share = log_documents - log_both
            least = np.inf
            if of_b >= 0:
                least = min(least, strongest[a, of_b, last])
            if of_a >= 0:
                least = min(least, strongest[b, of_a, last])
            above = log_lift - edge * log_share
            if abs(above) > SLACK and log_lift < least * log_share - SLACK:
                if above < 0:
                    continue
                value = edge
            else:
                value = npmi(value, doc_freq[a], doc_freq[b], n_documents)
        if value >= edge:
            degree[a] += 1
            degree[b] += 1
            if of_b >= 0:
                reach[a, of_b] += 1
            if of_a >= 0:
                reach[b, of_a] += 1
        if value > 0:
            if of_b >= 0 and value >= strongest[a, of_b, last]:
                _insert(strongest[a, of_b], neighbours[a, of_b], value, b)
            if of_a >= 0 and value >= strongest[b, of_a, last]:
                _insert(strongest[b, of_a], neighbours[b, of_a], value, a)


def merge_links(into: Links, other: Links) -> None:
    """Take the links of other pairs of the same items into the first."""
    into.degree[:] += other.degree
    into.reach[:] += other.reach
    _merge_strongest(into.strongest, into.neighbours, other.strongest, other.neighbours)


@kernel
def _merge_strongest(
    strongest: npt.NDArray[np.float64],
    neighbours: npt.NDArray[np.int64],
    others: npt.NDArray[np.float64],
    other_neighbours: npt.NDArray[np.int64],
) -> None:
    n_items, n_languages, n_strongest = strongest.shape
    for item in range(n_items):
        for lang in range(n_languages):
            for place in range(n_strongest):
                value = others[item, lang, place]
                if value > 0:
                    neighbour = other_neighbours[item, lang, place]
                    _insert(strongest[item, lang], neighbours[item, lang], value, neighbour)


@kernel
def add_histogram(
    i: npt.NDArray[np.uint32],
    j: npt.NDArray[np.uint32],
    n: npt.NDArray[np.uint64],
    doc_freq: npt.NDArray[np.float64],
    n_documents: float,
    by_count: bool,
    histogram: npt.NDArray[np.int64],
) -> None:
    """Count pairs by the strength of their link, see `add_links`.

    `histogram` int64: NPMI_BINS equal parts of -1..1, or COUNT_BINS numbers of documents; what is
    larger counts as the largest.
    """
    last = len(histogram) - 1
    for pair in range(len(i)):
        if by_count:
            place = min(n[pair], np.uint64(last))
        else:
            value = npmi(np.float64(n[pair]), doc_freq[i[pair]], doc_freq[j[pair]], n_documents)
            place = np.uint64(min((value + 1) / 2 * len(histogram), float(last)))
        histogram[place] += 1


@kernel
def _insert(
    values: npt.NDArray[np.float64], items: npt.NDArray[np.int64], value: float, item: int
) -> None:
    """Insert into a list that falls by value, then rises by item; the last entry drops out."""
    place = len(values)
    while place > 0 and (
        value > values[place - 1] or (value == values[place - 1] and item < items[place - 1])
    ):
        place -= 1
    if place == len(values):
        return
    for later in range(len(values) - 1, place, -1):
        values[later] = values[later - 1]
        items[later] = items[later - 1]
    values[place] = value
    items[place] = item


def item_languages(
    doc_freq: npt.NDArray[np.uint64], by_language: npt.NDArray[np.uint64], share: float
) -> npt.NDArray[np.int64]:
    """The language (int64 [K]) that holds at least `share` > 0.5 of an item's documents.

    `doc_freq` uint64 [K], `by_language` uint64 [K, L]; NO_LANGUAGE where no language does.
    """
    best = by_language.argmax(axis=1)
    largest = by_language[np.arange(len(best)), best]
    # 0.55 * 100 is a little above 55; the slack is far below one document.
    held = largest.astype(np.float64) >= share * doc_freq.astype(np.float64) * (1 - 1e-12)
    return np.where(held, best, NO_LANGUAGE).astype(np.int64)


def gaps(strongest: npt.NDArray[np.float64], rank: int) -> npt.NDArray[np.float64]:
    """gap_l(i): the strongest link of i to items of language l minus the (rank + 1)-th strongest.

    `strongest` float64 [K, L, > rank] as in Links; returns float64 [K, L].
    """
    return strongest[:, :, 0] - strongest[:, :, rank]


def second_largest(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The second-largest entry of each row of float64 [K, L]: 0 where L < 2."""
    if values.shape[1] < 2:
        return np.zeros(len(values), dtype=np.float64)
    return np.partition(values, -2, axis=1)[:, -2]
