"""The section on causes, and the tables of the trace and attribute summaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eval.chart_style import Palette
from eval.figures_cause import CONDITIONS, ablation_figure, patching_figure
from eval.report_data import RunData, RunKey
from eval.report_figures import FigureWriter
from eval.report_models import NOT_RUN
from eval.report_page import Block, Cell, Column, Note, Section, Table
from eval.report_text import count, interval, number, percent

Summaries = Mapping[RunKey, Mapping[str, Any]]
CURVES = {"p_source": "source", "p_pivot": "pivots", "p_target": "target"}


def cause_section(data: RunData, palette: Palette, figures: FigureWriter) -> Section:
    """What the interventions change."""
    found = data.interventions
    blocks: list[Block] = [Note(NOT_RUN.format("intervene"))]
    if found:
        blocks = [
            figures.block(
                ablation_figure(found),
                "How much less probable the answer's first token becomes when directions are "
                "removed from the middle layers; bars of a class stand together. Intervals "
                "resample concepts.",
                "No item has pivots to remove.",
            ),
            *_ablation_table(found),
            figures.block(
                patching_figure(found, palette),
                "The state at the answering position is replaced, after one layer, by that of a "
                "prompt for another concept: the share of items whose answer is then less "
                "probable than the other concept's.",
                "No two items have answers that begin differently.",
            ),
        ]
    return Section(
        id="cause",
        title="Cause",
        reads="If pivots carry the answer, removing what their logits read should hurt more than "
        "removing as many random directions, of tokens as frequent and with directions as long, "
        "and more where the behaviour is pivot than where it is direct.",
        limits="Directions of tokens are one reading of what the layers hold: an answer that "
        "survives may rest on others. Removing directions also moves the states off what later "
        "layers are used to, which the controls show the size of.",
        blocks=tuple(blocks),
    )


def _ablation_table(found: Summaries) -> list[Block]:
    heads = ["P(answer)", *(f"without {name}" for name in CONDITIONS.values())]
    columns = [Column("model"), Column("class"), Column("items", "num")]
    columns += [Column(head, "num", "drop" if i else "") for i, head in enumerate(heads)]
    columns += [
        Column("random", "num", "pivots more than"), Column("another pair's", "num",
        "pivots more than"), Column("random", "num", "the same of log P"),
    ]  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for key, summary in found.items():
        ablation = summary["ablation"]
        for name in ("pivot", "direct", "all") if ablation["n"] else ():
            entry = ablation[name]
            drop, log_drop = entry["drop"], entry["log_drop"]
            shown = [entry["p_clean"], *(drop[c] for c in CONDITIONS)]
            shown += [drop["more_than_random"], drop["more_than_other"]]
            shown.append(log_drop["more_than_random"])
            rows.append((_model(key), name, count(entry["n"]), *(told(r) for r in shown)))
    if not rows:
        return []
    between = [
        f"{_model(key)} {told(summary['ablation']['classes']['drop'])}"
        for key, summary in found.items()
        if summary["ablation"]["n"]
    ]
    caption = (
        "Means over items with intervals. \u201cPivots more than random\u201d is above zero where "
        "the pair's pivots matter more than such directions do. Of that, the pivot class minus the "
        f"direct class: {'; '.join(between)}."
    )
    return [Table(caption, tuple(columns), tuple(rows))]


def threshold_table(data: RunData) -> list[Block]:
    """Shares of the classes by rule and threshold, with the AUC where attribute was run."""
    rows: list[tuple[Cell, ...]] = []
    for key, summary in data.trace_summaries.items():
        aucs = {
            (entry["rule"], entry["threshold"]): entry.get("auc")
            for entry in data.attributions.get(key, {}).get("thresholds", [])
        }
        for row in summary["sensitivity"]:
            shares = [percent(row["shares"][name]) for name in ("direct", "pivot", "none")]
            auc = told(aucs.get((row["rule"], row["threshold"])), 2)
            rule = f"{row['rule']}, from {row['threshold']:g}"
            rows.append((_model(key), rule, count(row["n"]), *shares, auc))
    caption = (
        "How the classes depend on the rule. \u201cwinner\u201d: the most probable token over all "
        "layers decides, items below the threshold are left out; \u201cany\u201d: pivot if a token "
        "of neither word reaches the threshold in some layer. AUC: of joint document frequency for "
        "direct behaviour, mean over directions."
    )
    columns = (
        Column("model"), Column("rule"), Column("items", "num"), Column("direct", "num"),
        Column("pivot", "num"), Column("none", "num"), Column("AUC", "num"),
    )  # fmt: skip
    return [Table(caption, columns, tuple(rows))] if rows else []


def peak_table(data: RunData) -> list[Block]:
    """How deep the curves peak, by class, and the test of pivots before target."""
    rows: list[tuple[Cell, ...]] = []
    for key, summary in data.trace_summaries.items():
        for name in ("direct", "pivot"):
            peaks = summary["peaks"][name]
            depths = [told(peaks["depth"][curve], 2) for curve in CURVES]
            order = peaks["order"]["p_pivot before p_target"]
            earlier, same = (percent(order.get(k), 0) for k in ("first_earlier", "same_layer"))
            p = number(order["p"], 4)
            rows.append((_model(key), name, *depths, told(order, 2), earlier, same, p))
    caption = (
        "Depth at which each probability is highest, as a share of the layers (1 is the last), and "
        "the target's depth minus the pivots'. p: signs of all of a concept's differences flipped "
        "together, two-sided."
    )
    columns = (
        Column("model"), Column("class"), *(Column(v, "num", "depth") for v in CURVES.values()),
        Column("target minus pivots", "num"), Column("pivots earlier", "num"),
        Column("same layer", "num"), Column("p", "num"),
    )  # fmt: skip
    return [Table(caption, columns, tuple(rows))] if rows else []


def tuned_note(data: RunData) -> list[Block]:
    """How far each layer is from the last, where the tuned lens was trained."""
    rows: list[tuple[Cell, ...]] = []
    for key, summary in data.trace_summaries.items():
        tuned = summary["tuned"]
        for layer, plain, trained in (
            zip(tuned["layers"], tuned["kl_logit"], tuned["kl_tuned"], strict=True)
            if tuned is not None
            else ()
        ):
            rows.append((_model(key), str(layer), number(plain), number(trained)))
    columns = (
        Column("model"), Column("layer", "num"), Column("logit lens", "num", "KL in nats"),
        Column("tuned lens", "num", "KL in nats"),
    )  # fmt: skip
    caption = "KL of the last layer's output from what each layer says, on text held out."
    return [Table(caption, columns, tuple(rows))] if rows else []


def attribution_tables(data: RunData) -> list[Block]:
    """Partial correlations, prediction across directions, and calibration by band."""
    partial: list[tuple[Cell, ...]] = []
    bands: list[tuple[Cell, ...]] = []
    for key, summary in data.attributions.items():
        found, held_out = summary["partial"], summary["held_out"]
        cells = [found[name][kind] for name in ("score", "direct") for kind in KINDS]
        cells += [held_out["r2"], held_out["pearson"]]
        partial.append((_model(key), count(held_out["n"]), *(told(r, 2) for r in cells)))
        for row in summary["calibration"]:
            end = "" if row["below"] is None else f" to {row['below'] - 1:,}"
            band = f"{row['from']:,}{end or ' or more'}"
            shown = (told(row["direct"], 2), told(row["score"]))
            bands.append((_model(key), band, count(row["n"]), *shown))
    if not partial:
        return []
    first = "Score"
    groups = [first, first, "being direct", "being direct"]
    columns = (
        Column("model"), Column("items", "num"),
        *(Column(kind.capitalize(), "num", g) for kind, g in zip(KINDS * 2, groups, strict=True)),
        Column("R\u00b2", "num", "direction held out"), Column("r", "num", "direction held out"),
    )  # fmt: skip
    return [
        Table(
            "Partial correlation of joint document frequency with Score and with being direct, the "
            "frequencies of both words held fixed. Direction held out: the Score of each direction "
            "predicted from corpus counts alone, by a fit to the other directions; an R\u00b2 of 0 "
            "is no better than the others' mean.",
            columns, tuple(partial),
        ),
        Table(
            "What each band of joint document frequency comes with.",
            (Column("model"), Column("documents with both words"), Column("items", "num"),
             Column("share direct", "num"), Column("mean Score", "num")),
            tuple(bands),
        ),
    ]  # fmt: skip


KINDS = ["pearson", "spearman"]


def told(record: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A record of a summary as text: value [low, high]."""
    if record is None:
        return number(None)
    value, low, high = (
        math.nan if record[key] is None else record[key] for key in ("value", "low", "high")
    )
    return interval(value, low, high, digits)


def _model(key: RunKey) -> str:
    return f"{key[0]}/{key[1]}"
