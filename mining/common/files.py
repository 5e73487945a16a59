"""Atomic writes, hashes and canonical JSON: the ways in which the project writes final files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mining.common.errors import InputError

CHUNK_BYTES = 1 << 20
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed, else removed.

    A reader sees the old file or the whole new one, never a part, whatever happens in between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two machines may have processes of one number, and write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)  # or a power cut may lose the name after what was written later
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode("utf-8"))


def dump_json(value: Any) -> str:
    """Canonical JSON: sorted keys, two spaces, no NaN, UTF-8 kept, one final line end."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as canonical JSON to `path` atomically."""
    write_text(path, dump_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError names the file and line where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if HALF_CHARACTER.search(text):  # JSON can spell what no text in UTF-8 holds
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # numbers or brackets without end
        raise InputError(f"{path}: not JSON that can be read ({error})") from None


def is_temporary(name: str) -> bool:
    """Whether a file is one that `atomic_path` writes, and that a killed process may have left."""
    last = PurePosixPath(name).name
    return last.startswith(".") and last.endswith(".tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that writers left in a folder when they were killed.

    Only for a folder that nobody writes to now.
    """
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, if it is there; of a link to a folder, only the link."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def sync(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on the disk before anything after it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_names(folder: str, names: Iterable[str]) -> None:
    """Raise InputError where a file's name is not UTF-8, as no manifest could hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = repr(os.fsencode(name))[1:]
            raise InputError(f"{folder}: the name {shown} is not UTF-8; rename the file") from None
