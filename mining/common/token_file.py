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
from mining.common.files import atomic_path


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
