"""Split-half stability: which pivots each half of the documents gives by itself.

The halves are drawn by a hash of the documents' ids. Each half is counted by one process, in one
more pass over the shards: together about the time that one worker of the `count` stage needs for
its pairs, and nothing but the strongest links is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mining.common.files import remove_tree
from mining.common.manifest import read_manifest, require_same
from mining.common.seeds import hash64
from mining.common.shards import common_info, list_shards, open_table
from mining.contexts import cut_documents
from mining.count_memory import DEFAULT_BANDS_BYTES, MAX_POSTINGS, bands_within
from mining.engine_settings import EngineSettings
from mining.kernels.cooccurrence import (
    NOT_AN_ITEM,
    Block,
    bands,
    block_documents,
    index_block,
    unique_items,
)
from mining.kernels.pivots import Links, add_links, empty_links, item_languages
from mining.pair_bands import band_counts, index_folder, read_index, write_index
from mining.pieces import Piece, read_pieces, save_array
from mining.pivot_links import Items, n_strongest
from mining.settings import PivotsSettings
from mining.tasks import run_tasks

ANY_ID = 1 << 32


@dataclass(frozen=True)
class Half:
    """What the pivots are chosen from, of one half of the documents."""

    n_documents: int
    items: Items
    links: Links


def count_halves(
    count: Path,
    tokens: Path,
    items: Items,
    settings: PivotsSettings,
    edge: float,
    work: Path,
    engine: EngineSettings,
) -> list[Half]:
    """Count the items and pairs of a `count` folder again in each half of the documents.

    `tokens` is the `tokenize` folder that was counted, `edge` the statistic of an edge in a half.
    Raises MismatchError where the two do not belong together.
    """
    manifest = read_manifest(count, "count")
    shards = list_shards(tokens / f"{manifest.counts['unit']}s")
    found = common_info(shards).fingerprint
    fingerprints = {str(tokens): found, str(count): manifest.counts["fingerprint"]}
    require_same("the fingerprint of the ids", fingerprints)
    task = partial(
        _count_half,
        shards=shards,
        sources=tuple(manifest.settings.get("sources") or ()),
        length=manifest.counts.get("sequence_length"),
        items=items,
        settings=settings,
        edge=edge,
        work=work,
    )
    run_tasks("pivots: halves", task, 2, work / "tasks", engine)
    return [_read_half(work, half, items, settings) for half in range(2)]


def _count_half(
    rank: int,
    world: int,
    shards: list[Path],
    sources: tuple[str, ...],
    length: int | None,
    items: Items,
    settings: PivotsSettings,
    edge: float,
    work: Path,
) -> None:
    n_items, n_languages = len(items.doc_freq), len(items.languages)
    by_language = np.zeros((n_items, n_languages), dtype=np.uint64)
    n_documents = 0

    def blocks() -> Iterator[Block]:
        nonlocal n_documents
        for found, offsets, lang in _blocks_of_half(_pieces(shards, length), sources, items, rank):
            cells = found.astype(np.int64) * n_languages + np.repeat(lang, np.diff(offsets))
            added = np.bincount(cells, minlength=n_items * n_languages)
            by_language[:] += added.reshape(n_items, n_languages).astype(np.uint64)
            n_documents += len(lang)
            yield index_block(found, offsets, n_items)

    index = index_folder(work, rank)
    write_index(index, blocks())
    doc_freq = by_language.sum(axis=1)
    language = item_languages(doc_freq, by_language, settings.language_share)
    links = empty_links(n_items, n_languages, n_strongest(settings))
    at_a_time = bands_within(DEFAULT_BANDS_BYTES, n_items)
    for band, counts in band_counts(read_index(work, [rank]), n_items, bands_at_a_time=at_a_time):
        first = bands(n_items)[band][0]
        rows, columns = np.nonzero(counts)
        add_links(
            (rows + first).astype(np.uint32),
            (columns + first).astype(np.uint32),
            counts[rows, columns].astype(np.uint64),
            doc_freq.astype(np.float64),
            language,
            float(n_documents),
            edge,
            settings.statistic == "count",
            *links,
        )
    for name, array in links._asdict().items():
        save_array(work / f"{rank}-{name}.npy", array)
    save_array(work / f"{rank}-by_language.npy", by_language)
    save_array(work / f"{rank}-documents.npy", np.array(n_documents))
    remove_tree(index)


def _blocks_of_half(
    pieces: Iterator[tuple[Piece, npt.NDArray[np.int64]]],
    sources: tuple[str, ...],
    items: Items,
    half: int,
) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The half's documents as different items, where each document's end, and their languages."""
    ids = items.table.column("id").to_numpy().astype(np.int64)
    # Every id above those of the items goes to the last place.
    item_of = np.full(int(ids.max()) + 2, NOT_AN_ITEM, dtype=np.int32)
    item_of[ids] = np.arange(len(ids), dtype=np.int32)
    codes = {lang: code for code, lang in enumerate(items.languages)}
    held: list[tuple[npt.NDArray[Any], ...]] = []
    n_held = n_documents = 0
    most_documents = block_documents(len(ids))
    for piece, halves in pieces:
        keep = halves == half
        if sources:
            known = pa.array(sources, pa.string())
            keep &= pc.is_in(piece.source, value_set=known).to_numpy(zero_copy_only=False)
        tokens = np.minimum(piece.tokens, np.uint32(len(item_of) - 1))
        found, ends = unique_items(tokens, piece.offsets, keep, item_of, len(ids))
        lang = np.array([codes.get(name, -1) for name in piece.languages], dtype=np.int64)
        held.append((found, np.diff(ends), lang[piece.lang][keep]))
        n_held += len(found)
        n_documents += len(ends) - 1
        if n_held >= MAX_POSTINGS or n_documents >= most_documents:
            yield _join(held)
            held, n_held, n_documents = [], 0, 0
    if n_documents:
        yield _join(held)


def _join(
    held: list[tuple[npt.NDArray[Any], ...]],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    found, sizes, lang = (np.concatenate(parts) for parts in zip(*held, strict=True))
    return found, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), lang


def _pieces(
    shards: list[Path], length: int | None
) -> Iterator[tuple[Piece, npt.NDArray[np.int64]]]:
    """Every piece of the shards, cut into sequences if `length` is given, and its rows' halves."""
    for piece, halves in zip(read_pieces(shards, ANY_ID, 0, 1), _halves(shards), strict=True):
        if length is None:
            yield piece, halves
            continue
        # The half travels with the language, which the sequences of a document inherit.
        marked = dataclasses.replace(piece, lang=2 * piece.lang + halves)
        cut = cut_documents(marked, length)
        yield dataclasses.replace(cut, lang=cut.lang // 2), cut.lang % 2


def _halves(shards: list[Path]) -> Iterator[npt.NDArray[np.int64]]:
    for path in shards:
        with open_table(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"]).column("id").to_pylist()
                if ids:
                    yield np.array([hash64("half", id_) & 1 for id_ in ids], dtype=np.int64)


def _read_half(work: Path, half: int, items: Items, settings: PivotsSettings) -> Half:
    def load(name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(work / f"{half}-{name}.npy", allow_pickle=False)
        return array

    by_language = load("by_language")
    doc_freq = by_language.sum(axis=1)
    return Half(
        n_documents=int(load("documents")),
        items=dataclasses.replace(
            items,
            doc_freq=doc_freq,
            by_language=by_language,
            language=item_languages(doc_freq, by_language, settings.language_share),
        ),
        links=Links(*map(load, Links._fields)),
    )
