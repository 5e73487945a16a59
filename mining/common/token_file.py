"""`.ds` token files in datatrove's layout: raw little-endian ids, and the ends of the documents.

`NAME.ds` holds uint16 ids (uint32 where the vocabulary has more than 65,536 entries), documents one
after another, each with its end-of-text token. `NAME.ds.index` holds uint64: for each document the
number of tokens up to and including it. Any raw memmap reader (OLMo, nanotron, datatrove) opens the
former as it is.
"""

from __future__ import annotations

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
    """A token file whose documents arrive in any order: each is put at its place.

    `sizes` int64 [n_docs] are the documents' tokens in the order of the file, each with its
    end-of-text token. Memory does not grow with the file.
    """

    def __init__(
        self, path: Path, sizes: npt.NDArray[np.int64], vocab_size: int, eos_id: int
    ) -> None:
        self._path = path
        self._eos_id = eos_id
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._starts = self._ends - sizes
        self._temporary = path.with_name(f".{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        dtype = token_dtype(vocab_size)
        total = int(self._ends[-1]) if len(sizes) else 0
        self._temporary.write_bytes(b"")
        # NumPy cannot map an empty file.
        self._tokens = (
            np.memmap(self._temporary, dtype=dtype, mode="w+", shape=(total,)) if total else None
        )

    def put(self, position: int, tokens: npt.NDArray[np.uint32]) -> None:
        """Place a document; tokens beyond its size are cut off, the last one is end-of-text."""
        start, end = self._starts[position], self._ends[position]
        assert self._tokens is not None
        assert len(tokens) >= end - start - 1
        self._tokens[start : end - 1] = tokens[: end - start - 1]
        self._tokens[end - 1] = self._eos_id

    def close(self) -> None:
        """Move the finished file to its name and write the index."""
        if self._tokens is not None:
            self._tokens.flush()
        self._temporary.replace(self._path)
        write_bytes(
            self._path.with_name(self._path.name + ".index"),
            self._ends.astype("<u8").tobytes(),
        )
