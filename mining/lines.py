"""Bytes into lines: decompression that tells of damage, and lines of bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

from mining.remote import READ_BYTES, HashingStream

KEPT_BYTES = 64 << 10
ZSTD_SKIPPED = 0x184D2A50  # and the next 15
ZSTD_REPEATED = 1


@dataclass(frozen=True)
class Damage:
    """The point from which a file cannot be read; `rest` is the unfinished record before it."""

    reason: str
    detail: str
    rest: bytes


@dataclass(frozen=True)
class LongRecord:
    """A record over the limit: its first 64 KiB, its length, its hash."""

    head: bytes
    n_bytes: int
    sha256: str


class Held:
    """Collects the pieces of one record after another; none over `max_bytes` is held as a whole."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._n_held = 0
        self._long: Any = None  # digest of the record at work, once it is over the limit
        self._head = b""
        self._long_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._pieces) or self._long is not None

    def add(self, piece: bytes) -> None:
        """Take the record's next piece."""
        if self._long is not None:
            self._long.update(piece)
            self._long_bytes += len(piece)
            return
        self._pieces.append(piece)
        self._n_held += len(piece)
        if self._n_held > self._max_bytes:
            whole = b"".join(self._pieces)
            self._pieces, self._n_held = [], 0
            self._long = hashlib.sha256(whole)
            self._head, self._long_bytes = whole[:KEPT_BYTES], len(whole)

    def close(self) -> bytes | LongRecord:
        """End the record and return it."""
        if self._long is None:
            record = b"".join(self._pieces)
            self._pieces, self._n_held = [], 0
            return record
        result = LongRecord(self._head, self._long_bytes, self._long.hexdigest())
        self._long = None
        return result


def decompress(stream: HashingStream, name: str) -> Iterator[bytes | Damage]:
    """The bytes of a file by its suffix (.gz, .zst, else as they are)."""
    if name.endswith(".gz"):
        return _gunzip(stream)
    if name.endswith(".zst"):
        return _unzstd(stream)
    return iter(lambda: stream.read(READ_BYTES), b"")


def _gunzip(stream: HashingStream) -> Iterator[bytes | Damage]:
    # GzipFile reads concatenated members and checks their sums.
    with gzip.GzipFile(fileobj=stream, mode="rb") as file:  # type: ignore[call-overload]
        while True:
            try:
                # read() would lose what it holds already when the stream breaks off.
                data = file.read1(READ_BYTES)
            except EOFError:
                yield Damage("truncated file", "the gzip stream ends too early", b"")
                return
            except (gzip.BadGzipFile, zlib.error) as error:
                yield Damage("damaged file", str(error), b"")
                return
            if not data:
                return
            yield data


def _unzstd(stream: HashingStream) -> Iterator[bytes | Damage]:
    # The library's stream reader ends silently inside a frame, and its other ways give all that a
    # piece of input spells: of a line of one letter repeated, some kilobytes spell a gigabyte.
    source = _Source(stream)
    try:
        while source.more():
            yield from _zstd_frame(source)
    except EOFError:
        yield Damage("truncated file", "the zstd stream ends inside a frame", b"")
    except zstandard.ZstdError as error:
        yield Damage("damaged file", str(error), b"")


def _zstd_frame(source: _Source) -> Iterator[bytes]:
    """One frame, block by block (RFC 8878, section 3.1); a block is at most 128 KiB of output.

    Raises EOFError where the source ends before, and ZstdError where it holds something else.
    """
    magic = source.take(4)
    if int.from_bytes(magic, "little") & ~0xF == ZSTD_SKIPPED:
        left = int.from_bytes(source.take(4), "little")
        while left:
            left -= len(source.take(min(left, READ_BYTES)))
        return
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    yield decompressor.decompress(magic)
    header = source.take(1)
    descriptor = header[0]
    single_segment, n_size = descriptor >> 5 & 1, (0, 2, 4, 8)[descriptor >> 6]
    n_window = 1 - single_segment
    n_id = (0, 1, 2, 4)[descriptor & 3]
    n_left = n_window + n_id + (n_size or single_segment)
    yield decompressor.decompress(header + source.take(n_left))
    last = False
    while not last:
        head = source.take(3)
        bits = int.from_bytes(head, "little")
        last, kind, size = bool(bits & 1), bits >> 1 & 3, bits >> 3
        yield decompressor.decompress(head + source.take(1 if kind == ZSTD_REPEATED else size))
    if descriptor >> 2 & 1:
        yield decompressor.decompress(source.take(4))


class _Source:
    """A stream read in pieces of given sizes."""

    def __init__(self, stream: HashingStream) -> None:
        self._stream, self._data, self._at = stream, b"", 0

    def more(self) -> bool:
        """Whether there is at least one byte more."""
        if self._at == len(self._data):
            self._data, self._at = self._stream.read(READ_BYTES), 0
        return bool(self._data)

    def take(self, n: int) -> bytes:
        """The next n bytes; EOFError where there are fewer."""
        while len(self._data) - self._at < n:
            more = self._stream.read(READ_BYTES)
            if not more:
                raise EOFError
            self._data, self._at = self._data[self._at :] + more, 0
        self._at += n
        return self._data[self._at - n : self._at]


def split_lines(
    chunks: Iterable[bytes | Damage], max_bytes: int
) -> Iterator[bytes | LongRecord | Damage]:
    """Split chunks at line ends; a line of over `max_bytes` is never held in memory as a whole."""
    held = Held(max_bytes)
    for chunk in chunks:
        if isinstance(chunk, Damage):
            rest = held.close()
            if isinstance(rest, LongRecord):
                yield rest
                rest = b""
            yield Damage(chunk.reason, chunk.detail, rest)
            return
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            held.add(chunk[start:end])
            yield held.close()
            start = end + 1
        if start < len(chunk):
            held.add(chunk[start:])
    if held:
        yield held.close()
