"""Which records of a corpus are duplicates: by id, by text, by nearly the same text.

Exact duplicates are found over all files at once, from hashes that the files' tasks left; of each
the first record stays. What becomes of a file's records waits on disk for the tasks to come, which
would otherwise each be sent that of all files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.pieces import save_array

KEPT, SAME_ID, SAME_TEXT, NEAR_TEXT = range(4)
Verdict = npt.NDArray[np.uint8]


def rows_path(parts: Path, k: int) -> Path:
    """Of file k: uint64 [n, 5], two words each of the hash of id and of text, and the tokens."""
    return parts / f"{k:05d}.npy"


def read_verdict(parts: Path, k: int) -> Verdict:
    """What becomes of each record of file k: uint8 [n], KEPT or why not."""
    found: Verdict = np.load(_verdict_path(parts, k), allow_pickle=False)
    return found


def judge_duplicates(parts: Path, n_files: int, deduplicate: bool) -> None:
    """Judge the records of all files, in order: whose id or, if asked, whose text stood before."""
    arrays = [np.load(rows_path(parts, k), allow_pickle=False) for k in range(n_files)]
    hashes = np.concatenate(arrays)
    verdict = np.full(len(hashes), KEPT, dtype=np.uint8)
    verdict[~first_occurrences(hashes[:, :2])] = SAME_ID
    if deduplicate:
        alive = np.flatnonzero(verdict == KEPT)
        verdict[alive[~first_occurrences(hashes[alive, 2:4])]] = SAME_TEXT
    for k, part in enumerate(np.split(verdict, np.cumsum([len(array) for array in arrays])[:-1])):
        save_array(_verdict_path(parts, k), part)


def drop_near(parts: Path, k: int, places: list[int]) -> None:
    """Judge some of the records of file k that are kept so far, by place, as near-duplicates."""
    verdict = read_verdict(parts, k)
    verdict[np.flatnonzero(verdict == KEPT)[places]] = NEAR_TEXT
    save_array(_verdict_path(parts, k), verdict)


def first_occurrences(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """For keys uint64 [n, 2]: bool [n], true where no earlier row holds the same key."""
    order = np.lexsort((keys[:, 0], keys[:, 1]))  # stable: equal keys keep their order
    ranked = keys[order]
    first = np.ones(len(keys), dtype=bool)
    first[order[1:]] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return first


def _verdict_path(parts: Path, k: int) -> Path:
    return parts / f"{k:05d}.verdict.npy"
