"""The documents that mixes are chosen from, and orders of them that depend on ids and seed only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mining.common.errors import InputError, MismatchError
from mining.common.seeds import length_prefixed
from mining.common.shards import open_table, read_columns
from mining.kernels.hashing import hash_texts

BLOCK_ROWS = 1 << 16
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """All documents, n of them, in the order of their shards.

    `ids` and `groups` are Arrow strings [n], the latter null where a document has none; `lang` and
    `source` int32 [n] number the names in `languages` and `sources`, which are sorted. `n_tokens`
    int64 [n], without end-of-text; `proportion` float64 [n]; `starts` int64 [n_shards + 1] is the
    first document of each shard.
    """

    ids: pa.ChunkedArray
    groups: pa.ChunkedArray
    lang: npt.NDArray[np.int32]
    source: npt.NDArray[np.int32]
    languages: tuple[str, ...]
    sources: tuple[str, ...]
    n_tokens: Integers
    proportion: npt.NDArray[np.float64]
    starts: Integers

    def __len__(self) -> int:
        return len(self.n_tokens)

    def of_sources(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which documents are of these sources: bool [n]."""
        wanted = np.array([name in names for name in self.sources], dtype=bool)
        return wanted[self.source]

    def id_hashes(self, seed: int, name: str, rows: Integers | None = None) -> Any:
        """`hash64(seed, "mix", name, id)` of the given documents, or of all: uint64."""
        return _hashes((seed, "mix", name), self.ids if rows is None else _take(self.ids, rows))

    def group_hashes(self, seed: int) -> npt.NDArray[np.uint64]:
        """`hash64(seed, "validation", group)` of each document, by id where it has no group."""
        return _hashes((seed, "validation"), pc.coalesce(self.groups, self.ids))

    def table(self, rows: Integers) -> pa.Table:
        """Id, lang, source, proportion of some documents, in the given order."""
        return pa.table(
            {
                "id": _take(self.ids, rows),
                "lang": _names(self.languages, self.lang[rows]),
                "source": _names(self.sources, self.source[rows]),
                "proportion": self.proportion[rows],
            }
        )

    def rank(
        self,
        rows: Integers,
        keys: Sequence[npt.NDArray[Any]],
        repeats: npt.NDArray[np.int32] | None = None,
    ) -> Integers:
        """Indices that put `rows` in the order of the keys, the first key first; ties by id.

        Of one document that stands there several times, `repeats` numbers the places.
        """

        def tie(index: int) -> tuple[str, int]:
            return self.ids[int(rows[index])].as_py(), 0 if repeats is None else int(repeats[index])

        return rank_with_ties(keys, tie)


def rank_with_ties(keys: Sequence[npt.NDArray[Any]], tie: Callable[[int], Any]) -> Integers:
    """The order by the keys, the first key first, and by `tie(index)` where all keys are equal.

    One key is a hash, so that ties are next to never: they are sorted one by one, instead of
    handing the ids of all documents to the sort.
    """
    order: Integers = np.lexsort(tuple(reversed(keys)))
    same = np.ones(max(0, len(order) - 1), dtype=bool)
    for key in keys:
        ranked = key[order]
        same &= ranked[1:] == ranked[:-1]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for start, end in edges.reshape(-1, 2):
        order[start : end + 1] = sorted(order[start : end + 1].tolist(), key=tie)
    return order


def read_documents(shards: Sequence[Path], score: Path, unit: str) -> Documents:
    """The documents of token shards with their scores, which are of tokens or words (`unit`).

    MismatchError where the scores are not those of the shards' documents.
    """
    return collect_documents(_read(shard, score / "scores" / shard.name, unit) for shard in shards)


