"""The `count` stage: exact document frequencies and co-occurrence counts of items.

Two passes over the shards. The first counts the documents of each id and language and chooses the
items; the second counts pairs, each task the documents of its share of the shards, one file a row
band; then the tasks' bands are added up and written as Parquet. Sums of whole numbers do not depend
on their order, so neither do the tables on shards, tasks or workers. Where the context is a
sequence, "document" means a piece of one; pairs in windows are counted by mining.window_pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.errors import InputError
from mining.common.files import read_json, remove_tree, write_json
from mining.common.logs import log
from mining.common.shards import common_info, list_shards, write_table
from mining.common.stage import FilesInput, Input, StageInput, begin, require_same, settings_dict
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.contexts import Source, read_contexts
from mining.engine_settings import EngineSettings
from mining.items import (
    RARE_WORDS,
    excluded_ids,
    read_item_list,
    read_vocabulary,
    token_columns,
    tokenizer_input,
    word_columns,
)
from mining.kernels.cooccurrence import (
    NOT_AN_ITEM,
    Block,
    add_document_frequencies,
    bands,
    index_block,
    pair_counts,
    unique_items,
)
from mining.pair_table import write_band
from mining.pieces import count_pieces, map_array, save_array
from mining.settings import CountSettings
from mining.tasks import run_tasks
from mining.window_pairs import Window, check_overflow, count_window_pairs, merge_window_pairs

# A block's bit-rows of one tile, 64 bytes a document, should stay in the cache.
BLOCK_DOCUMENTS = 1 << 16
BLOCK_POSTINGS = 1 << 25
MAX_MERGE_TASKS = 64


def run_count(
    settings: CountSettings, out: Path, tokens: Path, tokenizer: Path, engine: EngineSettings
) -> None:
    """Count the documents of items and the documents or windows of their pairs (METHOD section 4).

    Reads the shards of the `tokenize` stage; writes `items.parquet` and `pairs/*.parquet`. Raises
    MismatchError where tokenizer and shards do not belong together, and InputError where no
    document is left to count or an id is outside the vocabulary.
    """
    inputs: dict[str, Input] = {
        "tokens": StageInput(tokens, "tokenize"),
        "tokenizer": tokenizer_input(tokenizer),
    }
    if settings.vocabulary is not None:
        inputs["vocabulary"] = FilesInput.folder(Path(settings.vocabulary))
    run = begin("count", out, settings_dict(settings), inputs)
    if run is None:
        return
    loaded = load_tokenizer(tokenizer)
    folder = tokens / ("words" if settings.unit == "word" else "tokens")
    if settings.unit == "word":
        vocabulary = read_vocabulary(folder)
        excluded = excluded_ids([RARE_WORDS], len(vocabulary))
        shards = list_shards(folder)
    else:
        vocabulary = []
        excluded = excluded_ids(sorted(loaded.special_ids), loaded.vocab_size)
        shards = list_shards(folder)
        found = common_info(shards).fingerprint
        require_same("tokenizer", {str(folder): found, str(tokenizer): loaded.fingerprint})
    fingerprint = common_info(shards).fingerprint
    length = settings.sequence_length if settings.context == "sequence" else None
    source = Source(tuple(shards), settings.sources, len(excluded), length)
    window = Window(settings.window, settings.directed, settings.weights)
    if settings.context == "window":
        check_overflow(window, shards)
    n_wanted = settings.top_items
    if settings.vocabulary is not None:
        listed = read_item_list(Path(settings.vocabulary), vocabulary, excluded)
        excluded, n_wanted = ~listed, int(listed.sum())
    n_tasks = max(1, min(settings.map_tasks or engine.worker_count(), count_pieces(shards)))

    frequencies = run.work / f"frequencies-{n_tasks}"
    task = functools.partial(_count_frequencies, source=source, folder=frequencies)
    run_tasks("count: document frequencies", task, n_tasks, frequencies / "tasks", engine)
    documents, doc_freq = _merge_frequencies(frequencies, n_tasks)
    if not documents:
        raise InputError(f"{folder}: no document to count (count.sources {settings.sources})")
    ids = choose_items(sum(doc_freq.values()), excluded, n_wanted)  # type: ignore[arg-type]
    if len(ids) < 2:
        raise InputError(f"{folder}: {len(ids)} items in the documents, at least 2 are needed")
    _write_items(out / "items.parquet", ids, doc_freq, loaded, vocabulary)

    item_of = np.full(source.n_ids, NOT_AN_ITEM, dtype=np.int32)
    item_of[ids] = np.arange(len(ids), dtype=np.int32)
    numbering = run.work / "item_of.npy"
    save_array(numbering, item_of)
    partial = run.work / f"pairs-{n_tasks}"
    mapped: dict[str, Any] = {
        "source": source, "item_of": numbering, "n_items": len(ids), "folder": partial
    }  # fmt: skip
    merged: dict[str, Any] = {
        "partial": partial, "n_parts": n_tasks, "n_items": len(ids), "out": out / "pairs"
    }  # fmt: skip
    if settings.context == "window":
        task = functools.partial(count_window_pairs, window=window, **mapped)
        merge = functools.partial(merge_window_pairs, directed=window.directed, **merged)
    else:
        task = functools.partial(_count_pairs, **mapped)
        merge = functools.partial(_merge_pairs, **merged)
    if engine.kind == "spark" and settings.context != "window":
        from mining.spark_count import count_pairs_on_spark

        markers = run.work / "spark-bands"
        count_pairs_on_spark(source, numbering, len(ids), n_tasks, out / "pairs", markers, engine)
    else:
        run_tasks("count: pairs", task, n_tasks, partial / "tasks", engine)
        n_merge = min(MAX_MERGE_TASKS, len(bands(len(ids))))
        run_tasks("count: bands", merge, n_merge, partial / f"merge-{n_merge}", engine)
    written = sorted((out / "pairs").glob("*.parquet"))
    n_pairs = sum(pq.read_metadata(path).num_rows for path in written)
    total = sum(documents.values())
    log.info("count: %d documents, %d items, %d pairs", total, len(ids), n_pairs)
    run.finish(
        {
            "documents": total,
            "documents_by_language": documents,
            "languages": sorted(documents),
            "items": len(ids),
            "pairs": n_pairs,
            "unit": settings.unit,
            "fingerprint": fingerprint,
            **_describe_context(settings, window),
            **({"vocabulary_absent": n_wanted - len(ids)} if settings.vocabulary else {}),
        }
    )


def _describe_context(settings: CountSettings, window: Window) -> dict[str, Any]:
    """What a later stage has to know of the counts; window sums are to be divided by `divisor`."""
    found: dict[str, Any] = {"context": settings.context}
    if settings.context == "sequence":
        found["sequence_length"] = settings.sequence_length
    if settings.context == "window":
        found["window"], found["directed"] = window.width, window.directed
        found["weights"], found["divisor"] = window.weighting, int(window.weights()[0])
    return found


def choose_items(
    doc_freq: npt.NDArray[np.uint64], excluded: npt.NDArray[np.bool_], top_items: int
) -> npt.NDArray[np.int64]:
    """The ids of the top items: highest document frequency first, ties by id, none of frequency 0.

    `doc_freq` uint64 [n_ids], `excluded` bool [n_ids]; returns int64 [at most top_items].
    """
    allowed = np.where(excluded, np.uint64(0), doc_freq)
    order = np.argsort(-allowed.astype(np.int64), kind="stable")[:top_items]
    return order[allowed[order] > 0]


def _count_frequencies(rank: int, world: int, source: Source, folder: Path) -> None:
    """Map task of the first pass: documents per language, and per language and id."""
    documents: dict[str, int] = {}
    counts: dict[str, npt.NDArray[np.uint64]] = {}
    for piece, kept in read_contexts(source, rank, world):
        groups = np.where(kept, piece.lang, np.int64(-1))
        found = np.zeros((len(piece.languages), source.n_ids), dtype=np.uint64)
        add_document_frequencies(piece.tokens, piece.offsets, groups, found)
        for code, lang in enumerate(piece.languages):
            n_documents = int(np.count_nonzero(groups == code))
            if n_documents:
                documents[lang] = documents.get(lang, 0) + n_documents
                counts[lang] = counts.get(lang, np.uint64(0)) + found[code]
    for number, lang in enumerate(sorted(documents)):
        save_array(folder / f"{rank:05d}-{number:03d}.npy", counts[lang])
    write_json(folder / f"{rank:05d}.json", [[lang, documents[lang]] for lang in sorted(documents)])


def _merge_frequencies(
    folder: Path, n_tasks: int
) -> tuple[dict[str, int], dict[str, npt.NDArray[np.uint64]]]:
    """Add up the tasks' figures: documents by language, and by language the frequency of ids."""
    documents: dict[str, int] = {}
    counts: dict[str, npt.NDArray[np.uint64]] = {}
    for rank in range(n_tasks):
        listed = read_json(folder / f"{rank:05d}.json")
        for number, (lang, n_documents) in enumerate(listed):
            documents[lang] = documents.get(lang, 0) + n_documents
            part = np.load(folder / f"{rank:05d}-{number:03d}.npy", allow_pickle=False)
            counts[lang] = counts.get(lang, np.uint64(0)) + part
    return dict(sorted(documents.items())), dict(sorted(counts.items()))


