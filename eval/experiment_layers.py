"""What the layers of an experiment's models show, by planted cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from eval.ablation import CLEAN, CONDITIONS
from mining.common.files import read_json
from mining.common.shards import read_columns

KEYS = ["concept", "source_lang", "target_lang"]


def read_layers(folders: Mapping[tuple[str, int], Path]) -> pd.DataFrame:
    """The lens by planted cell, from `trace` folders.

    Columns: arm, seed, cell, n; `pivot_class`, the share of the classified items in pivot
    behaviour (METHOD section 2); `pivot_first`, the share of items whose pivot mass is highest in
    an earlier layer than their target's probability, among those with pivots whose two peaks are in
    different layers; `n_ordered`, how many these are.
    """
    frames: list[pd.DataFrame] = []
    for (arm, seed), folder in folders.items():
        items = read_columns(
            folder / "items.parquet", columns=[*KEYS, "group", "behaviour", "n_pivots"]
        ).to_pandas()
        layers = read_columns(
            folder / "layers.parquet", columns=[*KEYS, "layer", "p_pivot", "p_target"]
        ).to_pandas()
        # The embeddings never vote; an item without pivots has no p_pivot, but idxmax wants one.
        layers = layers[layers["layer"] > 0].fillna({"p_pivot": -1.0})
        peaks = layers.groupby(KEYS)[["p_pivot", "p_target"]].idxmax()
        depth = pd.DataFrame(
            {name: layers.loc[peaks[name], "layer"].to_numpy() for name in peaks}, index=peaks.index
        ).reset_index()
        items = items.merge(depth, on=KEYS, validate="one_to_one")
        ordered = (items["n_pivots"] > 0) & (items["p_pivot"] != items["p_target"])
        items["pivot_first"] = (items["p_pivot"] < items["p_target"]).where(ordered)
        known = items["behaviour"] != "none"
        items["pivot_class"] = (items["behaviour"] == "pivot").where(known)
        found = (
            items.astype({"pivot_first": float, "pivot_class": float})
            .groupby("group", as_index=False)
            .agg(
                n=("behaviour", "size"),
                pivot_class=("pivot_class", "mean"),
                pivot_first=("pivot_first", "mean"),
                n_ordered=("pivot_first", "count"),
            )
        )
        found.insert(0, "arm", arm)
        found.insert(1, "seed", seed)
        frames.append(found.rename(columns={"group": "cell"}))
    return pd.concat(frames, ignore_index=True)


def read_ablations(
    folders: Mapping[tuple[str, int], Path], traces: Mapping[tuple[str, int], Path]
) -> pd.DataFrame:
    """What removing directions does to the right answer, by planted cell, from `intervene` folders.

    Columns: arm, seed, cell, n, and for each condition (eval.ablation) `drop_CONDITION`: the share
    of the mean P(answer) that is lost. Over the items that have every condition. `traces` are the
    `trace` folders of the same keys, which name the cells.
    """
    frames: list[pd.DataFrame] = []
    for key, folder in folders.items():
        columns = [*KEYS, "condition", "p_answer"]
        rows = read_columns(folder / "ablation.parquet", columns=columns).to_pandas()
        groups = read_columns(traces[key] / "items.parquet", columns=[*KEYS, "group"]).to_pandas()
        wide = rows.pivot(index=KEYS, columns="condition", values="p_answer")
        wide = wide.reindex(columns=[CLEAN, *CONDITIONS]).dropna().reset_index()
        wide = wide.merge(groups, on=KEYS, validate="one_to_one")
        means = wide.groupby("group")[[CLEAN, *CONDITIONS]].mean()
        found = pd.DataFrame({"arm": key[0], "seed": key[1], "cell": means.index})
        found["n"] = wide.groupby("group").size().to_numpy()
        for condition in CONDITIONS:
            found[f"drop_{condition}"] = (1 - means[condition] / means[CLEAN]).to_numpy()
        frames.append(found)
    return pd.concat(frames, ignore_index=True)


def read_aucs(folders: Mapping[tuple[str, int], Path]) -> pd.DataFrame:
    """The AUC of co-occurrence as a predictor of direct behaviour, from `attribute` folders.

    Columns: arm, seed, auc (mean over the directions; NaN where a class is missing).
    """
    rows = []
    for (arm, seed), folder in folders.items():
        value = read_json(folder / "summary.json")["auc"]["pair"]["mean"]["value"]
        rows.append({"arm": arm, "seed": seed, "auc": value})
    return pd.DataFrame(rows).astype({"auc": float})
