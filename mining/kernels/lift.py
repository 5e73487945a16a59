"""Token shares, lifts and the pivots of word pairs (METHOD section 3)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel


def smallest(keys: npt.NDArray[np.uint64], at_most: int) -> npt.NDArray[np.int64]:
    """The places of the `at_most` smallest keys (uint64 [n]), ascending; ties by place.

    The keys are hashes of documents' ids, so this is a random sample that neither order nor place
    of the documents changes. Samples of one set of keys overlap as much as their words do, which
    makes shares of related words comparable.
    """
    return np.sort(np.argsort(keys, kind="stable")[:at_most])


@kernel
def add_token_counts(
    tokens: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    samples: npt.NDArray[np.int64],
    sample_offsets: npt.NDArray[np.int64],
    counts: npt.NDArray[np.uint32],
) -> None:
    """Add 1 to `counts[s, t]` for each sample s, document d of it and different token t of d.

    `tokens` uint32 are the documents' different tokens (no token twice in a document); document d's
    are tokens[offsets[d]:offsets[d + 1]] and the samples it belongs to
    samples[sample_offsets[d]:sample_offsets[d + 1]]. `counts` uint32 [n_samples, n_ids].
    """
    for document in range(len(offsets) - 1):
        for place in range(sample_offsets[document], sample_offsets[document + 1]):
            row = counts[samples[place]]
            for token in tokens[offsets[document] : offsets[document + 1]]:
                row[token] += np.uint32(1)


def strongest(
    values: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_], at_most: int
) -> npt.NDArray[np.int64]:
    """The tokens with the largest values above 0 among the allowed ones, ties by token.

    `values` float64 [n_ids], `allowed` bool [n_ids]; returns int64 [up to at_most].
    """
    tokens = np.flatnonzero(allowed & (values > 0))
    order = np.argsort(-values[tokens], kind="stable")[:at_most]
    return tokens[order]
