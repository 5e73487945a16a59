"""What the interventions say in sum, with intervals over concepts. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from eval.ablation import CLEAN, CONDITIONS, OTHER, PIVOTS, RANDOM
from eval.behaviour import DIRECT, PIVOT
from eval.stats import Bootstrap, Floats, undefined, weighted_means

KEY = ["concept", "source_lang", "target_lang", "behaviour"]
CLASSES = ("all", DIRECT, PIVOT)
CONTRASTS = ((PIVOTS, RANDOM), (PIVOTS, OTHER))


def summarise(ablation: pa.Table, patching: pa.Table, bootstrap: Bootstrap) -> dict[str, Any]:
    """`ablation`: drops of the answer's probability by class; `patching`: by class and layer."""
    return {
        "confidence": bootstrap.confidence,
        "ablation": ablation_summary(ablation.to_pandas(), bootstrap),
        "patching": patching_summary(patching.to_pandas(), bootstrap),
    }


def drops(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an item: KEY, `p` (clean), and `drop_C`, `log_drop_C` for each condition C.

    A drop is the clean value minus the one with directions removed, of P and of log P; NaN where an
    item lacks the condition.
    """
    wide = rows.pivot(index=KEY, columns="condition", values=["p_answer", "log_p_answer"])
    found = pd.DataFrame(index=wide.index)
    found["p"] = wide[("p_answer", CLEAN)]
    for column, name in (("p_answer", "drop"), ("log_p_answer", "log_drop")):
        for condition in CONDITIONS:
            values = wide.get((column, condition), np.nan)
            found[f"{name}_{condition}"] = wide[(column, CLEAN)] - values
    result: pd.DataFrame = found.reset_index()
    return result


def ablation_summary(rows: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """Means by class of each condition's drops, and of their differences item by item.

    `more_than_random` and `more_than_other` are the drop with the pivots removed minus that with
    the control removed: above 0 where the pivots matter more than any such directions do. `classes`
    is the first of these of the pivot class minus that of the direct class.
    """
    if rows.empty:
        return {"n": 0, "reason": "no item has pivots to remove"}
    table = drops(rows)
    result: dict[str, Any] = {"n": len(table)}
    for name in CLASSES:
        part = table if name == "all" else table[table["behaviour"] == name]
        entry: dict[str, Any] = {"n": len(part), "p_clean": _mean(part, part["p"], bootstrap)}
        for kind in ("drop", "log_drop"):
            entry[kind] = {c: _mean(part, part[f"{kind}_{c}"], bootstrap) for c in CONDITIONS}
            for first, second in CONTRASTS:
                gap = part[f"{kind}_{first}"] - part[f"{kind}_{second}"]
                entry[kind][f"more_than_{second}"] = _mean(part, gap, bootstrap)
        result[name] = entry
    result["classes"] = {kind: _between(table, kind, bootstrap) for kind in ("drop", "log_drop")}
    return result


def patching_summary(rows: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, Any]:
    """By class and layer: how often and how far the answer follows the donor; layer 0 is unpatched.

    `follows`: the share of items in which the donor's answer is more probable than the item's own;
    `p_own` and `p_donor`: their mean probabilities.
    """
    if rows.empty:
        return {"n": 0, "reason": "no two items have answers that begin differently"}
    rows = rows.assign(
        follows=(rows["log_p_donor"] > rows["log_p_own"]).astype(float),
        p_own=np.exp(rows["log_p_own"]),
        p_donor=np.exp(rows["log_p_donor"]),
    )
    result: dict[str, Any] = {"n": int((rows["layer"] == 0).sum())}
    for name in CLASSES:
        part = rows if name == "all" else rows[rows["behaviour"] == name]
        result[name] = []
        for layer, here in part.groupby("layer"):
            entry: dict[str, Any] = {"layer": int(str(layer)), "n": len(here)}
            for column in ("follows", "p_own", "p_donor"):
                entry[column] = _mean(here, here[column], bootstrap)
            result[name].append(entry)
    return result


def _mean(frame: pd.DataFrame, values: pd.Series[float], bootstrap: Bootstrap) -> dict[str, Any]:
    known = values.notna().to_numpy()
    if not known.any():
        return undefined(0, "no item").record()
    column = values.to_numpy(dtype=np.float64)[known][:, None].astype(np.float64)
    names = frame["concept"].to_numpy()[known].tolist()
    return bootstrap.intervals(lambda w: weighted_means(column, w), names)[0].record()


def _between(table: pd.DataFrame, kind: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Pivots minus random control: the pivot class's mean minus the direct class's."""
    gap = (table[f"{kind}_{PIVOTS}"] - table[f"{kind}_{RANDOM}"]).to_numpy(dtype=np.float64)
    is_pivot = (table["behaviour"] == PIVOT).to_numpy()
    columns = np.column_stack([np.where(is_pivot, gap, np.nan), np.where(is_pivot, np.nan, gap)])
    if not np.isfinite(columns).any(axis=0).all():
        return undefined(len(table), "only one of the two classes has items").record()

    def difference(weights: Floats) -> Floats:
        means = weighted_means(columns, weights)
        found: Floats = means[:, :1] - means[:, 1:]
        return found

    return bootstrap.intervals(difference, table["concept"].tolist())[0].record()
