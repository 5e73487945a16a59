"""Tokens to compare pivots with: as frequent, with as long a direction, but chosen at random."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.manifest import read_manifest
from mining.common.shards import read_columns
from mining.common.tokenizer import Tokenizer

NEAREST = 16


@dataclass(frozen=True)
class TokenTraits:
    """By token id: the octave of its document frequency int64 [n], -1 where it was not counted;
    the length of its direction float64 [n]; and whether it may be a control.
    """

    octave: npt.NDArray[np.int64]
    norm: npt.NDArray[np.float64]
    usable: npt.NDArray[np.bool_]

    @property
    def has_frequency(self) -> bool:
        """Whether the document frequencies are known."""
        return bool((self.octave >= 0).any())


def frequency_octaves(tokenizer: Tokenizer, count: Path | None, n: int) -> npt.NDArray[np.int64]:
    """floor(log2(document frequency)) of each token, int64 [n]; -1 where the count has none.

    All -1 without a folder of the count stage, or with one that counted other tokens.
    """
    octave = np.full(n, -1, dtype=np.int64)
    if count is None:
        return octave
    counts = read_manifest(count, "count").counts
    if counts["unit"] != "token" or counts["fingerprint"] != tokenizer.fingerprint:
        return octave
    table = read_columns(count / "items.parquet", ["tokens", "doc_freq"]).to_pydict()
    for tokens, doc_freq in zip(table["tokens"], table["doc_freq"], strict=True):
        if len(tokens) == 1 and doc_freq > 0:
            octave[tokens[0]] = int(doc_freq).bit_length() - 1
    return octave


def matched_tokens(
    traits: TokenTraits, tokens: Sequence[int], excluded: Collection[int], rng: np.random.Generator
) -> list[int]:
    """A random token for each of `tokens`: of the same octave of frequency and of similar norm.

    One of the NEAREST by norm among the usable ones that are not excluded and not taken yet; where
    an octave has none, of the nearest octave.
    """
    free = traits.usable.copy()
    free[list(excluded)] = False
    free[list(tokens)] = False
    found = []
    for token in tokens:
        candidates = np.flatnonzero(free)
        if not len(candidates):
            break
        away = np.abs(traits.octave[candidates] - traits.octave[token])
        candidates = candidates[away == away.min()]
        order = np.argsort(np.abs(traits.norm[candidates] - traits.norm[token]), kind="stable")
        chosen = int(rng.choice(candidates[order[:NEAREST]]))
        free[chosen] = False
        found.append(chosen)
    return found
