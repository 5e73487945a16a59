"""The results of an experiment as Markdown, to be quoted: nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eval.report_page import Cell, Note, Page, Table

# Longer tables are for looking things up, on the page and as Parquet.
MAX_ROWS = 100
LEFT_OUT = ("world", "seeds")


def results_text(page: Page, command: str) -> str:
    """The answer, the key figures and the shorter tables of an experiment's page."""
    cards = [f"- {card.label}: {card.value}" + f" ({card.detail})" * bool(card.detail)
             for card in page.cards]  # fmt: skip
    facts = [f"- {name}: {text}" for name, text in page.facts]
    head = [f"### {page.title}", f"`{command}`", f"**{page.answer.word}.** {page.answer.text}"]
    return "\n\n".join([*head, "\n".join(facts), "\n".join(cards), *_blocks(page)]) + "\n"


def _blocks(page: Page) -> Iterator[str]:
    for section in page.sections:
        if section.id in LEFT_OUT:
            continue
        for block in section.blocks:
            if isinstance(block, Table) and len(block.rows) <= MAX_ROWS:
                yield as_markdown(block)
            elif isinstance(block, Note):
                yield block.text


def as_markdown(table: Table) -> str:
    """A table of a page with its caption above it."""
    rule = ("--:" if column.kind == "num" else "---" for column in table.columns)
    lines = [_line(column.label for column in table.columns), _line(rule), *map(_line, table.rows)]
    return table.caption + "\n\n" + "\n".join(lines)


def _line(cells: Iterable[Cell]) -> str:
    texts = (cell if isinstance(cell, str) else ", ".join(cell) for cell in cells)
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
