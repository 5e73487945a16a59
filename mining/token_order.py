"""Which token files there are, and which of their sequences a model saw at which step.

As OLMo does it: a file of n ids holds floor(n / L) sequences of L ids, the rest is left out; a
sequence number counts through the files in their order; the order of training is a file of such
numbers, `step_sequences` of them for each step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError, SettingsError
from mining.common.yaml_files import parse_yaml
from mining.corpus_files import find_files
from mining.remote import open_filesystem
from mining.settings import CorpusSettings
from mining.token_settings import TokenFilesSettings

DS_SUFFIXES = (".ds",)
RAW_SUFFIXES = (".npy", ".bin", ".ds")
ORDER_BYTES = 4
NUMPY_HEADER = b"\x93NUMPY"
# The names of these two files as inputs of a stage.
LIST_NAME, ORDER_NAME = "token_files.files", "token_files.order"


@dataclass(frozen=True)
class SequenceFiles:
    """Token files in their order; file f holds the sequences from starts[f] up to starts[f + 1].

    `starts` int64 [n_files + 1].
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    starts: npt.NDArray[np.int64]


def list_token_files(corpus: CorpusSettings) -> dict[str, str]:
    """The token files: name -> path or URL, in the order in which sequences are numbered."""
    settings = corpus.token_files
    if settings.files is not None:
        return {name: _join(corpus.path, name) for name in read_file_list(settings.files)}
    found, _ = find_files(corpus, DS_SUFFIXES if settings.layout == "ds" else RAW_SUFFIXES)
    order = open_filesystem(settings.order) if settings.order is not None else None
    return {name: path for name, path in found.items() if open_filesystem(path) != order}


def token_inputs(corpus: CorpusSettings) -> dict[str, str]:
    """Everything that a stage reads of token files: name -> path."""
    settings = corpus.token_files
    inputs = list_token_files(corpus)
    if settings.layout == "ds":
        inputs |= {f"{name}.index": f"{path}.index" for name, path in inputs.items()}
    if settings.files is not None:
        inputs[LIST_NAME] = settings.files
    if settings.order is not None:
        inputs[ORDER_NAME] = settings.order
    return inputs


def read_file_list(path: str) -> list[str]:
    """The names in an ordered list of token files (see TokenFilesSettings.files)."""
    filesystem, inner = open_filesystem(path)
    if not filesystem.isfile(inner):
        raise InputError(f"{path}: no such file (corpus.token_files.files)")
    text = filesystem.cat_file(inner).decode("utf-8", errors="replace")
    names: object
    if path.endswith((".yaml", ".yml")):
        try:
            names = parse_yaml(text, path)["data"]["paths"]
        except (KeyError, TypeError):
            raise InputError(f"{path}: not a training config with data.paths") from None
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f"{path}: found {names!r:.80}, expected a list of token files")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: names a token file twice")
    return names


def _join(root: str | None, name: str) -> str:
    if root is None or "://" in name or name.startswith("/"):
        return name
    return f"{root.rstrip('/')}/{name}"


def number_sequences(files: dict[str, str], length: int, id_bytes: int) -> SequenceFiles:
    """Number the sequences of token files by their sizes."""
    sizes = []
    for path in files.values():
        filesystem, inner = open_filesystem(path)
        if not filesystem.isfile(inner):
            raise InputError(f"{path}: no such token file")
        sizes.append(filesystem.size(inner) // (length * id_bytes))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return SequenceFiles(tuple(files), tuple(files.values()), starts)


def wanted_positions(settings: TokenFilesSettings, n_sequences: int) -> tuple[int, int]:
    """First and one past the last position of the wanted steps in the order of training."""
    n_positions = n_sequences
    if settings.order is not None:
        filesystem, inner = open_filesystem(settings.order)
        if not filesystem.isfile(inner):
            raise InputError(f"{settings.order}: no such file (corpus.token_files.order)")
        if filesystem.cat_file(inner, 0, len(NUMPY_HEADER)) == NUMPY_HEADER:
            raise InputError(
                f"{settings.order}: has a NumPy header; expected bare uint32 numbers, as OLMo's "
                "global_indices.npy has them (array.tofile writes them)"
            )
        n_positions, rest = divmod(filesystem.size(inner), ORDER_BYTES)
        if rest:
            raise InputError(f"{settings.order}: {rest} bytes too many for uint32 numbers")
    first = settings.first_step * settings.step_sequences
    last = n_positions
    if settings.steps is not None:
        last = first + settings.steps * settings.step_sequences
    if not first < last <= n_positions:
        raise SettingsError(
            f"corpus.token_files: steps {settings.first_step} to {last // settings.step_sequences} "
            f"are the positions {first} to {last}, but the order has {n_positions}"
        )
    return first, last


def read_order(path: str, first: int, last: int) -> bytes:
    """The bytes of the sequence numbers at some positions of an order file."""
    filesystem, inner = open_filesystem(path)
    data: bytes = filesystem.cat_file(inner, first * ORDER_BYTES, last * ORDER_BYTES)
    return data


def locate(files: SequenceFiles, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """For each sequence number its file's place in `files`, and the sequence's place in it.

    Raises InputError for a number beyond the last sequence.
    """
    if len(numbers) and int(numbers.max()) >= files.starts[-1]:
        raise InputError(
            f"the order asks for sequence {int(numbers.max())}, but the {len(files.names)} token "
            f"files hold {int(files.starts[-1])}; name the files of that training in its order "
            "(corpus.token_files.files)"
        )
    places = np.searchsorted(files.starts, numbers, side="right") - 1
    yield from zip(places.tolist(), (numbers - files.starts[places]).tolist(), strict=True)
