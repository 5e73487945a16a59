"""Documents that are token ids already: datatrove's `.ds`, raw memmaps, and OLMo's sequences.

Each comes out as a Record with its tokens and the text that they spell, so that the same rules,
language identification and accounts hold as for documents read as text.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.token_file import token_dtype
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.documents import Record, Rejected, reject_long, rejected
from mining.lines import Damage, Held, LongRecord
from mining.remote import READ_BYTES, HashingStream, open_filesystem
from mining.settings import CorpusSettings
from mining.token_order import NUMPY_HEADER, ORDER_NAME, SequenceFiles, locate, read_order

BATCH_SEQUENCES = 256
MAX_TOKENS = np.uint64(1 << 56)  # of a file; more would not count as int64 in bytes

_load = functools.lru_cache(maxsize=2)(load_tokenizer)


def ids_dtype(corpus: CorpusSettings, tokenizer: Path) -> np.dtype[Any]:
    """The type of the ids in the corpus' token files."""
    if corpus.token_files.dtype is not None:
        return np.dtype(corpus.token_files.dtype).newbyteorder("<")
    return token_dtype(_load(tokenizer).vocab_size)


def spell(tokenizer: Tokenizer, ids: npt.NDArray[np.uint32], separator: int) -> str:
    """The text of token ids, special tokens left out, an empty line where a document ends."""
    cuts = np.flatnonzero(ids == separator)
    special = np.array(sorted(tokenizer.special_ids), dtype=np.uint32)
    parts = [part[~np.isin(part, special)].tolist() for part in np.split(ids, cuts)]
    texts: list[str] = tokenizer.engine.decode_batch(
        [part for part in parts if part], skip_special_tokens=False
    )
    return "\n\n".join(texts)


class _TokenReader:
    """What both readers share; `path` and `name` are as in documents.FileReader."""

    def __init__(self, path: str, name: str, corpus: CorpusSettings, tokenizer: Path) -> None:
        self.path, self.name, self.corpus, self.tokenizer = path, name, corpus, tokenizer
        self.hashes: dict[str, str] = {}

    def record(
        self, identifier: str, raw: npt.NDArray[Any], file: str, line: int
    ) -> Record | Rejected:
        """A Record of ids as they stand in a file, or Rejected where one is no token."""
        tokenizer = _load(self.tokenizer)
        ids = raw.astype(np.uint32)
        if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
            detail = f"the id {int(ids.max())}, but the vocabulary has {tokenizer.vocab_size}"
            return rejected(file, line, "id outside the vocabulary", detail, raw.tobytes())
        return Record(
            id=identifier,
            text=spell(tokenizer, ids, self.separator),
            lang=None,
            source=file.rsplit(".", 1)[0],
            group=None,
            file=file,
            line=line,
            raw=raw.tobytes(),
            tokens=ids,
        )

    @property
    def separator(self) -> int:
        """The id behind each document."""
        found = self.corpus.token_files.separator
        return _load(self.tokenizer).eos_id if found is None else found


class TokenFileReader(_TokenReader):
    """The documents of one `.ds` or raw token file; a document's id is NAME/its place in the file.

    `hashes` are those of the file and its index, once all of it is read.
    """

    def __iter__(self) -> Iterator[Record | Rejected]:
        dtype = ids_dtype(self.corpus, self.tokenizer)
        most = self.corpus.max_record_bytes
        filesystem, path = open_filesystem(self.path)
        with filesystem.open(path, "rb") as raw:
            stream = HashingStream(raw)
            if self.corpus.token_files.layout == "ds":
                found = _split_by_index(stream, self._read_index() * dtype.itemsize, most)
            else:
                found = _split_at(stream, dtype, self.separator, most)
            for row, item in enumerate(found):
                if isinstance(item, Damage):
                    yield rejected(self.name, row + 1, item.reason, item.detail, item.rest)
                elif isinstance(item, LongRecord):
                    yield reject_long(self.name, row + 1, item, most)
                else:
                    ids = np.frombuffer(item, dtype=dtype)
                    if len(ids) and ids[-1] == self.separator:
                        ids = ids[:-1]
                    yield self.record(f"{self.name}/{row}", ids, self.name, row + 1)
            stream.drain()
            self.hashes[self.name] = stream.digest.hexdigest()

    def _read_index(self) -> npt.NDArray[np.int64]:
        path = f"{self.path}.index"
        filesystem, inner = open_filesystem(path)
        if not filesystem.isfile(inner):
            raise InputError(f"{path}: no such file; layout `memmap` reads token files without it")
        data = filesystem.cat_file(inner)
        if len(data) % 8:
            raise InputError(f"{path}: {len(data)} bytes are no whole number of uint64")
        found = np.frombuffer(data, dtype="<u8")
        if np.any(found[1:] < found[:-1]) or (len(found) and found[-1] > MAX_TOKENS):
            raise InputError(f"{path}: the documents' ends do not rise")
        ends = found.astype(np.int64)
        self.hashes[f"{self.name}.index"] = hashlib.sha256(data).hexdigest()
        return ends


