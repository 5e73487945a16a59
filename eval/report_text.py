"""Text for people: strangers' words made harmless and visible, numbers with sensible digits.

Words, document ids and names of a corpus are data from strangers. Three places show them, each
with its own markup: the page (escaped by the template), plotly's labels (a subset of HTML:
`plotly_text`) and JSON inside a script element (`script_json`).
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

from markupsafe import Markup

HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
JOINERS = frozenset("\u200c\u200d")  # part of the spelling in many scripts and of emoji
MINUS = "\u2212"
NONE = "\u2013"
ROUNDING_NOISE = 1e-12  # what is smaller is shown as zero
LEAST_FIXED_POWER = -5  # 1.2e-5 is still written as 0.000012


def visible(text: Any, limit: int = 80) -> str:
    """`text` cut to `limit` characters, with control and reordering characters spelled out.

    A right-to-left override in a token could otherwise turn the words around it, and a control
    character is not allowed in SVG.
    """
    raw = str(text)
    shown = "".join(
        f"\u27e8{ord(char):04X}\u27e9"
        if unicodedata.category(char) in HIDDEN_CATEGORIES and char not in JOINERS
        else char
        for char in raw[:limit]
    )
    return shown + "\u2026" if len(raw) > limit else shown


def plotly_text(text: Any, limit: int = 80) -> str:
    """`visible` text with the characters escaped that plotly reads as markup, or as a formula."""
    plain = visible(text, limit)
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        plain = plain.replace(char, entity)
    return plain


def hover(*lines: tuple[str, Any]) -> str:
    """Hover text of (name, value) lines; both are escaped. An empty name gives the value alone."""
    parts = []
    for name, value in lines:
        shown = plotly_text(value, 160)
        parts.append(f"{plotly_text(name)}: {shown}" if name else f"<b>{shown}</b>")
    return "<br>".join(parts)


def script_json(value: Any) -> Markup:
    """`value` as JSON that can stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # nosec B704 # what a page could read as markup is escaped above


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NONE if _missing(value) else f"{int(value or 0):,}"


def short_count(value: float | None) -> str:
    """A number to three digits with a unit from a million on: 25.2 M, 22,500."""
    if value is None or _missing(value):
        return NONE
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= factor:
            scaled = value / factor
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:,.0f} {unit}"
    return f"{value:,.0f}"


def tick(value: float) -> str:
    """A number beside an axis: as short as it can be."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if unit == 'k' else factor):g}{unit}"
    return f"{value:g}".replace("-", MINUS)


def number(value: float | None, digits: int = 3, scale: float | None = None) -> str:
    """A number with fixed digits and a real minus sign.

    Where none of the digits would be left of `scale` (the largest of the numbers that stand
    together, else the value itself), with two significant digits of it: 0.00012, 1.2e−6.
    """
    if value is None or _missing(value):
        return NONE
    size = abs(value if scale is None or _missing(scale) else scale)
    power = int(f"{size:.1e}".split("e")[1])
    end = ""
    if size < ROUNDING_NOISE or size >= 10**-digits:
        text = f"{value:.{digits}f}"
    elif power >= LEAST_FIXED_POWER:
        text = f"{value:.{1 - power}f}"
    else:
        text, end = f"{value / 10**power:.1f}", f"e{MINUS}{-power}"
    if float(text) == 0:
        text, end = text.lstrip("-"), ""
    return text.replace("-", MINUS) + end


def signed(value: float | None, digits: int = 3, scale: float | None = None) -> str:
    """A difference, always with its sign."""
    text = number(value, digits, scale)
    return text if text[0] in (MINUS, NONE) or not text.strip("0.") else f"+{text}"


def largest(*values: float | None) -> float | None:
    """The largest absolute value, as the `scale` of numbers that stand together."""
    return max((abs(v) for v in values if v is not None and math.isfinite(v)), default=None)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return NONE if value is None or _missing(value) else signed(100 * value, 1)


def percent(value: float | None, digits: int = 1) -> str:
    """A share, or a difference of two, as a percentage with a real minus sign."""
    if value is None or _missing(value):
        return NONE
    return f"{number(100 * value, digits, scale=100)}%"


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A value with its interval: 0.123 [0.100, 0.150]."""
    if _missing(value):
        return NONE
    if _missing(low) or _missing(high):
        return number(value, digits)
    scale = largest(value, low, high)
    shown = [number(v, digits, scale) for v in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def plural(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listing(names: list[str]) -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
