"""The order in which steps see sequences: a pure function of seed, step and batch.

Nothing is remembered from step to step and nothing is split before the end, so the order is the
same for any number of processes and from any step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mining.common.errors import SettingsError
from mining.common.seeds import child_seed, generator, mix64

Ids = npt.NDArray[np.int64]

# Up to this many sequences an epoch's permutation is drawn and kept (at most 32 MiB, for each
# source of a mixture and each order in use); above, it is computed place by place. The two give
# different orders, so the limit is part of the order.
DRAWN_LIMIT = 1 << 22
FEISTEL_ROUNDS = 6
# A period of a mixture: each source gets a whole number of its places, so weights are exact to
# half of 1 / PERIOD, and after each period exactly kept.
PERIOD = 1 << 16


class Shuffle:
    """Permutations of range(n), one for each epoch, by child seeds of `names`."""

    def __init__(self, seed: int, n: int, *names: object) -> None:
        self._seed, self._n, self._names = seed, n, names
        self._epoch, self._drawn = -1, np.zeros(0, dtype=np.int64)

    def at(self, epoch: int, places: Ids) -> Ids:
        """What stands at `places` of the epoch's permutation, int64 of the same shape."""
        if self._n > DRAWN_LIMIT:
            return feistel(places, self._n, child_seed(self._seed, *self._names, epoch))
        if epoch != self._epoch:
            drawn = generator(self._seed, *self._names, epoch).permutation(self._n)
            self._epoch, self._drawn = epoch, drawn
        return self._drawn[places]

    def endless(self, places: Ids) -> Ids:
        """The epochs one after another without a gap: places from 0 upwards, int64."""
        epochs, within = np.divmod(places, self._n)
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self.at(int(epoch), within[here])
        return result


def feistel(places: Ids, n: int, key: int) -> Ids:
    """A keyed permutation of range(n), computed at `places` only (int64, each below n).

    A balanced Feistel network (Luby and Rackoff 1988) permutes the numbers of an even count of
    bits; what falls outside range(n) goes through it again until it falls inside (Black and Rogaway
    2002), fewer than four times on average.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [np.uint64(child_seed(key, "round", i)) for i in range(FEISTEL_ROUNDS)]
    result = places.astype(np.uint64).ravel()
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> shift, result[todo] & mask
        for round_key in keys:
            left, right = right, left ^ (mix64(right ^ round_key) >> np.uint64(64 - half))
        result[todo] = left << shift | right
        todo = todo[result[todo] >= n]
    return result.astype(np.int64).reshape(places.shape)


@dataclass(frozen=True)
class Mixture:
    """Sources of `sizes` sequences, taken in the proportion of `weights` (all above 0).

    Sequences are numbered through: those of the first source first.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def quotas(self) -> npt.NDArray[np.int64]:
        """Places of each source in a period, int64 [n_sources], by largest remainder.

        SettingsError where a weight is too small for a single one.
        """
        exact = np.asarray(self.weights, dtype=np.float64) * (PERIOD / sum(self.weights))
        quotas = np.floor(exact).astype(np.int64)
        order = np.argsort(quotas - exact, kind="stable")
        quotas[order[: PERIOD - int(quotas.sum())]] += 1
        if (quotas == 0).any():
            raise SettingsError(
                f"sources: found the weights {list(self.weights)}, expected each to be at least "
                f"1/{PERIOD} of their sum"
            )
        return quotas


class DataOrder:
    """Which sequences a step sees: a pure function of seed, step, batch and the sources' sizes.

    Epoch e runs through all sequences in a permutation of its own; epochs follow one another
    without a gap, so a step may hold the end of one and the start of the next. With a mixture, each
    source has its own such order, and which source a place has is drawn by shuffling each PERIOD
    of places. Only what was last used is kept, as a cache.
    """

    def __init__(
        self,
        seed: int,
        n_sequences: int,
        global_batch_sequences: int,
        mixture: Mixture | None = None,
    ) -> None:
        if n_sequences < 1:
            raise ValueError("an order needs at least one sequence")
        self.batch = global_batch_sequences
        self._sources = _MixedOrder(seed, mixture) if mixture is not None else None
        self._shuffle = Shuffle(seed, n_sequences, "order")

    def ids(self, step: int) -> Ids:
        """Sequence numbers of step `step` (the first is 0), int64 [global_batch_sequences]."""
        places = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        if self._sources is not None:
            return self._sources.endless(places)
        return self._shuffle.endless(places)


class _MixedOrder:
    def __init__(self, seed: int, mixture: Mixture) -> None:
        self._quotas = mixture.quotas()
        self._ends = np.cumsum(self._quotas)
        self._firsts = np.cumsum([0, *mixture.sizes[:-1]])
        self._choice = Shuffle(seed, PERIOD, "sources")
        self._shuffles = [
            Shuffle(seed, size, "order", number) for number, size in enumerate(mixture.sizes)
        ]

    def endless(self, places: Ids) -> Ids:
        # Within a period, the numbers from ends[s] - quotas[s] to ends[s] belong to source s: each
        # is one of its sequences, so no counting of the places before is needed.
        number = self._choice.endless(places)
        source = np.searchsorted(self._ends, number, side="right")
        rank = number - (self._ends - self._quotas)[source]
        within = places // PERIOD * self._quotas[source] + rank
        result = np.empty_like(places)
        for s in np.unique(source):
            here = source == s
            result[here] = self._firsts[s] + self._shuffles[s].endless(within[here])
        return result


def process_share(ids: Ids, rank: int, world_size: int, micro_batch: int | None) -> Sequence[Ids]:
    """The micro-batches of process `rank`: its slice of a step's ids, cut into equal pieces.

    Joined over all ranks in order they give `ids`. The batch must divide evenly.
    """
    share = len(ids) // world_size
    mine = ids[rank * share : (rank + 1) * share]
    size = micro_batch or share
    return [mine[start : start + size] for start in range(0, share, size)]
