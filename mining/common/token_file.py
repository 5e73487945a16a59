"""`.ds` token files in datatrove's layout: raw little-endian ids, and the ends of the documents.

`NAME.ds` holds uint16 ids (uint32 where the vocabulary has more than 65,536 entries), documents one
after another, each with its end-of-text token. `NAME.ds.index` holds uint64: for each document the
number of tokens up to and including it. Any raw memmap reader (OLMo, nanotron, datatrove) opens the
former as it is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.files import atomic_path, write_bytes


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32 (little-endian)."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write_token_file(
    path: Path, documents: Iterable[npt.NDArray[np.uint32]], vocab_size: int, eos_id: int
) -> int:
    """Write documents (without end-of-text) and the index; return the number of tokens written."""
    dtype = token_dtype(vocab_size)
    ends: list[int] = []
    total = 0
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        for tokens in documents:
            handle.write(np.append(tokens, np.uint32(eos_id)).astype(dtype).tobytes())
            total += len(tokens) + 1
            ends.append(total)
    with atomic_path(path.with_name(path.name + ".index")) as temporary:
        temporary.write_bytes(np.asarray(ends, dtype="<u8").tobytes())
    return total


def open_token_file(
    path: Path, vocab_size: int
) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.uint64]]:
    """Memory-map a token file; returns (tokens [n_tokens], document ends uint64 [n_docs]).

    Raises InputError where a file is missing or the two do not agree.
    """
    index = path.with_name(path.name + ".index")
    for needed in (path, index):
        if not needed.is_file():
            raise InputError(f"{needed}: no such file")
    dtype = token_dtype(vocab_size)
    ends = np.fromfile(index, dtype="<u8")
    if index.stat().st_size % 8 or np.any(ends[1:] < ends[:-1]):
        raise InputError(f"{index}: not the rising uint64 ends of documents")
    total = int(ends[-1]) if len(ends) else 0
    if path.stat().st_size != total * dtype.itemsize:
        raise InputError(
            f"{path}: has {path.stat().st_size} bytes, but {index.name} and a vocabulary of "
            f"{vocab_size} ask for {total * dtype.itemsize}"
        )
    if total == 0:
        return np.zeros(0, dtype=dtype), ends
    return np.memmap(path, dtype=dtype, mode="r"), ends


class ScatteredTokenFile:
    """A token file whose documents arrive in any order, from several processes: each at its place.

    `create` makes the file, then any process opens it and puts documents; `finish` gives it its
    name and index. Memory does not grow with the file. Plain writes of byte ranges, not a memory
    map: maps of two machines would write whole pages over each other.
    """

    def __init__(self, path: Path, vocab_size: int, eos_id: int) -> None:
        self._dtype = token_dtype(vocab_size)
        self._eos = np.array([eos_id], dtype=self._dtype).tobytes()
        self._file = path.open("r+b", buffering=0)

    @staticmethod
    def create(path: Path, n_tokens: int, vocab_size: int) -> None:
        """Make a file of that many tokens, all zero; one that is there keeps what it holds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.truncate(n_tokens * token_dtype(vocab_size).itemsize)

    def put(
        self,
        starts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.uint32],
        offsets: npt.NDArray[np.int64],
    ) -> None:
        """Place documents, each with end-of-text; tokens beyond a document's size are cut off.

        `starts` int64 [n] are places in the file and `sizes` int64 [n] numbers of tokens with
        end-of-text; document d has tokens[offsets[d, 0]:offsets[d, 1]], `offsets` int64 [n, 2].
        """
        data = tokens.astype(self._dtype).view(np.uint8).data
        width = self._dtype.itemsize
        first, last = offsets[:, 0], offsets[:, 0] + sizes - 1
        assert (last <= offsets[:, 1]).all()
        handle = self._file.fileno()
        places = zip((starts * width).tolist(), (first * width).tolist(), (last * width).tolist(),
                     strict=True)  # fmt: skip
        for place, start, end in places:
            # One call for both parts; a document is far below what one call may write at most.
            written = os.pwritev(handle, (data[start:end], self._eos), place)
            if written != end - start + width:
                # What the system does with the last bytes of a disk.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def finish(path: Path, final: Path, sizes: npt.NDArray[np.int64]) -> None:
        """Sync the file, write the index of documents of these sizes, give the file its name."""
        with path.open("r+b") as handle:
            os.fsync(handle.fileno())
        ends = np.cumsum(sizes, dtype=np.int64).astype("<u8")
        write_bytes(final.with_name(final.name + ".index"), ends.tobytes())
        path.replace(final)
