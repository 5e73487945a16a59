"""Training data: token files as sequences of equal length.

Documents stand back to back, each with its end-of-text token, and are cut into sequences of equal
length without regard to their borders (training.loss says what attention does at a border).
Sequence i of a file is the tokens from i * length to (i + 1) * length inclusive: the last one is
only predicted, and is the first input of sequence i + 1. So every token but a file's first is
predicted exactly once an epoch, apart from the remainder at the end that does not fill a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.token_file import open_token_file, token_dtype
from training.order import Mixture
from training.settings import SourceSettings

TOKEN_FILES = (".ds", ".npy", ".bin")
SAMPLED_BLOCKS, BLOCK_BYTES = 256, 1 << 16


class Sequences:
    """The sequences of token files, memory-mapped: an arm's, and those of further sources."""

    def __init__(
        self,
        path: Path,
        vocab_size: int,
        length: int,
        sources: Sequence[SourceSettings] = (),
        arm_weight: float = 1.0,
    ) -> None:
        """Open `path` (unless its weight is 0) and all files of `sources`.

        InputError where one does not hold a single sequence of `length` tokens.
        """
        self.length, self.vocab_size = length, vocab_size
        self._files: list[tuple[Path, npt.NDArray[Any]]] = []
        self._source_of: list[int] = []  # of each file; 0 is the arm
        sizes: list[int] = []
        weights: list[float] = []
        if arm_weight > 0:
            self._add(path, open_token_file(path, vocab_size)[0], 0)
            sizes, weights = [self._count(0)], [arm_weight]
        for number, source in enumerate(sources, start=1):
            first = len(self._files)
            for file in source_files(source):
                self._add(file, open_source_file(file, source.dtype, vocab_size), number)
            sizes.append(sum(self._count(i) for i in range(first, len(self._files))))
            weights.append(source.weight)
        counts = [self._count(i) for i in range(len(self._files))]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = self._ends - counts
        self.mixture = Mixture(tuple(sizes), tuple(weights)) if sources else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sequences `ids` as int64 [len(ids), length + 1], the token to predict last included.

        InputError where a token is none of the vocabulary.
        """
        rows = np.empty((len(ids), self.length + 1), dtype=np.int64)
        files = np.searchsorted(self._ends, ids, side="right")
        for number in np.unique(files):
            path, tokens = self._files[number]
            here = files == number
            starts = (ids[here] - self._firsts[number]) * self.length
            found = tokens[starts[:, None] + np.arange(self.length + 1)]
            if (largest := int(found.max())) >= self.vocab_size:
                raise InputError(
                    f"{path}: has the token {largest}, but the mix's tokenizer has "
                    f"{self.vocab_size}; use files of the same tokenizer, and give their dtype in "
                    "train.sources"
                )
            rows[here] = found
        return rows

    def locate(
        self, ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Source (0 is the arm) and first token in its file of sequences `ids`, int64 each."""
        files = np.searchsorted(self._ends, ids, side="right")
        return np.asarray(self._source_of)[files], (ids - self._firsts[files]) * self.length

    def describe(self, ids: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        """Where sequences `ids` lie: file, and number of their first token in it."""
        files = np.searchsorted(self._ends, ids, side="right")
        names = ["/".join(self._files[file][0].parts[-2:]) for file in files]
        return [
            {"sequence": int(i), "file": name, "first_token": int(first)}
            for i, name, first in zip(ids, names, self.locate(ids)[1], strict=True)
        ]

    def _add(self, path: Path, tokens: npt.NDArray[Any], source: int) -> None:
        if len(tokens) <= self.length:
            raise InputError(
                f"{path}: has {len(tokens)} tokens, and a sequence of {self.length} and the token "
                f"to predict after it needs {self.length + 1}; use a larger mix or a shorter "
                "train.sequence_length"
            )
        self._files.append((path, tokens))
        self._source_of.append(source)

    def _count(self, number: int) -> int:
        return (len(self._files[number][1]) - 1) // self.length


def source_files(source: SourceSettings) -> list[Path]:
    """The token files of a source: the file that it names, or those of a folder, by name."""
    path = Path(source.path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in TOKEN_FILES)
        if not found:
            raise InputError(
                f"{path}: holds no token file, expected names that end in {', '.join(TOKEN_FILES)}"
            )
        return found
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder (train.sources)")
    return [path]


def open_source_file(path: Path, dtype: str | None, vocab_size: int) -> npt.NDArray[Any]:
    """Memory-map a source's tokens, [n_tokens]: a `.ds` with its index, or ids without any header.

    The ids are little-endian of type `dtype`; null takes the type that the vocabulary needs.
    """
    if path.with_name(path.name + ".index").is_file() and dtype is None:
        return open_token_file(path, vocab_size)[0]
    kind = np.dtype(dtype).newbyteorder("<") if dtype else token_dtype(vocab_size)
    size = path.stat().st_size
    with path.open("rb") as handle:
        if handle.read(6) == b"\x93NUMPY":
            raise InputError(f"{path}: has a NumPy header, expected ids only (a raw memmap)")
    if size % kind.itemsize:
        raise InputError(f"{path}: has {size} bytes, which {kind.name} ids do not fill evenly")
    return np.memmap(path, dtype=kind, mode="r") if size else np.zeros(0, dtype=kind)


@dataclass(frozen=True)
class TokenFilesInput:
    """Token files, identified by size and a sample of their content.

    They may be terabytes, so of a file above 16 MiB the first, the last and evenly spread blocks of
    64 KiB are hashed, 256 in all; a smaller one is hashed whole.
    """

    files: Mapping[str, Path]

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        """Size and hash by name; see mining.common.stage.Input."""
        return {"files": {name: _sampled(path) for name, path in sorted(self.files.items())}}

    def location(self) -> Any:
        """Where the files lie."""
        return {"paths": {name: str(path.resolve()) for name, path in sorted(self.files.items())}}


def _sampled(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    last = max(0, size - BLOCK_BYTES)
    whole = size <= SAMPLED_BLOCKS * BLOCK_BYTES
    starts = (
        range(0, size, BLOCK_BYTES)
        if whole
        else [last * i // (SAMPLED_BLOCKS - 1) for i in range(SAMPLED_BLOCKS)]
    )
    with path.open("rb") as handle:
        for start in starts:
            handle.seek(start)
            digest.update(handle.read(BLOCK_BYTES))
    return {"bytes": size, "sampled_sha256": digest.hexdigest()}
