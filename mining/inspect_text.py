"""Shows what mining.inspect found: tables and colours on a terminal, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Facts = dict[str, Any]
TEXT_CHARS = 4000
PLAIN_WIDTH = 120
MARK = "bold black on yellow"
WORD_START = "\u2423"
GAP = (
    "gap: how far the strongest link to the language's items stands out from its other strong ones;"
    " edges: links above the threshold"
)


def show(facts: Facts, console: Console) -> None:
    """Print the facts of an item, a pair or a document."""
    {"item": _item, "pair": _pair, "document": _document}[facts["kind"]](facts, console)


def make_console() -> Console:
    """A console on standard output; wide enough for the tables where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def _item(facts: Facts, console: Console) -> None:
    verdict = "a pivot" if facts["is_pivot"] else "no pivot"
    line = f"{facts['text'].strip() or facts['text']!r}: {facts['unit']} {facts['id']}, {verdict} "
    console.print(Text(f"{line}by {facts['definition']}", style="bold"))
    if facts["also"]:
        console.print(Text("also: " + ", ".join(map(repr, facts["also"]))))
    home = facts["lang"] or "none of its own"
    console.print(
        Text(f"in {facts['doc_freq']:,} of {facts['documents']:,} documents; language: {home}")
    )
    _table(console, "Why", ("rule", "found", "needed", ""), (
        (rule["rule"], _number(rule["found"]), rule["needed"], "ok" if rule["passes"] else "FAILS")
        for rule in facts["rules"]
    ))  # fmt: skip
    _table(console, "By language", ("language", "documents", "gap", "edges"), (
        (lang, f"{n:,}", _number(facts["gap"][lang]), str(facts["reach"][lang]))
        for lang, n in facts["doc_freq_by_language"].items()
    ))  # fmt: skip
    begins = f"; {WORD_START}: a token that begins with a space"
    console.print(GAP + (begins if facts["unit"] == "token" else ""))
    _table(console, "Strongest neighbours (strength, documents with both)", ("language", "items"), (
        (lang or "none", ", ".join(
            f"{_name(near['piece'])} ({_number(near['strength'])}, {near['n']:,})"
            for near in listed
        ))
        for lang, listed in facts["neighbours"].items() if listed
    ))  # fmt: skip
    for context in facts["contexts"]:
        start = Text(f"{context['lang']} {context['document']}: ")
        parts = ((context[k], k == "text") for k in ("before", "text", "after"))
        console.print(start + _marked(parts, console), soft_wrap=True)


def _pair(facts: Facts, console: Console) -> None:
    for pair in facts["pairs"]:
        concept = f" ({pair['concept']})" if pair.get("concept") else ""
        console.print(Text(
            f"{pair['source_lang']} {pair['source']} - {pair['target_lang']} {pair['target']}"
            f"{concept}: in {pair['source_doc_freq']:,} and {pair['target_doc_freq']:,} documents, "
            f"both in {pair['pair_doc_freq']:,}; NPMI {_number(pair['npmi'])}", style="bold",
        ))  # fmt: skip
        if pair["pivots"]:
            columns = ("pivot", "value", "lift of the source", "lift of the target", "background")
            keys = ("pivot", "source_lift", "target_lift", "background")
            _table(console, "Pivots of the pair", columns, (
                (_name(row["text"]), *(_number(row[key]) for key in keys))
                for row in pair["pivots"]
            ))  # fmt: skip
        elif pair["pivots"] is not None:
            console.print("No token goes with both words.")
    if (items := facts["items"]) is not None:
        a, b = items["texts"]
        console.print(Text(
            f"items {a} - {b}: in {items['doc_freq'][0]:,} and {items['doc_freq'][1]:,} documents, "
            f"both in {items['n']:,}; NPMI {_number(items['npmi'])}", style="bold",
        ))  # fmt: skip
        _table(console, "Pivots that are linked to both", ("pivot", a, b), (
            (row["text"], *(
                f"{_number(s)} ({n:,})" for s, n in zip(row["strength"], row["n"], strict=True)
            ))
            for row in items["common_pivots"]
        ))  # fmt: skip


def _document(facts: Facts, console: Console) -> None:
    console.print(Text(
        f"{facts['id']}: {facts['lang']}, {facts['source']}; {facts['n_pivots']:,} of "
        f"{facts['n_tokens']:,} {facts['unit']}s are pivots: {facts['proportion']:.2%}",
        style="bold",
    ))  # fmt: skip
    if (among := facts["language"]) is not None:
        console.print(Text(
            f"more than {round(among['lower'] * among['documents']):,} of the "
            f"{among['documents']:,} documents in {facts['lang']}; their median is "
            f"{among['median']:.2%}, a tenth have {among['90%']:.2%} or more"
        ))  # fmt: skip
    shown = facts["pivots"][:20]
    _table(console, f"Its pivots ({len(shown)} of {len(facts['pivots'])})",
        ("pivot", "times", "share of the score", "documents", "statistic"), (
        (_name(row["text"]), str(row["times"]), f"{row['share']:.1%}", f"{row['doc_freq']:,}",
         _number(row["statistic"]))
        for row in shown
    ))  # fmt: skip
    text = _marked(((part["text"], part["pivot"]) for part in facts["text"]), console)
    cut = len(text) > TEXT_CHARS
    text.truncate(TEXT_CHARS, overflow="ellipsis")
    console.print(text, soft_wrap=True)
    if cut:
        console.print(Text(f"(the first {TEXT_CHARS:,} characters; --json has all)"))


def _marked(parts: Iterable[tuple[str, bool]], console: Console) -> Text:
    """Text with marked parts: in colour on a terminal, in brackets elsewhere."""
    text = Text()
    for part, marked in parts:
        if not marked:
            text.append(part)
        elif console.is_terminal:
            text.append(part, style=MARK)
        else:
            core = part.strip()
            text.append(part.replace(core, f"\u27e6{core}\u27e7", 1) if core else part)
    return text


def _table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    listed = list(rows)
    if not listed:
        return
    style = box.SIMPLE_HEAD if console.is_terminal else box.ASCII2
    table = Table(title=title, title_justify="left", box=style)
    for column in columns:
        table.add_column(Text(column))
    for row in listed:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _name(piece: str) -> str:
    """An item's text; tokens with and without a space before them are told apart."""
    core = piece.strip()
    return WORD_START + core if core and piece.startswith(" ") else core or piece


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 2 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
