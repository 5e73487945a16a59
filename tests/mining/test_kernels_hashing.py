from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mining.common.seeds import hash64, length_prefixed
from mining.kernels.hashing import hash_texts

# Blocks have 128 bytes: texts around their borders, and of several.
TEXTS = st.one_of(
    st.text(max_size=30), st.integers(80, 400).map(lambda n: "x" * n), st.text(min_size=100)
)


@settings(deadline=None)  # the first call compiles
@given(
    parts=st.lists(st.one_of(st.text(), st.integers()), max_size=3),
    texts=st.lists(TEXTS, max_size=5),
    before=st.binary(max_size=5),
)
def test_many_hashes_equal_single_ones(
    parts: list[str | int], texts: list[str], before: bytes
) -> None:
    pieces = [text.encode() for text in texts]
    data = np.frombuffer(before + b"".join(pieces), dtype=np.uint8)
    offsets = np.array([*itertools.accumulate(map(len, pieces), initial=len(before))], np.int64)
    found = hash_texts(length_prefixed(parts), data, offsets)
    assert found.tolist() == [hash64(*parts, text) for text in texts]


def test_every_length_around_two_block_borders() -> None:
    sizes = np.arange(300)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    data = np.full(offsets[-1], ord("y"), dtype=np.uint8)
    found = hash_texts(length_prefixed((0, "mix")), data, offsets)
    assert found.tolist() == [hash64(0, "mix", "y" * n) for n in sizes.tolist()]
