"""The corpus in readable parts, text or token ids: one part gives one shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mining.common.manifest import is_file_entry, mapping
from mining.documents import FileReader, Record, Rejected, list_documents
from mining.remote import file_stamp, hash_file
from mining.settings import CorpusSettings
from mining.token_inputs import SequenceReader, TokenFileReader, ids_dtype
from mining.token_order import (
    LIST_NAME,
    list_token_files,
    number_sequences,
    token_inputs,
    wanted_positions,
)

SEQUENCES_PER_SHARD = 1 << 14


@dataclass(frozen=True)
class CorpusInput:
    """The corpus as a stage's input (see mining.common.stage.Input).

    Its files are hashed while they are read; before that a file is known by size and time.
    """

    settings: CorpusSettings

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        known, stamps = mapping(mapping(recorded).get("files")), mapping(mapping(run).get("files"))
        # Only parts of these are read and hashed.
        partial = self.settings.token_files.layout == "sequences"
        result: dict[str, Any] = {}
        for name, path in input_files(self.settings).items():
            stamp = file_stamp(path)
            before = known[name] if is_file_entry(known.get(name)) else {}
            if before and stamps.get(name) == stamp:
                result[name] = before
            elif name == LIST_NAME or (
                "sha256" in before and before["bytes"] == stamp[0] and not partial
            ):
                result[name] = {"bytes": stamp[0], "sha256": hash_file(path)}
            else:
                result[name] = {"bytes": stamp[0], "modified": stamp[1]}
        return {"files": result}

    def location(self) -> Any:
        files = input_files(self.settings)
        stamps = {name: file_stamp(path) for name, path in files.items()}
        return {"path": self.settings.path, "files": stamps}


class Reader(Protocol):
    """Iterates over the records of one part; `hashes` (file -> SHA-256) is whole afterwards."""

    path: str
    name: str

    @property
    def hashes(self) -> dict[str, str]: ...

    def __iter__(self) -> Iterator[Record | Rejected]: ...


def open_readers(corpus: CorpusSettings, tokenizer: Path) -> list[Reader]:
    """The corpus' parts in order; `tokenizer` is the folder of the tokenizer that ids belong to."""
    settings = corpus.token_files
    if settings.layout is None:
        return [FileReader(path, name, corpus) for name, path in list_documents(corpus).items()]
    files = list_token_files(corpus)
    if settings.layout != "sequences":
        return [TokenFileReader(path, name, corpus, tokenizer) for name, path in files.items()]
    id_bytes = ids_dtype(corpus, tokenizer).itemsize
    numbered = number_sequences(files, settings.sequence_length, id_bytes)
    first, last = wanted_positions(settings, int(numbered.starts[-1]))
    return [
        SequenceReader(numbered, start, min(start + SEQUENCES_PER_SHARD, last), corpus, tokenizer)
        for start in range(first, last, SEQUENCES_PER_SHARD)
    ]


def input_files(corpus: CorpusSettings) -> dict[str, str]:
    """All files that the corpus is read from: name -> path."""
    return list_documents(corpus) if corpus.token_files.layout is None else token_inputs(corpus)


def merge_hashes(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """One hash a file from those of the corpus' parts, in order."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for name, digest in part.items():
            found.setdefault(name, []).append(digest)
    return {
        name: digests[0]
        if len(digests) == 1
        else hashlib.sha256("".join(digests).encode()).hexdigest()
        for name, digests in found.items()
    }