def _split_by_index(
    stream: HashingStream, ends: npt.NDArray[np.int64], max_bytes: int
) -> Iterator[bytes | LongRecord | Damage]:
    """Cut a stream at the given byte positions."""
    held = Held(max_bytes)
    for size in np.diff(ends, prepend=0).tolist():
        left = size
        while left and (data := stream.read(min(left, READ_BYTES))):
            held.add(data)
            left -= len(data)
        record = held.close()
        if left:
            rest = record.head if isinstance(record, LongRecord) else record
            detail = f"the index goes on for {left} bytes or more after the file's end"
            yield Damage("truncated file", detail, rest)
            return
        yield record
    if rest := stream.read(READ_BYTES):
        yield Damage("damaged file", "the file goes on after the index's last document", rest)


def _split_at(
    stream: HashingStream, dtype: np.dtype[Any], separator: int, max_bytes: int
) -> Iterator[bytes | LongRecord | Damage]:
    """Cut a stream of ids behind each separator; what stands behind the last one is a document."""
    held = Held(max_bytes)
    data = stream.read(READ_BYTES)
    if data.startswith(NUMPY_HEADER):
        yield Damage("not a raw token file", "it has a NumPy header", data[:128])
        return
    odd = b""
    while data:
        data = odd + data
        whole = len(data) - len(data) % dtype.itemsize
        data, odd = data[:whole], data[whole:]
        start = 0
        ends = (np.flatnonzero(np.frombuffer(data, dtype=dtype) == separator) + 1) * dtype.itemsize
        for end in ends.tolist():
            held.add(data[start:end])
            yield held.close()
            start = end
        if start < len(data):
            held.add(data[start:])
        data = stream.read(READ_BYTES)
    if held:
        yield held.close()
    if odd:
        yield Damage("truncated file", f"{len(odd)} bytes at the end are no id", odd)


class SequenceReader(_TokenReader):
    """The sequences at some positions of the training order; a sequence's id is its number.

    `hashes` are, by file, those of the sequences read from it one after another.
    """

    def __init__(
        self,
        files: SequenceFiles,
        first: int,
        last: int,
        corpus: CorpusSettings,
        tokenizer: Path,
    ) -> None:
        super().__init__(corpus.path or "", f"sequences {first}-{last - 1}", corpus, tokenizer)
        self.files, self.first, self.last = files, first, last

    def __iter__(self) -> Iterator[Record | Rejected]:
        dtype = ids_dtype(self.corpus, self.tokenizer)
        digests: dict[int, Any] = {}
        numbers = self._numbers()
        size = self.corpus.token_files.sequence_length * dtype.itemsize
        places = list(locate(self.files, numbers))
        for start in range(0, len(numbers), BATCH_SEQUENCES):
            batch = slice(start, start + BATCH_SEQUENCES)
            found = self._fetch(places[batch], size)
            for row, (number, (file, place), data) in enumerate(
                zip(numbers[batch].tolist(), places[batch], found, strict=True), start=start
            ):
                digests.setdefault(file, hashlib.sha256()).update(data)
                name, line = self.files.names[file], self.first + row + 1
                if place == 0 and data.startswith(NUMPY_HEADER):
                    raise InputError(f"{self.files.paths[file]}: has a NumPy header, not raw ids")
                yield self.record(str(number), np.frombuffer(data, dtype=dtype), name, line)
        for file, digest in digests.items():
            self.hashes[self.files.names[file]] = digest.hexdigest()

    def _numbers(self) -> npt.NDArray[np.int64]:
        order = self.corpus.token_files.order
        if order is None:
            return np.arange(self.first, self.last, dtype=np.int64)
        data = read_order(order, self.first, self.last)
        self.hashes[ORDER_NAME] = hashlib.sha256(data).hexdigest()
        return np.frombuffer(data, dtype="<u4").astype(np.int64)

    def _fetch(self, places: list[tuple[int, int]], size: int) -> list[bytes]:
        """The bytes of some sequences, in order; remote ones are asked for at the same time."""
        wanted: dict[Any, list[tuple[int, str, int]]] = {}
        for row, (file, place) in enumerate(places):
            filesystem, path = open_filesystem(self.files.paths[file])
            wanted.setdefault(filesystem, []).append((row, path, place * size))
        found = [b""] * len(places)
        for filesystem, ranges in wanted.items():
            paths = [path for _, path, _ in ranges]
            starts = [start for _, _, start in ranges]
            ends = [start + size for start in starts]
            pieces = filesystem.cat_ranges(paths, starts, ends, on_error="raise")
            for (row, path, _), data in zip(ranges, pieces, strict=True):
                if len(data) != size:
                    raise InputError(f"{path}: became shorter while it was read")
                found[row] = data
        return found