def _write_items(
    path: Path,
    ids: npt.NDArray[np.int64],
    doc_freq: dict[str, npt.NDArray[np.uint64]],
    tokenizer: Tokenizer,
    vocabulary: list[str],
) -> None:
    listed = [int(item) for item in ids]
    if vocabulary:
        named = word_columns(tokenizer, vocabulary, listed)
    else:
        named = token_columns(tokenizer, listed)
    columns = {
        "item": pa.array(np.arange(len(ids), dtype=np.uint32)),
        "id": pa.array(ids.astype(np.uint32)),
        **named,
        "doc_freq": pa.array(np.sum([counts[ids] for counts in doc_freq.values()], axis=0)),
        **{f"doc_freq_{lang}": pa.array(counts[ids]) for lang, counts in doc_freq.items()},
    }
    write_table(path, pa.table(columns))


def _blocks(
    source: Source, item_of: npt.NDArray[np.int32], n_items: int, rank: int, world: int
) -> Iterator[Block]:
    """A task's documents in blocks of bounded size."""
    items: list[npt.NDArray[np.uint32]] = []
    offsets = [np.zeros(1, dtype=np.int64)]
    n_held = n_documents = 0
    for piece, kept in read_contexts(source, rank, world):
        found, ends = unique_items(piece.tokens, piece.offsets, kept, item_of, n_items)
        items.append(found)
        offsets.append(ends[1:] + n_held)
        n_held += len(found)
        n_documents += len(ends) - 1
        if n_held >= BLOCK_POSTINGS or n_documents >= BLOCK_DOCUMENTS:
            yield index_block(np.concatenate(items), np.concatenate(offsets), n_items)
            items, offsets, n_held, n_documents = [], [np.zeros(1, dtype=np.int64)], 0, 0
    if n_held:
        yield index_block(np.concatenate(items), np.concatenate(offsets), n_items)


