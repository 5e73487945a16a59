"""Counts, for samples of documents, in how many of a sample's documents each token stands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.engine_settings import EngineSettings
from mining.kernels.cooccurrence import add_document_frequencies, unique_items
from mining.kernels.lift import add_token_counts
from mining.pieces import count_pieces, read_pieces, save_array
from mining.tasks import run_tasks

MAX_CELLS = 1 << 28  # of one task's counts at a time: 1 GiB


def count_tokens(
    samples: Sequence[npt.NDArray[np.int64]],
    n_documents: int,
    shards: Sequence[Path],
    n_ids: int,
    work: Path,
    engine: EngineSettings,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Document frequencies of tokens in each sample, and in all documents.

    `samples` are document numbers (ascending, over all shards in order). Returns uint32
    [n_samples, n_ids] and uint64 [n_ids]. Partial results go to `work`.
    """
    n_tasks = max(1, min(engine.worker_count(), count_pieces(shards)))
    save_array(work / "documents.npy", np.concatenate(samples))
    save_array(work / "offsets.npy", np.cumsum([0, *map(len, samples)]))
    folder = work / f"map-{n_tasks}"
    task = partial(
        _count_part,
        n_documents=n_documents,
        shards=tuple(shards),
        n_ids=n_ids,
        work=work,
        folder=folder,
    )
    run_tasks("words: tokens", task, n_tasks, folder / "tasks", engine)
    counts = np.zeros((len(samples), n_ids), dtype=np.uint32)
    doc_freq = np.zeros(n_ids, dtype=np.uint64)
    for rank in range(n_tasks):
        doc_freq += np.load(folder / f"{rank:05d}-all.npy", allow_pickle=False)
        for number, (first, last) in enumerate(_ranges(len(samples), n_ids)):
            path = folder / f"{rank:05d}-{number:03d}.npy"
            counts[first:last] += np.load(path, mmap_mode="r", allow_pickle=False)
    return counts, doc_freq


def _ranges(n_samples: int, n_ids: int) -> list[tuple[int, int]]:
    """Ranges of samples whose counts fit into memory together."""
    size = max(1, MAX_CELLS // n_ids)
    return [(first, min(first + size, n_samples)) for first in range(0, n_samples, size)]


def _count_part(
    rank: int,
    world: int,
    n_documents: int,
    shards: tuple[Path, ...],
    n_ids: int,
    work: Path,
    folder: Path,
) -> None:
    documents = np.load(work / "documents.npy", allow_pickle=False)
    offsets = np.load(work / "offsets.npy", allow_pickle=False)
    every_token = np.arange(n_ids, dtype=np.int32)
    doc_freq = np.zeros((1, n_ids), dtype=np.uint64)
    for number, (first, last) in enumerate(_ranges(len(offsets) - 1, n_ids)):
        members, member_offsets = _by_document(
            documents[offsets[first] : offsets[last]],
            np.diff(offsets[first : last + 1]),
            n_documents,
        )
        counts = np.zeros((last - first, n_ids), dtype=np.uint32)
        for piece in read_pieces(shards, n_ids, rank, world):
            if number == 0:
                groups = np.zeros(len(piece), dtype=np.int64)
                add_document_frequencies(piece.tokens, piece.offsets, groups, doc_freq)
            here = member_offsets[piece.first : piece.first + len(piece) + 1]
            keep = np.diff(here) > 0
            tokens, ends = unique_items(piece.tokens, piece.offsets, keep, every_token, n_ids)
            # Documents without a sample were left out, and take no room in `members` either.
            borders = np.append(here[:-1][keep], here[-1])
            add_token_counts(tokens, ends, members, borders, counts)
        save_array(folder / f"{rank:05d}-{number:03d}.npy", counts)
    save_array(folder / f"{rank:05d}-all.npy", doc_freq[0])


def _by_document(
    documents: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], n_documents: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Turn samples of documents into the samples of each document.

    `documents` int64 holds the samples one after another, `sizes` int64 [n_samples] their lengths.
    Returns (samples int64, offsets int64 [n_documents + 1]).
    """
    sample = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    offsets = np.zeros(n_documents + 1, dtype=np.int64)
    np.cumsum(np.bincount(documents, minlength=n_documents), out=offsets[1:])
    return sample[np.argsort(documents, kind="stable")], offsets
