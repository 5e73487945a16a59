"""Stage `judge` of an experiment: how well each definition finds what a world planted.

Precision and recall judge the set. What counts for training is which documents the set leads to,
so each definition also chooses documents to the mix's budget, and the choice is compared with the
one that the planted pivots lead to (METHOD section 6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mining.common.errors import InputError
from mining.common.manifest import read_manifest
from mining.common.shards import list_shards, write_table
from mining.common.stage import StageInput, begin, settings_dict
from mining.common.tokenizer import load_tokenizer
from mining.kernels.pivots import Links, second_largest
from mining.mix_documents import read_documents
from mining.mix_select import Selection, make_pool, select_documents
from mining.mix_settings import MixSettings
from mining.pivot_links import Items, edge_threshold, read_items, read_links
from mining.pivots import Candidates, choose_threshold, find_candidates
from mining.planted import read_planted, shares_in
from mining.settings import Definition, PivotsSettings

DEFINITIONS: tuple[Definition, ...] = ("degree", "breadth", "specificity")
# Multiples of the set threshold of specificity, for how much hangs on it.
FACTORS = (0.5, 1.0, 1.5, 2.0)


def run_judge(
    settings: PivotsSettings,
    mix: MixSettings,
    out: Path,
    world: Path,
    count: Path,
    tokens: Path,
    score: Path,
    tokenizer: Path,
    seed: int,
) -> None:
    """Write `definitions.parquet`: one row a definition and threshold.

    Columns: definition, rule, n_pivots, precision, recall, planted_share (planted pivots among the
    tokens of the chosen documents), oracle_overlap (share of the chosen tokens whose document the
    oracle chooses too).
    """
    run = begin(
        "judge",
        out,
        {"pivots": settings_dict(settings), "mix": settings_dict(mix), "seed": seed},
        {
            "world": StageInput(world, "world"),
            "count": StageInput(count, "count"),
            "tokens": StageInput(tokens, "tokenize"),
            "score": StageInput(score, "score"),
            "tokenizer": StageInput(tokenizer, "tokenizer"),
        },
    )
    if run is None:
        return
    loaded = load_tokenizer(tokenizer)
    planted = read_planted(world, loaded).mask(loaded.vocab_size)
    counts = read_manifest(count, "count").counts
    if counts["unit"] != "token":
        raise InputError(
            f"{count}: counts words, expected tokens (count.unit), as pivots are tokens"
        )
    items = read_items(count, counts["languages"], settings.language_share)
    sets = list(_sets(settings, items, count, counts["documents"], int(planted.sum())))
    masks = [_mask(items, chosen, loaded.vocab_size) for _, _, chosen in sets]

    shards = list_shards(tokens / "tokens")
    documents = read_documents(shards, score, read_manifest(score, "score").counts["unit"])
    pool = make_pool(documents, dataclasses.replace(mix, arms=("pivot",)), seed)
    shares = shares_in(shards, [planted, *masks])

    def choose(share: npt.NDArray[np.float64]) -> Selection:
        of = dataclasses.replace(documents, proportion=share)
        return select_documents(dataclasses.replace(pool, documents=of))["pivot"]

    oracle = choose(shares[0])
    rows = []
    for (definition, rule, _), mask, proportion in zip(sets, masks, shares[1:], strict=True):
        chosen = choose(proportion)
        drawn = ~chosen.always
        sizes, of = chosen.sizes[drawn], chosen.rows[drawn]
        hits = int((mask & planted).sum())
        rows.append(
            {
                "definition": definition,
                "rule": rule,
                "n_pivots": int(mask.sum()),
                "precision": hits / max(1, int(mask.sum())),
                "recall": hits / int(planted.sum()),
                "planted_share": float(np.average(shares[0][of], weights=sizes)),
                "oracle_overlap": float(sizes[np.isin(of, oracle.rows)].sum() / sizes.sum()),
            }
        )
    write_table(out / "definitions.parquet", pa.Table.from_pandas(pd.DataFrame(rows)))
    run.finish({"definitions": len(rows), "planted": int(planted.sum())})


def _sets(
    settings: PivotsSettings, items: Items, count: Path, n_documents: int, n_planted: int
) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """(definition, rule, bool [K]): at the set thresholds, and with as many items as planted."""
    edge = edge_threshold(count, items, n_documents, settings)
    links = read_links(count, items, n_documents, settings, edge)
    none = np.zeros(len(items.doc_freq), dtype=bool)
    settings = dataclasses.replace(settings, top_share=None)
    for definition in DEFINITIONS:
        of = dataclasses.replace(settings, definition=definition)
        found = find_candidates(items, links, none, of)
        yield definition, "as set", found.above(choose_threshold(found, of))
        yield definition, "as many as planted", _largest(found, n_planted)
    found = _strongest_link(find_candidates(items, links, none, settings), links)
    yield "strongest link", "as many as planted", _largest(found, n_planted)
    of = dataclasses.replace(settings, definition="specificity")
    found = find_candidates(items, links, none, of)
    for factor in FACTORS:
        threshold = factor * settings.min_gap
        yield "specificity", f"gap {threshold:g}", found.above(threshold)


def _strongest_link(candidates: Candidates, links: Links) -> Candidates:
    """For comparison: the strongest link in the second-best language, no typical link taken off."""
    return Candidates(second_largest(links.strongest[:, :, 0]), candidates.allowed)


def _largest(found: Candidates, n: int) -> npt.NDArray[np.bool_]:
    """The n allowed items of the largest positive statistic, ties by item: bool [K]."""
    value = np.where(found.allowed, found.statistic, 0.0)
    order = np.argsort(-value, kind="stable")[:n]
    chosen = np.zeros(len(value), dtype=bool)
    chosen[order[value[order] > 0]] = True
    return chosen


def _mask(items: Items, chosen: npt.NDArray[np.bool_], vocab_size: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(vocab_size, dtype=bool)
    mask[items.table.column("id").to_numpy()[chosen]] = True
    return mask
