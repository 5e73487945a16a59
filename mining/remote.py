"""Files wherever fsspec finds them: local, s3://, gs://, hf://, memory:// and the like."""

from __future__ import annotations

import hashlib
from typing import IO, Any

from mining.common.errors import InputError, MissingDependencyError

READ_BYTES = 1 << 20
# What file systems call the mark of a version; the first that is there counts.
VERSION_MARKS = ("mtime", "LastModified", "ETag", "etag", "blob_id", "oid", "updated", "created")


def open_filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path inside it.

    Raises MissingDependencyError where the protocol's package is not installed, and InputError for
    a protocol that nobody knows.
    """
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise MissingDependencyError(f"{path}: {error}; pip install what it names") from None
    except ValueError as error:
        raise InputError(f"{path}: no file system for this URL ({error})") from None
    return filesystem, inner


def file_stamp(path: str) -> list[Any]:
    """Size in bytes and a mark that changes with the content: a time or a hash of the store's.

    Raises InputError for a pipe or a device, which a reader would wait for.
    """
    filesystem, inner = open_filesystem(path)
    info = filesystem.info(inner)
    if info.get("type") == "other":
        raise InputError(f"{path}: is no regular file")
    mark = next((info[name] for name in VERSION_MARKS if info.get(name)), "")
    return [int(info["size"]), str(mark)]


def hash_file(path: str) -> str:
    """Hex SHA-256 of a file's bytes."""
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as raw:
        stream = HashingStream(raw)
        stream.drain()
    return stream.digest.hexdigest()


class HashingStream:
    """A binary stream that hashes what is read from it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self.digest.update(data)
        return data

    def drain(self) -> None:
        while self.read(READ_BYTES):
            pass
