"""Finds many patterns in sequences of symbols: words in characters, token sequences in tokens.

One walk down a trie from every place where a pattern may begin. Words begin at word borders only,
where a script has them, and almost every walk ends after a step or two: so this is several times
faster than an automaton that follows every character (see `launch.bench.matching`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel


class Trie(NamedTuple):
    """Patterns by their common beginnings; node 0 is the root.

    Edge e leads to node e + 1 on `symbols[e]` (uint32 [n_edges]); a node's edges are
    first_edge[node] up to first_edge[node + 1] (int64 [n_nodes + 1]), by rising symbol. `roots`
    int32 [n_symbols] is the root's edge on each symbol, -1 where it has none. The patterns that end
    at a node are `patterns` (int64) from first_pattern[node] up to first_pattern[node + 1]
    (int64 [n_nodes + 1]).
    """

    roots: npt.NDArray[np.int32]
    symbols: npt.NDArray[np.uint32]
    first_edge: npt.NDArray[np.int64]
    patterns: npt.NDArray[np.int64]
    first_pattern: npt.NDArray[np.int64]


def build_trie(
    sequences: Sequence[npt.NDArray[np.uint32]], patterns: Sequence[int], n_symbols: int
) -> Trie:
    """The trie of sequences of symbols below `n_symbols`; the s-th stands for patterns[s].

    Several sequences may stand for one pattern, and one sequence for several. Empty ones are never
    found.
    """
    numbers = np.asarray(patterns, dtype=np.int64)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    every = np.concatenate([np.zeros(0, np.uint32), *sequences]).astype(np.int64)
    node = np.zeros(len(lengths), dtype=np.int64)
    symbols: list[npt.NDArray[np.int64]] = []
    parents: list[npt.NDArray[np.int64]] = []
    n_edges = 0
    for depth in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > depth)
        key = node[longer] * n_symbols + every[starts[longer] + depth]
        edges, edge = np.unique(key, return_inverse=True)
        node[longer] = n_edges + 1 + edge
        parents.append(edges // n_symbols)
        symbols.append(edges % n_symbols)
        n_edges += len(edges)
    parent = np.concatenate([np.zeros(0, np.int64), *parents])
    symbol = np.concatenate([np.zeros(0, np.int64), *symbols])
    roots = np.full(n_symbols, -1, dtype=np.int32)
    n_roots = int(np.count_nonzero(parent == 0))
    roots[symbol[:n_roots]] = np.arange(n_roots, dtype=np.int32)
    ends, numbers = node[lengths > 0], numbers[lengths > 0]
    order = np.lexsort((numbers, ends))
    nodes = np.arange(n_edges + 2, dtype=np.int64)
    return Trie(
        roots=roots,
        symbols=symbol.astype(np.uint32),
        first_edge=np.searchsorted(parent, nodes),
        patterns=numbers[order],
        first_pattern=np.searchsorted(ends[order], nodes),
    )


@kernel
def find_patterns(
    text: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    joins: npt.NDArray[np.bool_],
    n_patterns: int,
    roots: npt.NDArray[np.int32],
    symbols: npt.NDArray[np.uint32],
    first_edge: npt.NDArray[np.int64],
    patterns: npt.NDArray[np.int64],
    first_pattern: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each document's different patterns, in the order in which they are first found.

    Document d is text[offsets[d]:offsets[d + 1]] (uint32 symbols below n_symbols). `joins` bool
    [n_symbols]: a pattern is not found where two such symbols meet at one of its ends. The rest is
    a Trie. Returns (patterns int64, offsets int64 [n_docs + 1]).
    """
    found = np.empty(1024, dtype=np.int64)
    ends = np.zeros(len(offsets), dtype=np.int64)
    seen = np.full(n_patterns, -1, dtype=np.int64)
    n_found = 0
    for document in range(len(offsets) - 1):
        first, last = offsets[document], offsets[document + 1]
        joined = False
        for start in range(first, last):
            before = joined
            joined = joins[text[start]]
            if before and joined:
                continue
            edge = np.int64(roots[text[start]])
            place = start + 1
            while edge >= 0:
                node = edge + 1
                if first_pattern[node] < first_pattern[node + 1] and not (
                    place < last and joins[text[place]] and joins[text[place - 1]]
                ):
                    for entry in range(first_pattern[node], first_pattern[node + 1]):
                        pattern = patterns[entry]
                        if seen[pattern] != document:
                            seen[pattern] = document
                            if n_found == len(found):
                                grown = np.empty(2 * n_found, dtype=np.int64)
                                grown[:n_found] = found
                                found = grown
                            found[n_found] = pattern
                            n_found += 1
                if place == last:
                    break
                low, high = first_edge[node], first_edge[node + 1]
                symbol = text[place]
                while low < high:
                    middle = (low + high) >> 1
                    if symbols[middle] < symbol:
                        low = middle + 1
                    else:
                        high = middle
                more = low < first_edge[node + 1] and symbols[low] == symbol
                edge = low if more else np.int64(-1)
                place += 1
        ends[document + 1] = n_found
    return found[:n_found].copy(), ends
