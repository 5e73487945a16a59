"""Reads items.parquet and candidates.parquet of an evaluation into arrays for its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from eval.resampling import ABSENT, MEASURES
from eval.stats import Floats
from mining.common.errors import InputError

ITEM_KEY = ["concept", "source_lang", "target_lang"]
# Normalisation -> how the columns of items.parquet end; "tokens" is the paper's.
NORMALISATIONS = {"tokens": "", "bytes": "_bytes", "sum": "_sum"}
FORMS = {"source": "", "target": "target_"}


@dataclass(frozen=True)
class Answers:
    """All candidates of one form for n items.

    `log_likelihoods`: normalisation -> float64 [n_candidates, n_draws, n], candidate 0 the right
    one, ABSENT where there is none. `n_wrong` float64 [n]: wrong candidates, 0 where not scored.
    """

    log_likelihoods: Mapping[str, Floats]
    n_wrong: Floats


def read_answers(items: pa.Table, candidates: pa.Table, form: str) -> Answers | None:
    """The candidates of a form for the rows of `items`, in their order; None where it has none.

    `items` may be some of the evaluation's. Raises InputError where numbers of draws differ.
    """
    forms = candidates["form"].to_numpy(zero_copy_only=False)
    chosen = candidates.filter(pa.array(forms == form))
    keys = pd.MultiIndex.from_frame(items.select(ITEM_KEY).to_pandas())
    rows = keys.get_indexer(pd.MultiIndex.from_frame(chosen.select(ITEM_KEY).to_pandas()))
    chosen, rows = chosen.filter(pa.array(rows >= 0)), rows[rows >= 0]
    if not chosen.num_rows:
        return None
    place = chosen["position"].to_numpy()
    log_probs, n_tokens = (_by_draw(chosen, name) for name in ("log_probs", "n_tokens"))
    shape = (int(place.max()) + 1, log_probs.shape[1], items.num_rows)
    found = {}
    for name, units in {
        "tokens": n_tokens,
        "bytes": chosen["n_bytes"].to_numpy()[:, None].astype(np.float64),
        "sum": np.ones((1, 1)),
    }.items():
        values = np.full(shape, ABSENT)
        values[place, :, rows] = log_probs / units
        found[name] = values
    n_wrong = np.bincount(rows[place > 0], minlength=items.num_rows).astype(np.float64)
    return Answers(found, n_wrong)


def item_measures(items: pa.Table, form: str, normalisation: str) -> Floats:
    """MEASURES of the items as the table has them: float64 [3, n], NaN where not scored."""
    prefix, suffix = FORMS[form], NORMALISATIONS[normalisation]
    score, rank = (
        items[f"{prefix}{name}{suffix}"].to_pandas().to_numpy(dtype=np.float64)
        for name in ("score", "rank")
    )
    found = np.full((len(MEASURES), items.num_rows), np.nan)
    present = np.isfinite(rank)
    found[0] = score
    found[1, present] = rank[present] == 1
    found[2, present] = 1 / rank[present]
    return found


def _by_draw(table: pa.Table, name: str) -> Floats:
    """A column of lists as float64 [rows, n_draws]."""
    lists = table[name].combine_chunks()
    lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise InputError(f"candidates.parquet: {name} holds lists of the lengths {lengths}")
    flat: Floats = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    return flat.reshape(table.num_rows, int(lengths[0]))
