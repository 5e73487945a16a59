"""Prompts with answers, packed so that what they have in common is computed once.

Sequences that begin alike form a tree: a row of a batch holds its nodes in depth-first order, each
distinct prefix once. Node j's descendants are then the nodes j..ends[j] - 1, so that the whole
attention mask (a node sees its ancestors and itself) follows from `ends`. The last token of a
sequence is predicted only, never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from eval.prompts import Encoded

Ints = npt.NDArray[np.int64]

# Longer rows share more, but every node's attention runs over the whole row.
MAX_ROW = 384
# Up to here it costs little, so that short sequences share a row whatever they have in common.
SHORT_ROW = 128


@dataclass
class Row:
    """A tree of token sequences, without the first `n_start` tokens of each.

    `tokens`, `depths` and `ends` have one entry a node. Each predicted token i is `wanted[i]`, at
    node `nodes[i]`, for the sequence `owners[i]` (its place in the caller's list).
    """

    n_start: int = 0
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def shared(self, ids: Sequence[int]) -> int:
        """How many first tokens of `ids` the sequence added last has too."""
        tokens = self.tokens
        for depth, node in enumerate(self.path):
            if depth == len(ids) or tokens[node] != ids[depth]:
                return depth
        return len(self.path)

    def add(self, ids: Sequence[int], n_shared: int) -> None:
        """Add a sequence's nodes below the first `n_shared` of the one added last."""
        self._close(n_shared)
        for depth in range(n_shared, len(ids)):
            self.path.append(len(self.tokens))
            self.tokens.append(ids[depth])
            self.depths.append(self.n_start + depth)
            self.ends.append(0)

    def ask(self, member: Encoded, owner: int) -> None:
        """Note what is predicted for the sequence added last: position t predicts token t + 1."""
        self.nodes += self.path[member.n_context - 1 - self.n_start :]
        self.wanted += member.answer
        self.owners += [owner] * len(member.answer)

    def close(self) -> None:
        """End the row: every node knows where its descendants end."""
        self._close(0)

    def _close(self, depth: int) -> None:
        for node in self.path[depth:]:
            self.ends[node] = len(self.tokens)
        del self.path[depth:]


def common_start(members: Sequence[Encoded]) -> int:
    """Length of the start that all sequences share, at most one less than the shortest context.

    The last context token stays outside: it predicts the first answer token.
    """
    first, last = min(m.ids for m in members), max(m.ids for m in members)
    length = min(len(first), len(last))
    common = next((i for i in range(length) if first[i] != last[i]), length)
    return min(common, min(m.n_context for m in members) - 1)


def pack(
    members: Sequence[Encoded], branches: bool, n_start: int = 0, max_row: int = MAX_ROW
) -> list[Row]:
    """Rows that hold every sequence but its first `n_start` tokens, in order of length.

    Without `branches` only sequences that continue each other share a row, so that a causal mask
    serves. A row has at most `max_row` nodes unless a single sequence is longer.
    """
    rows: list[Row] = []
    row: Row | None = None
    # Sorted, so that a sequence shares most with its neighbour, and no closed node opens again.
    for owner in sorted(range(len(members)), key=lambda i: (members[i].ids, members[i].n_context)):
        ids = members[owner].ids[n_start:-1]
        shared = row.shared(ids) if row is not None else 0
        new = len(ids) - shared
        if row is None:
            fits = False
        elif branches:
            length = len(row) + new
            fits = length <= max_row and (length <= SHORT_ROW or 2 * shared >= len(ids))
        else:
            fits = new == 0 or shared == len(row)
        if row is None or not fits:
            row, shared = Row(n_start), 0
            rows.append(row)
        row.add(ids, shared)
        row.ask(members[owner], owner)
    for row in rows:
        row.close()
    return sorted(rows, key=len)


@dataclass(frozen=True)
class Batch:
    """Rows as arrays.

    `ids`, `depths`, `ends` are int64 [n_rows, width]; padding has the id 0, the depth 0 and only
    itself as a descendant. `nodes` (row * width + node), `wanted` and `owners` are int64
    [n_predicted].
    """

    ids: Ints
    depths: Ints
    ends: Ints
    lengths: Ints
    nodes: Ints
    wanted: Ints
    owners: Ints


def stack(rows: Sequence[Row]) -> Batch:
    """Pad rows on the right to the longest."""
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    depths = np.zeros_like(ids)
    ends = np.tile(np.arange(1, width + 1, dtype=np.int64), (len(rows), 1))
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.tokens
        depths[i, : len(row)] = row.depths
        ends[i, : len(row)] = row.ends
    return Batch(
        ids=ids,
        depths=depths,
        ends=ends,
        lengths=np.array([len(row) for row in rows], dtype=np.int64),
        nodes=np.concatenate([i * width + np.array(row.nodes) for i, row in enumerate(rows)]),
        wanted=np.concatenate([row.wanted for row in rows]),
        owners=np.concatenate([row.owners for row in rows]),
    )
