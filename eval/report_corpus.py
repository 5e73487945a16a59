"""The sections on what was found in the corpus: corpus, pivots, proportions."""

from __future__ import annotations

from typing import Any

from eval.chart_style import Palette
from eval.figures_corpus import corpus_figure, neighbours, pivots_figure, scripts_figure
from eval.figures_scores import proportions_figure, sources_figure
from eval.report_data import Proportions, RunData, records
from eval.report_figures import FigureWriter
from eval.report_page import Block, Cell, Column, Note, Section, Table
from eval.report_settings import ReportSettings
from eval.report_text import count, number, percent, plural

NEIGHBOURS_SHOWN = 3
MAX_SOURCE_ROWS = 40


def corpus_section(data: RunData, figures: FigureWriter) -> Section:
    """Documents and tokens by language and source; what became of every record."""
    chart = corpus_figure(data.proportions.by_source, data.languages)
    return Section(
        id="corpus",
        title="Corpus",
        reads="Bars and tables count the documents that were kept. Their tokens are the units that "
        "were counted and scored: the tokenizer's, or words where items are words. The second "
        "table follows every record that was read: kept, quarantined because it was unreadable, "
        "or dropped by a rule.",
        limits="Nothing about the quality of the text. Tokens of one tokenizer are not equally "
        "much text in every language.",
        blocks=(
            figures.figure(chart, "Tokens by language; colours are sources."),
            _language_table(data),
            *_accounting(data.manifests["tokenize"].counts, data),
        ),
    )


def _language_table(data: RunData) -> Table:
    frame = data.proportions.by_source
    counts = data.manifests["tokenize"].counts
    details: dict[str, Any] = counts.get("by_language") or counts.get("by_lang") or {}
    total = frame["tokens"].sum()
    rows: list[tuple[Cell, ...]] = []
    for lang in [*data.languages, None]:
        part = frame if lang is None else frame[frame["lang"] == lang]
        chars = counts.get("chars") if lang is None else details.get(lang, {}).get("chars")
        documents, tokens = part["documents"].sum(), part["tokens"].sum()
        name = "all" if lang is None else lang
        rows.append((
            name, count(part["source"].nunique()), count(documents), count(tokens),
            percent(tokens / max(1, total)), count(chars), number(tokens / max(1, documents), 0),
        ))  # fmt: skip
    columns = (
        Column("language"), Column("sources", "num"), Column("documents", "num"),
        Column("tokens", "num"), Column("share", "num"), Column("characters", "num"),
        Column("tokens per document", "num"),
    )  # fmt: skip
    return Table("Documents kept, by language.", columns, tuple(rows))


def _accounting(counts: dict[str, Any], data: RunData) -> list[Block]:
    lost = {"quarantined": counts.get("quarantined") or {}, "dropped": counts.get("dropped") or {}}
    rows: list[tuple[Cell, ...]] = [("records read", "", count(counts["records"]))]
    total = counts["documents"]
    for what, reasons in lost.items():
        for reason, n in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
            rows.append((what, reason, count(n)))
            total += n
        if not reasons:
            rows.append((what, "none", "0"))
    rows.append(("documents kept", "", count(counts["documents"])))
    columns = (Column("what"), Column("reason or rule"), Column("records", "num"))
    blocks: list[Block] = [Table("What became of every record.", columns, tuple(rows))]
    scored = int(data.proportions.by_source["documents"].sum())
    if total == counts["records"] and scored == counts["documents"]:
        text = "The account adds up: kept, quarantined and dropped records are together the "
        blocks.append(Note(text + "records read, and every kept document was scored."))
    else:
        blocks.append(
            Note(
                f"The account does not add up: {count(counts['records'])} records were read, "
                f"{count(total)} are accounted for, {count(scored)} documents were scored.",
                "warn",
            )
        )
    return blocks


def pivots_section(data: RunData, settings: ReportSettings, figures: FigureWriter) -> Section:
    """How many pivots, which, and what kind of items they are."""
    recorded = data.manifests["pivots"].settings
    definition = str(recorded.get("definition"))
    pivots = data.items[data.items["is_pivot"].astype(bool)]
    blocks: list[Block] = [
        Note(
            f"{count(len(pivots))} of {plural(len(data.items), 'item')} are pivots by the "
            f"definition \u201c{definition}\u201d. {_rule(definition, recorded)}"
        )
    ]
    if pivots.empty:
        blocks.append(Note("No item passed: every mix below was made without pivots.", "warn"))
    else:
        blocks.append(_pivot_table(data, settings))
    if stability := data.manifests["pivots"].counts.get("stability"):
        halves = " and ".join(map(count, stability["pivots"]))
        blocks.append(
            Note(
                f"Chosen from each half of the documents alone, the sets have {halves} pivots and "
                f"a Jaccard index of {number(stability['jaccard'], 2)}."
            )
        )
    blocks += [
        figures.block(
            pivots_figure(data.items, data.languages, settings.max_points),
            "Each dot is an item. The strongest pivots are named; hover a dot for its neighbours "
            f"in each language. {count(settings.max_points)} dots are drawn at most.",
            "No item has a statistic, so there is nothing to draw.",
        ),
        figures.block(
            scripts_figure(data.items),
            "Kind of script of the pivots' letters, against that of all items counted.",
            "There are no items.",
        ),
    ]
    return Section(
        id="pivots",
        title="Pivots",
        reads="An item is a pivot if it is tied to words of at least two languages. The gap of a "
        "language is the NPMI of the item's strongest link to that language minus that of its "
        "typical strong link; edges count its links above the threshold.",
        limits="That a pivot carries meaning across languages. Names, numbers and the terms of one "
        "subject also stand beside words of several languages: read the table.",
        blocks=tuple(blocks),
    )