def _read(shard: Path, path: Path, unit: str) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path}: the scores of {shard} are missing")
    left = read_columns(shard, ["id", "lang", "source", "group"])
    right = read_columns(path, ["id", "n_tokens", "proportion"])
    if not left["id"].equals(right["id"]):
        raise MismatchError(f"{path}: its documents are not those of {shard}")
    # Scores of words count words; to read all token lists just for their lengths costs as much as
    # the rest of the stage.
    n_tokens = right["n_tokens"] if unit == "token" else _lengths(shard)
    return left.append_column("n_tokens", n_tokens).append_column("proportion", right["proportion"])


def _lengths(shard: Path) -> pa.Array:
    with open_table(shard) as file:
        parts = [
            pc.list_value_length(batch.column("tokens")).cast(pa.int64())
            for batch in file.iter_batches(columns=["tokens"])
        ]
    return pa.chunked_array(parts, pa.int64())


def collect_documents(shards: Iterable[pa.Table]) -> Documents:
    """The documents of tables with id, lang, source, group, n_tokens and proportion, a shard each.

    Raises InputError where there is no document.
    """
    columns: dict[str, list[Any]] = {}
    known: dict[str, dict[str, int]] = {"lang": {}, "source": {}}
    starts = [0]
    for table in shards:
        starts.append(starts[-1] + len(table))
        for name in ("id", "group"):
            columns.setdefault(name, []).extend(table[name].cast(pa.string()).chunks)
        for name, numbers in known.items():
            columns.setdefault(name, []).append(_number(table[name], numbers))
        for name, dtype in (("n_tokens", np.int64), ("proportion", np.float64)):
            columns.setdefault(name, []).append(table[name].to_numpy().astype(dtype))
    if starts[-1] == 0:
        raise InputError("mix: the token shards hold no document")
    names = {}
    for name, numbers in known.items():
        # By name, so that the numbers do not depend on the order of the shards.
        names[name] = tuple(sorted(numbers))
        place = np.empty(len(numbers), dtype=np.int32)
        place[[numbers[one] for one in names[name]]] = np.arange(len(numbers))
        columns[name] = [place[part] for part in columns[name]]
    arrays = {
        name: np.concatenate(columns[name]) for name in ("lang", "source", "n_tokens", "proportion")
    }
    return Documents(
        ids=pa.chunked_array(columns["id"], pa.string()),
        groups=pa.chunked_array(columns["group"], pa.string()),
        languages=names["lang"],
        sources=names["source"],
        starts=np.array(starts, dtype=np.int64),
        **arrays,
    )


def _number(column: pa.ChunkedArray, numbers: dict[str, int]) -> npt.NDArray[np.int32]:
    """Numbers of the names in a column, new ones in the order in which they come."""
    parts = [np.zeros(0, dtype=np.int32)]
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode()
        known = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
        parts.append(np.array(known, dtype=np.int32)[encoded.indices.to_numpy()])
    return np.concatenate(parts)


def _take(column: pa.ChunkedArray, rows: Integers) -> pa.ChunkedArray:
    # In blocks: one string array of Arrow's holds 2 GiB at most.
    blocks = [column.take(pa.array(block)).chunks for block in _blocks(rows)]
    return pa.chunked_array([chunk for block in blocks for chunk in block], column.type)


def _names(names: Sequence[str], numbers: npt.NDArray[np.int32]) -> pa.ChunkedArray:
    known = pa.array(names, pa.string())
    return pa.chunked_array([known.take(pa.array(part)) for part in _blocks(numbers)], pa.string())


def _blocks(rows: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def _hashes(parts: tuple[object, ...], texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    prefix = length_prefixed(parts)
    found = [np.zeros(0, dtype=np.uint64)]
    for chunk in texts.chunks:
        _, borders, data = chunk.buffers()
        if len(chunk):
            offsets = np.frombuffer(borders, np.int32)[chunk.offset :][: len(chunk) + 1]
            raw = np.frombuffer(data or b"", np.uint8)
            found.append(hash_texts(prefix, raw, offsets.astype(np.int64)))
    return np.concatenate(found)
