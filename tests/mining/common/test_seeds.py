from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mining.common.seeds import hash64, mix64


def splitmix_finaliser(z: int) -> int:
    """The same in Python's whole numbers."""
    mask = (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, (1 << 64) - 1), unique=True))
def test_mix64(numbers: list[int]) -> None:
    mixed = mix64(np.array(numbers, dtype=np.uint64)).tolist()
    assert mixed == [splitmix_finaliser(z) for z in numbers]
    assert len(set(mixed)) == len(numbers)


def test_hashes_keep_parts_apart() -> None:
    assert hash64("ab", "c") != hash64("a", "bc")
    assert hash64(1, "x") == hash64("1", "x")  # by their text