def _rule(definition: str, recorded: dict[str, Any]) -> str:
    rules = {
        "specificity": "The second-largest gap is at least {min_gap}, in at least {min_doc_freq} "
        "documents, and no language holds {language_share:.0%} of them.",
        "breadth": "At least {min_reach} links of NPMI {edge_npmi} or more to each of two "
        "languages, in at least {min_doc_freq} documents.",
        "degree": "More than {min_degree} links of NPMI {edge_npmi} or more, in at least "
        "{min_doc_freq} documents.",
    }
    try:
        return rules.get(definition, "").format(**recorded)
    except (KeyError, ValueError):
        return ""


def _pivot_table(data: RunData, settings: ReportSettings) -> Table:
    pivots = data.items[data.items["is_pivot"].astype(bool)]
    top = pivots.sort_values(["statistic", "id"], ascending=[False, True])
    langs = [lang for lang in data.languages if f"gap_{lang}" in top]
    columns = [
        Column("", "num"), Column("item", "token"), Column("documents", "num"),
        Column("statistic", "num"),
        *(Column(lang, "words", "strongest neighbours") for lang in langs),
        *(Column(lang, "num", "gap") for lang in langs),
        *(Column(lang, "num", "edges") for lang in langs),
    ]  # fmt: skip
    whole = float(top["statistic"].max()) >= 20
    rows: list[tuple[Cell, ...]] = []
    for rank, row in enumerate(records(top.head(settings.top_pivots)), start=1):
        rows.append((
            str(rank),
            str(row["text"]).strip() or str(row["text"]),
            count(row["doc_freq"]),
            number(row["statistic"], 0 if whole else 3),
            *([w.strip() or w for w in neighbours(row, lang)[:NEIGHBOURS_SHOWN]] for lang in langs),
            *(number(row[f"gap_{lang}"], 2) for lang in langs),
            *(count(row.get(f"reach_{lang}")) for lang in langs),
        ))  # fmt: skip
    caption = f"The {len(rows)} pivots with the highest statistic."
    return Table(caption, tuple(columns), tuple(rows), tall=True)


def proportions_section(
    data: RunData, settings: ReportSettings, palette: Palette, figures: FigureWriter
) -> Section:
    """How rich in pivots the documents are."""
    found, frame = data.proportions, data.proportions.by_source
    rows: list[tuple[Cell, ...]] = []
    for lang in data.languages:
        part = frame[frame["lang"] == lang]
        share = part["pivots"].sum() / max(1, part["tokens"].sum())
        quantiles = [percent(found.quantile(lang, q)) for q in (0.1, 0.5, 0.9, 0.99)]
        rows.append((lang, count(part["documents"].sum()), percent(share), *quantiles))
    columns = (
        Column("language"), Column("documents", "num"), Column("of all tokens", "num"),
        Column("10th", "num", "percentile of the documents"),
        Column("median", "num", "percentile of the documents"),
        Column("90th", "num", "percentile of the documents"),
        Column("99th", "num", "percentile of the documents"),
    )  # fmt: skip
    chart = proportions_figure(found, data.languages, palette)
    return Section(
        id="proportions",
        title="Pivots per document",
        reads="A document's pivot proportion is the share of its tokens that are in the pivot set. "
        "The mixes choose documents by it within a language, so what counts is how wide a "
        "language's distribution is, not where it lies.",
        limits="Which pivots a document holds: one that repeats a single pivot scores as high as "
        "one with many. Short documents scatter more than long ones.",
        blocks=(
            figures.figure(chart, "Documents by pivot proportion; the dashed line is the median. "
                           "The panels have their own vertical scales."),
            Table("Pivot proportion by language.", columns, tuple(rows)),
            figures.block(
                sources_figure(found, data.languages, palette),
                f"The {plural(len(found.sources), 'source')} with the most tokens: the line is the "
                "median document, the box the middle half, and the thin line reaches from the 5th "
                "to the 95th percentile.",
                "There are no sources.",
            ),
            _rich_documents(found, data.languages, settings),
        ),
    )  # fmt: skip


def _rich_documents(
    found: Proportions, languages: list[str], settings: ReportSettings
) -> Table | Note:
    rows: list[tuple[Cell, ...]] = [
        (lang, id_, source, count(n), percent(share))
        for lang in languages
        for share, n, id_, source in found.richest.get(lang, [])
        if share > 0
    ]
    least = f"at least {plural(settings.min_document_tokens, 'token')}"
    if not rows:
        return Note(
            f"No document of {least} holds a pivot, so none is listed as the richest; "
            "report.min_document_tokens sets the length."
        )
    columns = (
        Column("language"), Column("document", "code"), Column("source"), Column("tokens", "num"),
        Column("proportion", "num"),
    )  # fmt: skip
    return Table(f"Documents of {least} with the highest proportion.", columns, tuple(rows))
