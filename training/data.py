"""Training data: a token file as sequences, and the order in which steps see them.

Documents stand back to back, each with its end-of-text token, and are cut into sequences of equal
length without regard to their borders; attention may cross a border. Sequence i is the tokens from
i * length to (i + 1) * length inclusive: the last one is only predicted, and is the first input of
sequence i + 1. So every token but the file's first is predicted exactly once an epoch, apart from
the remainder at the end that does not fill a sequence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.seeds import generator
from mining.common.token_file import open_token_file


class DataOrder:
    """Which sequences a step sees: a pure function of seed, step, batch and number of sequences.

    Epoch e runs through all sequences in the permutation that the child seed ("order", e) draws;
    epochs follow one another without a gap, so a step may hold the end of one and the start of the
    next. Only the permutation last used is kept, as a cache.
    """

    def __init__(self, seed: int, n_sequences: int, global_batch_sequences: int) -> None:
        if n_sequences < 1:
            raise ValueError("an order needs at least one sequence")
        self.seed, self.n_sequences, self.batch = seed, n_sequences, global_batch_sequences
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)

    def ids(self, step: int) -> npt.NDArray[np.int64]:
        """Sequence numbers of step `step` (the first is 0), int64 [global_batch_sequences]."""
        places = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        epochs, within = np.divmod(places, self.n_sequences)
        result = np.empty(self.batch, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._order(int(epoch))[within[here]]
        return result

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            drawn = generator(self.seed, "order", epoch).permutation(self.n_sequences)
            self._epoch, self._permutation = epoch, drawn
        return self._permutation


def process_share(
    ids: npt.NDArray[np.int64], rank: int, world_size: int, micro_batch: int | None
) -> list[npt.NDArray[np.int64]]:
    """The micro-batches of process `rank`: its slice of a step's ids, cut into equal pieces.

    Joined over all ranks in order they give `ids`. The batch must divide evenly.
    """
    share = len(ids) // world_size
    mine = ids[rank * share : (rank + 1) * share]
    size = micro_batch or share
    return [mine[start : start + size] for start in range(0, share, size)]


class Sequences:
    """The sequences of a token file, memory-mapped."""

    def __init__(self, path: Path, vocab_size: int, length: int) -> None:
        """Open `path`; InputError where it does not hold a single sequence of `length` tokens."""
        self.tokens, _ = open_token_file(path, vocab_size)
        self.length = length
        if len(self) < 1:
            raise InputError(
                f"{path}: has {len(self.tokens)} tokens, and a sequence of {length} and the token "
                f"to predict after it needs {length + 1}; use a larger mix or a shorter "
                "train.sequence_length"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def batch(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sequences `ids` as int64 [len(ids), length + 1], the token to predict last included."""
        places = ids[:, None] * self.length + np.arange(self.length + 1)
        rows: npt.NDArray[np.int64] = self.tokens[places].astype(np.int64)
        return rows
