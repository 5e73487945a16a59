"""Which files a corpus has: in a local folder, also behind links, or wherever fsspec finds them."""

from __future__ import annotations

import os
import posixpath
import re
from collections import deque
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mining.common.errors import InputError
from mining.common.files import check_names
from mining.common.manifest import MANIFEST, RUN
from mining.remote import open_filesystem
from mining.settings import CorpusSettings

EXAMPLES = 3
# What somebody may take for documents: data in its name, or something compressed.
DATA_NAME = re.compile(
    r"\.(jsonl?|jsonlines|ndjson|parquet|arrow|feather|avro|orc|csv|tsv|txt|xml|warc|wet)"
    r"|\.(gz|zstd?|xz|bz2|lz4|zip|tar|tgz|7z)$",
    re.IGNORECASE,
)
# What lies beside documents: texts about them, checksums, notes of programs.
BESIDE = re.compile(
    r"(readme|licen[cs]e|notice|changelog|citation|(md5|sha\d+)sums?|checksums?)\b.*"
    r"|.*\.(md5|sha\d+|crc|sig|asc|index)"
    rf"|state\.json|dataset_(info|dict|infos)\.json|{re.escape(MANIFEST)}|{re.escape(RUN)}",
    re.IGNORECASE,
)


def find_files(corpus: CorpusSettings, suffixes: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The files of corpus.path by corpus.glob, or else by their suffixes: name -> path, by name.

    Beside them, where there is no glob, the names of files passed over that look like data.
    Raises InputError where there is none, or one of them is a pipe, a device or a broken link.
    """
    from datatrove.io import get_datafolder

    if corpus.path is None:
        raise InputError("corpus.path: not set; name a folder or file of documents")
    filesystem, path = open_filesystem(corpus.path)
    if filesystem.isfile(path):
        return {path.rsplit("/", 1)[-1]: corpus.path}, []
    if not filesystem.isdir(path):
        what = "is no regular file" if filesystem.exists(path) else "no such file or folder"
        raise InputError(f"{corpus.path}: {what} (corpus.path)")
    pattern = _compile(corpus.glob or "**")
    folder = get_datafolder(corpus.path)
    if _is_local(filesystem):
        found = {name: kind for name, kind in _walk(path, corpus.glob) if pattern.match(name)}
    else:
        found = dict.fromkeys(folder.list_files(recursive=True, glob_pattern=corpus.glob), True)
    names, others = sorted(found), []
    if corpus.glob is None:
        names = [name for name in names if name.endswith(tuple(suffixes))]
        rest = sorted(set(found).difference(names))
        others = [name for name in rest if _may_be_meant(name, found[name])]
    if not names:
        wanted = corpus.glob or ", ".join("*" + suffix for suffix in suffixes)
        beside = f"; there are {examples(others)}" if others else ""
        raise InputError(
            f"{corpus.path}: holds no file that matches {wanted} (corpus.glob){beside}"
        )
    check_names(corpus.path, names)
    for name in names:
        if not found[name]:
            raise InputError(
                f"{corpus.path}: {name} is no regular file, but a pipe, a device, or a link that "
                "leads nowhere; remove it, or leave it out (corpus.glob)"
            )
    return {name: folder.resolve_paths(name) for name in names}, others


def reaches(glob: str | None, folder: Sequence[str]) -> bool:
    """Whether a pattern can match a file in a folder, given by its parts, or below it."""
    if glob is None:
        return True
    parts = _spelled_out(glob).split("/")
    patterns = parts if parts[-1] == "**" else parts[:-1]
    for place, name in enumerate(folder):
        if place == len(patterns):
            return False
        if patterns[place] == "**":
            return True
        if not fnmatchcase(name, patterns[place]):
            return False
    return True


def holds(corpus: CorpusSettings, folder: Path) -> bool:
    """Whether files below a folder of this machine are, or would be, the corpus' own."""
    if corpus.path is None or corpus.token_files.files is not None:
        return False
    path = corpus.path.removeprefix("file://")
    root, folder = Path(path).resolve(), folder.resolve()
    if "://" in path or not folder.is_relative_to(root):
        return False
    return reaches(corpus.glob, folder.relative_to(root).parts)


def examples(names: Sequence[str]) -> str:
    """How many names there are, and the first few of them."""
    rest = ", ..." if len(names) > EXAMPLES else ""
    shown = ", ".join(ascii(name)[1:-1] for name in names[:EXAMPLES])
    return f"{len(names)} file(s): {shown}{rest}"


def _spelled_out(glob: str) -> str:
    """A pattern without wildcards is the end of a name, as datatrove has it."""
    return glob if any(sign in glob for sign in "*?[") else f"*{glob}"


def _compile(glob: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    try:
        return re.compile(glob_translate(_spelled_out(glob)))
    except (ValueError, re.error) as error:
        raise InputError(f"corpus.glob: {glob} is no pattern ({error})") from None


def _is_local(filesystem: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def _walk(root: str, glob: str | None) -> Iterator[tuple[str, bool]]:
    """All names below a folder that are no folders', and whether each is a regular file's.

    Links are followed, and each real folder is walked once, so that loops end: those that links
    lead to after all others, so that a folder inside keeps the name that it has without links.
    """
    seen: set[str] = set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(posixpath.join(root, folder))
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(real) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            name, is_link = posixpath.join(folder, entry.name), entry.is_symlink()
            if entry.is_dir(follow_symlinks=False) or (is_link and Path(entry.path).is_dir()):
                if reaches(glob, name.split("/")):
                    (links if is_link else folders).append(name)
            else:
                regular = entry.is_file(follow_symlinks=False)
                yield name, regular or (is_link and Path(entry.path).is_file())


def _may_be_meant(name: str, regular: bool) -> bool:
    """Whether somebody may believe that a file is read: a broken link may have been a folder."""
    base = posixpath.basename(name)
    if any(part.startswith(".") for part in name.split("/")) or BESIDE.fullmatch(base):
        return False
    return not regular or DATA_NAME.search(base) is not None