def band_counts(
    rank: int, world: int, source: Source, item_of: Path, n_items: int, index: Path
) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """A task's counts, one band after another: its number and a dense array (see `pair_counts`).

    The inverted index waits on disk, mapped into memory, while the bands are counted.
    """
    blocks = []
    numbering = np.load(item_of, allow_pickle=False)
    for number, block in enumerate(_blocks(source, numbering, n_items, rank, world)):
        paths = [index / f"{number:05d}-{name}.npy" for name in block._fields]
        for name, path in zip(block._fields, paths, strict=True):
            save_array(path, getattr(block, name))
        blocks.append(Block(*map(map_array, paths)))
    for band, (first, last) in enumerate(bands(n_items)):
        yield band, pair_counts(blocks, first, last, n_items)


def _count_pairs(
    rank: int,
    world: int,
    source: Source,
    item_of: Path,
    n_items: int,
    folder: Path,
) -> None:
    """Map task of the second pass: one file of counts a band."""
    index = folder / f"index-{rank:05d}"
    for band, counts in band_counts(rank, world, source, item_of, n_items, index):
        save_array(_band_path(folder, rank, band), counts)
    remove_tree(index)


def _merge_pairs(
    rank: int, world: int, partial: Path, n_parts: int, n_items: int, out: Path
) -> None:
    """Add up the map tasks' counts of every world-th band, and write each as Parquet."""
    for band, (first, last) in list(enumerate(bands(n_items)))[rank::world]:
        total = np.zeros((last - first, n_items - first), dtype=np.uint64)
        for part in range(n_parts):
            total += np.load(_band_path(partial, part, band), mmap_mode="r", allow_pickle=False)
        write_band(out / f"{band:05d}.parquet", total, first, first)


def _band_path(folder: Path, rank: int, band: int) -> Path:
    return folder / f"counts-{rank:05d}" / f"{band:05d}.npy"
