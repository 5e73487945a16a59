"""The parts that a page consists of, and how it becomes one HTML file.

Everything here is plain text: the template escapes it (jinja2 with autoescape). Only the style
sheet, the two scripts, the images and the charts' JSON (`script_json`) enter as markup, and a
content security policy names the scripts by hash and forbids every connection, so that a token
that got through would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report_text import script_json, visible

TEMPLATES = Path(__file__).parent / "templates"
# Characters: of words and names, which are strangers', and of our own sentences about them.
MAX_WORD = 400
MAX_SENTENCE = 4000
Kind = Literal["text", "num", "token", "words", "code"]
Cell = str | list[str]


@dataclass(frozen=True)
class Column:
    """A column of a table; columns of the same `group` in a row share a head above theirs."""

    label: str
    kind: Kind = "text"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table. Numbers come as text with their digits chosen; "words" cells are lists."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    tall: bool = False
    block: str = "table"

    def groups(self) -> list[tuple[str, int]]:
        """Heads over the columns: (text, number of columns); empty where no column has one."""
        if not any(column.group for column in self.columns):
            return []
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


@dataclass(frozen=True)
class FigureBlock:
    """A figure: `image` is the PNG file, `spec` plotly's description of the same."""

    name: str
    alt: str
    caption: str
    image: bytes
    spec: dict[str, Any]
    block: str = "figure"

    def source(self) -> str:
        """The image as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.image).decode("ascii")


@dataclass(frozen=True)
class Note:
    """A sentence between figures; `warn` where the reader should be careful."""

    text: str
    kind: Literal["info", "warn"] = "info"
    block: str = "note"


@dataclass(frozen=True)
class Code:
    """A block of commands or settings, folded away where `folded`."""

    caption: str
    text: str
    folded: bool = False
    block: str = "code"


Block = Table | FigureBlock | Note | Code


@dataclass(frozen=True)
class Card:
    """A key figure."""

    label: str
    value: str
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page, with how to read it and what it does not show."""

    id: str
    title: str
    reads: str
    limits: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Answer:
    """The first screen: the question, the word that answers it, why, and what to be careful of."""

    question: str
    word: str
    tone: Literal["better", "worse", "open", "unknown"]
    text: str
    cautions: tuple[str, ...]
    figure: FigureBlock | None


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    answer: Answer
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]
    footer: str


def render(page: Page) -> str:
    """The page as one HTML text that needs nothing else."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = lambda text: visible(text, MAX_WORD)
    environment.filters["sentence"] = lambda text: visible(text, MAX_SENTENCE)
    library = _inline(get_plotlyjs())
    script = _inline((TEMPLATES / "report.js").read_text("utf-8"))
    style = _inline((TEMPLATES / "report.css").read_text("utf-8"))
    figures = figures_of(page)
    return environment.get_template("report.html.j2").render(
        page=page,
        style=style,
        library=library,
        script=script,
        policy=_policy([library, script]),
        charts=[(figure.name, script_json(figure.spec)) for figure in figures],
    )


def figures_of(page: Page) -> list[FigureBlock]:
    """All figures of the page, in order."""
    first = [page.answer.figure] if page.answer.figure else []
    blocks = [block for section in page.sections for block in section.blocks]
    return first + [block for block in blocks if isinstance(block, FigureBlock)]


def _inline(text: str) -> Markup:
    # Our own files and plotly's, no data. A browser reads CR LF as LF, which would change the hash.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "</style" in text.lower():
        raise ValueError("a script or style sheet of the report would end its own element")
    return Markup(text)  # nosec B704 # our own scripts and styles, checked above


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        "'sha256-" + base64.b64encode(hashlib.sha256(str(s).encode()).digest()).decode() + "'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
