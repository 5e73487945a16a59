"""What a Spark executor runs first: it finds the project's code there, then starts the work.

This module travels to the executors as code, because they may not have the project, or another
version of it; so it needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = "mining"
Work = Callable[[Iterator[Any]], Iterator[Any]]


def pack_code(root: Path) -> tuple[str, bytes]:
    """The hash of the package's source files below `root`, and these as a zip file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _sources(root):
            archive.write(path, path.relative_to(root).as_posix())
    return hash_code(root), packed.getvalue()


def hash_code(root: Path) -> str:
    """A hash of the names and bytes of the package's source files below `root`."""
    digest = hashlib.sha256()
    for path in _sources(root):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _sources(root: Path) -> list[Path]:
    return sorted((root / PACKAGE).rglob("*.py"))


def shipped(work: bytes, root: str, digest: str, archive: bytes) -> Work:
    """A function for `mapInArrow` that runs the pickled `work` with the code of the driver.

    `root` is where the driver has its code, whose hash is `digest`; `archive` is that code packed.
    """

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        if PACKAGE not in sys.modules:
            # One thread a task, before numba and numpy look at these; cores are Spark's to give.
            for name in ("RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
                os.environ[name] = "1"
            sys.path.insert(0, _find_code(root, digest, archive))
        return pickle.loads(work)(batches)  # type: ignore[no-any-return] # nosec B301 # our driver's

    return run


def _find_code(root: str, digest: str, archive: bytes) -> str:
    """The folder of the driver's code, if this machine has the same, else of what it sent.

    What it sent is unpacked: compiled kernels are cached beside the files they were made from.
    """
    if hash_code(Path(root)) == digest:
        return root
    local = local_folder()
    final = local / f"pivots-{digest}"
    if not final.is_dir():
        temporary = Path(tempfile.mkdtemp(dir=local))
        zipfile.ZipFile(io.BytesIO(archive)).extractall(temporary)
        try:
            temporary.rename(final)
        except OSError:  # another worker of this executor was first
            shutil.rmtree(temporary)
    return str(final)


def local_folder() -> Path:
    """Spark's own folder on this machine, which ends with the executor.

    Spark names it to every worker. Never the system's folder for temporary files: there another
    user could put code under the name that is looked for.
    """
    return Path(os.environ["SPARK_LOCAL_DIRS"].split(",")[0])
