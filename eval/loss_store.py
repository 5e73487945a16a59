"""Log-probabilities on disk under keys that hash all that they depend on.

A folder of small Parquet files, each named by the hash of its content and written atomically: any
number of processes may add to it, a kill loses only what was being computed, and a damaged file is
noticed and computed again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.stats import Floats
from mining.common.errors import InputError
from mining.common.files import dump_json, write_bytes
from mining.common.logs import log

SCHEMA = pa.schema([("key", pa.string()), ("log_probs", pa.list_(pa.float64()))])


def store_name(value: Any) -> str:
    """Folder name for the results of what a JSON value describes: model, dtype, versions."""
    return hashlib.sha256(dump_json(value).encode()).hexdigest()[:32]


class LossStore:
    """The results of one model: key (of a question) -> log-probabilities float64 [n].

    Raises InputError where the folder, or the one that it is to be made in, is a file.
    """

    def __init__(self, folder: Path) -> None:
        for path in (folder, folder.parent):
            if path.exists() and not path.is_dir():
                raise InputError(f"{path}: found a file, expected a folder for likelihoods (cache)")
        self.folder = folder
        self._known: dict[str, Floats] = {}
        self._read: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the files that have come since; damaged ones are removed with a warning."""
        for path in sorted(self.folder.glob("*.parquet")):
            if path.name in self._read:
                continue
            data = path.read_bytes()
            if _name(data) != path.name:
                log.warning("%s: damaged, so what it held is computed again", path)
                path.unlink(missing_ok=True)
                continue
            table = pq.read_table(io.BytesIO(data)).to_pydict()
            for key, values in zip(table["key"], table["log_probs"], strict=True):
                # The first file by name counts, whoever read what when.
                self._known.setdefault(key, np.array(values))
            self._read.add(path.name)

    def get(self, key: str) -> Floats | None:
        """What is known under a key."""
        return self._known.get(key)

    def add(self, found: Mapping[str, Floats]) -> None:
        """Keep results, on disk too."""
        if not found:
            return
        rows = [{"key": key, "log_probs": values.tolist()} for key, values in found.items()]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
        data = buffer.getvalue()
        write_bytes(self.folder / _name(data), data)
        self._known.update(found)
        self._read.add(_name(data))


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"
