"""Whose loss a token's is: the language of its document in the arm, or the source it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.errors import MismatchError
from mining.common.shards import read_columns
from training.data import Sequences
from training.settings import SourceSettings


class LossGroups:
    """Numbers the predicted tokens of sequences by `names`.

    Tokens of the arm belong to the language of their document, as the mix notes it in
    `documents.parquet`; those of a further source to that source, by its file's name.
    """

    def __init__(self, arm: Path, sequences: Sequences, sources: Sequence[SourceSettings]) -> None:
        """`arm` is the arm's folder in the mix."""
        # As codes from the start, the ends as they lie on disk: there may be a billion documents.
        table = read_columns(arm / "documents.parquet", ["lang"], as_codes=["lang"])
        langs = table["lang"].unify_dictionaries()
        self._ends = np.fromfile(arm / "tokens.ds.index", dtype="<u8").view("<i8")
        if len(langs) != len(self._ends):
            raise MismatchError(
                f"{arm}: documents.parquet has {len(langs)} documents, tokens.ds.index "
                f"{len(self._ends)}; run `pivots mix` again"
            )
        known = langs.chunk(0).dictionary.to_pylist() if langs.num_chunks else []
        names, ranks = np.unique(known, return_inverse=True)
        pieces = [ranks[chunk.indices.to_numpy()].astype(np.uint16) for chunk in langs.chunks]
        self._codes = np.concatenate([np.empty(0, np.uint16), *pieces])
        self._n_langs, self._sequences = len(names), sequences
        labels = [f"{number}-{Path(s.path).stem}" for number, s in enumerate(sources, start=1)]
        self.names: tuple[str, ...] = (*names.tolist(), *labels)

    def of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The groups of the predicted tokens of sequences `ids`, int64 [len(ids), length]."""
        source, first = self._sequences.locate(ids)
        places = first[:, None] + 1 + np.arange(self._sequences.length)
        groups = np.broadcast_to((self._n_langs + source - 1)[:, None], places.shape).copy()
        here = source == 0
        documents = np.searchsorted(self._ends, places[here], side="right")
        groups[here] = self._codes[documents]
        return groups


def find_groups(
    arm: Path, sequences: Sequences, sources: Sequence[SourceSettings]
) -> LossGroups | None:
    """The groups, or None for a mix that does not note its documents."""
    return LossGroups(arm, sequences, sources) if (arm / "documents.parquet").is_file() else None
