"""Child seeds and stable hashes: one root seed, children by name and index, never by addition.

Hashes depend on their arguments only, so a draw that orders documents by `hash64(seed, id)` gives
the same order from every engine, shard split and number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def hash64(*parts: object) -> int:
    """64-bit BLAKE2b hash of the parts' text; parts are length-prefixed so that none can run on."""
    digest = hashlib.blake2b(length_prefixed(parts), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def length_prefixed(parts: Iterable[object]) -> bytes:
    """What is hashed of the parts: each one's length (8 bytes, little-endian) and its UTF-8."""
    texts = (str(part).encode("utf-8", "surrogatepass") for part in parts)
    return b"".join(len(text).to_bytes(8, "little") + text for text in texts)


def child_seed(root: int, *names: object) -> int:
    """The seed (0 <= seed < 2**63) of the stream that `names` identify under the root seed."""
    return hash64("seed", root, *names) >> 1


def generator(root: int, *names: object) -> np.random.Generator:
    """A NumPy generator (PCG64) on the child seed of `names`."""
    return np.random.default_rng(child_seed(root, *names))


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers that scatters them (SplitMix64's finaliser), uint64 [n].

    `mix64(hashes ^ key)` orders many hashes anew for each key without hashing text again.
    """
    z = values.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))
