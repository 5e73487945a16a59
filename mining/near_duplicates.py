"""Near-duplicate documents by datatrove's MinHash steps, on words as ICU cuts them.

Documents that share about 80% of their runs of five words (lower case, without punctuation and
accents, digits as 0) fall into one bucket with a probability of 92%; of all that hang together by
such pairs the first stays. A document of fewer words has no near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from loguru import logger
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mining.engine_settings import EngineSettings
from mining.segment import words
from mining.tasks import run_tasks

CHUNK_SHINGLES = 1 << 16
Texts = Callable[[int], Iterable[str]]


class _IcuWords(WhitespaceTokenizer):  # type: ignore[misc]  # datatrove brings no types
    def word_tokenize(self, text: str) -> list[str]:
        return words(text, "en")  # Chinese and Japanese are cut by ICU's dictionary all the same


class _Signatures(MinhashDedupSignature):  # type: ignore[misc]
    def get_signature(self, shingles: npt.NDArray[np.uint64]) -> list[list[int]]:
        """The signature by pieces: whole, a long document would take gigabytes."""
        pieces = range(0, len(shingles), CHUNK_SHINGLES)
        parts = [super(_Signatures, self).get_signature(shingles[p : p + CHUNK_SHINGLES])
                 for p in pieces]  # fmt: skip
        lowest: list[list[int]] = np.min(np.array(parts, dtype=np.uint64), axis=0).tolist()
        return lowest


def find_near_duplicates(
    n_parts: int, texts: Texts, work: Path, engine: EngineSettings
) -> list[list[int]]:
    """For each part of the corpus the places of documents with an earlier near-duplicate.

    `texts(k)` yields the documents of part k in order; it is called in worker processes.
    """
    logger.disable("datatrove")
    task = partial(_write_signatures, n_parts=n_parts, texts=texts, folder=work / "signatures")
    run_tasks("tokenize: signatures", task, n_parts, work / "signature_tasks", engine)
    task = partial(_match_bucket, folder=work)
    run_tasks("tokenize: buckets", task, MinhashConfig().num_buckets, work / "bucket_tasks", engine)
    found = [
        np.fromfile(path, dtype="<u4").reshape(-1, 2, 2)
        for path in sorted((work / "pairs").glob("*.dups"))
    ]
    later = _later_ones(np.concatenate(found))
    return [later[later[:, 0] == k, 1].tolist() for k in range(n_parts)]


def _write_signatures(rank: int, world: int, n_parts: int, texts: Texts, folder: Path) -> None:
    for k in range(rank, n_parts, world):
        step = _Signatures(str(folder), language=_IcuWords())
        step.run(_documents(texts(k)), rank=k)


def _documents(texts: Iterable[str]) -> Iterator[Any]:
    for number, text in enumerate(texts):
        yield Document(text=text, id=str(number))


def _match_bucket(rank: int, world: int, folder: Path) -> None:
    step = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"))
    step.run(rank=rank, world_size=world)


def _later_ones(pairs: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """All documents of each cluster but its first: (part, place) int64 [n, 2], in order.

    `pairs` [n, 2, 2] are pairs of (part, place).
    """
    documents, numbers = np.unique(
        pairs.reshape(-1, 2).astype(np.int64), axis=0, return_inverse=True
    )
    left, right = numbers.reshape(-1, 2).T
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(len(documents),) * 2)
    _, cluster = connected_components(graph, directed=False)
    _, first = np.unique(cluster, return_index=True)
    later = np.ones(len(documents), dtype=bool)
    later[first] = False
    return documents[later]
