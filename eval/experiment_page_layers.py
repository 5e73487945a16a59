"""The section of an experiment's page on the layers of its models."""

from __future__ import annotations

from eval.experiment_findings import Findings
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import estimate
from eval.experiment_tables import shown
from eval.report_page import Block, Cell, Column, Note, Section, Table


def _ablation_table(found: Findings, settings: ExperimentSettings) -> Table:
    """What is lost of P(answer) without the directions of the pair's pivots, and of controls."""
    rows: list[tuple[Cell, ...]] = []
    conditions = [name for name in found.ablations if str(name).startswith("drop_")]
    for arm in found.arms:
        for cell in found.cell_order:
            here = (found.ablations["arm"] == arm) & (found.ablations["cell"] == cell)
            part = found.ablations[here].dropna(subset=conditions)
            if part.empty:
                continue
            drops = [estimate(part[name].to_numpy(), settings.confidence) for name in conditions]
            gap = (part[conditions[0]] - part[conditions[1]]).to_numpy()
            cells = [shown(e, True) for e in (*drops, estimate(gap, settings.confidence))]
            rows.append((arm, cell, *cells))
    columns = (
        Column("arm"),
        Column("cell"),
        *(
            Column(str(name).removeprefix("drop_"), "num", "lost of P(answer)")
            for name in conditions
        ),
        Column("pivots minus random", "num"),
    )
    caption = (
        "Cause: the share of the mean P(answer) that is lost where the directions of a pair's "
        "mined pivots are removed from the middle layers, where as many random ones are, and where "
        "another pair's are; mean over seeds. Only items that the lens calls direct or pivot, and "
        "for which all three can be had."
    )
    return Table(caption, columns, tuple(rows), tall=True)


def layer_section(found: Findings, settings: ExperimentSettings) -> Section:
    """The lens and the ablations by planted cell."""
    rows: list[tuple[Cell, ...]] = []
    for arm in found.arms:
        for cell in found.cell_order:
            part = found.layers[(found.layers["arm"] == arm) & (found.layers["cell"] == cell)]
            cells = [
                shown(estimate(part[name].dropna().to_numpy(), settings.confidence), True)
                if part[name].notna().any() else "–"
                for name in ("pivot_class", "pivot_first")
            ]  # fmt: skip
            rows.append((arm, cell, *cells))
    aucs = found.layers.drop_duplicates(["arm", "seed"])
    auc_rows: list[tuple[Cell, ...]] = [
        (str(arm), shown(estimate(part["auc"].dropna().to_numpy(), settings.confidence), False))
        for arm, part in aucs.groupby("arm", sort=False)
        if part["auc"].notna().any()
    ]
    blocks: tuple[Block, ...] = (
        _ablation_table(found, settings),
        Table(
            "By planted cell: the share of items that the lens puts in the pivot class, and the "
            "share whose pivot mass peaks in an earlier layer than the target (of those whose "
            "peaks differ).",
            (
                Column("arm"), Column("cell"), Column("pivot class", "num"),
                Column("pivot before target", "num"),
            ),
            tuple(rows),
            tall=True,
        ),
        Table(
            "AUC of co-occurrence frequency as a predictor of the direct class (.5: none).",
            (Column("arm"), Column("AUC", "num")),
            tuple(auc_rows),
        ),
        Note(
            "Labels by planted cell do not rest on the lens. If the lens followed the planted "
            "ties, the pivot class would be more frequent in p1c0 than in p0c1."
        ),
    )  # fmt: skip
    return Section(
        id="layers",
        title="Layers",
        reads="METHOD's lens classes beside what was planted.",
        limits="A lens shows what could be read out of a layer, not what the model used.",
        blocks=blocks,
    )
