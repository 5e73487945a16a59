"""BLAKE2b of many texts at once: the hashes of mining.common.seeds, without a Python call a text.

RFC 7693, without a key, digests of 8 bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mining.kernels.compiled import kernel

START = np.array(
    [
        0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
        0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
    ],
    dtype=np.uint64,
)  # fmt: skip
# Which word of the block each step of a round takes; rounds 11 and 12 are the first two again.
SCHEDULE = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    ]
)
# The four words that each of a round's eight steps mixes: columns, then diagonals.
MIXED = np.array(
    [
        [0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15],
        [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14],
    ]
)  # fmt: skip
BLOCK = 128
ROUNDS = 12


def hash_texts(
    prefix: bytes, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """`hash64(*parts, text)` of each text, uint64 [n_texts].

    `prefix` is `length_prefixed(parts)`; text t is the UTF-8 in data[offsets[t]:offsets[t + 1]].
    """
    longest = int(np.diff(offsets).max(initial=0))
    room = -(-(len(prefix) + 8 + longest) // BLOCK) * BLOCK
    message = np.zeros(room, dtype=np.uint8)
    message[: len(prefix)] = np.frombuffer(prefix, dtype=np.uint8)
    return _hash_texts(len(prefix), data, offsets, message, message.view("<u8"))


@kernel
def _turn(word: np.uint64, bits: int) -> np.uint64:
    """Rotate right."""
    return (word >> np.uint64(bits)) | (word << np.uint64(64 - bits))


@kernel
def _hash_texts(
    n_prefix: int,
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    message: npt.NDArray[np.uint8],
    words: npt.NDArray[np.uint64],
) -> npt.NDArray[np.uint64]:
    """The same; `message` begins with the prefix, `words` views it as whole numbers."""
    found = np.empty(len(offsets) - 1, dtype=np.uint64)
    state = np.empty(8, dtype=np.uint64)
    v = np.empty(16, dtype=np.uint64)
    for text in range(len(found)):
        size = offsets[text + 1] - offsets[text]
        for k in range(8):
            message[n_prefix + k] = (size >> (8 * k)) & 255
        end = n_prefix + 8
        for k in range(offsets[text], offsets[text + 1]):
            message[end] = data[k]
            end += 1
        n_blocks = (end + BLOCK - 1) // BLOCK
        message[end : n_blocks * BLOCK] = 0
        state[:] = START
        state[0] ^= np.uint64(0x01010008)  # no key, 8 bytes
        for block in range(n_blocks):
            v[:8] = state
            v[8:] = START
            v[12] ^= np.uint64(min(end, (block + 1) * BLOCK))
            if block == n_blocks - 1:
                v[14] = ~v[14]
            for number in range(ROUNDS):
                order = SCHEDULE[number % len(SCHEDULE)]
                for step in range(8):
                    a, b, c, d = MIXED[step]
                    v[a] = v[a] + v[b] + words[16 * block + order[2 * step]]
                    v[d] = _turn(v[d] ^ v[a], 32)
                    v[c] = v[c] + v[d]
                    v[b] = _turn(v[b] ^ v[c], 24)
                    v[a] = v[a] + v[b] + words[16 * block + order[2 * step + 1]]
                    v[d] = _turn(v[d] ^ v[a], 16)
                    v[c] = v[c] + v[d]
                    v[b] = _turn(v[b] ^ v[c], 63)
            for k in range(8):
                state[k] ^= v[k] ^ v[k + 8]
        found[text] = state[0]
    return found
