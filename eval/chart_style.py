"""Colours that mean one thing in all figures, and the fonts of the static ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mining.common.logs import log

INK = "#1f2937"
MUTED = "#6b7280"
RULE = "#d5d9e0"
# Light to dark, readable in grey; the same stops in both renderers.
SEQUENTIAL = ("#f6f8fb", "#cfe0ee", "#8dbbd9", "#3f83b5", "#0b3c6f")
# Brown below the middle, blue above it; dark at both ends.
DIVERGING = ("#6b3410", "#b06f38", "#d9ab80", "#efdccb", *SEQUENTIAL)
DARK_FROM = 0.55  # above this part of the scale a cell's text is white

# Okabe and Ito's set for the arms, Paul Tol's muted one for languages: both are made for
# colour-blind readers, and no colour stands in both.
ARM_COLORS = {
    "original": "#767b85",
    "random": "#0072b2",
    "pivot": "#d55e00",
    "low-pivot": "#e0a100",
}
ARM_SPARE = ("#009e73", "#cc79a7", "#56b4e9", "#000000")
LANGUAGE_COLORS = {"en": "#332288", "fr": "#117733", "zh": "#aa4499", "ja": "#44aa99"}
LANGUAGE_SPARE = ("#332288", "#117733", "#aa4499", "#44aa99", "#999933", "#882255", "#88ccee")
BEHAVIOUR_COLORS = {"direct": "#2f4b7c", "pivot": "#d1495b", "none": "#a9afb9"}
MASS_COLORS = {"source": "#2f4b7c", "pivots": "#d1495b", "target": "#2a9d6f"}
CATEGORY_COLORS = ("#2f4b7c", "#7a9cc6", "#8c6bb1", "#c5a3d6", "#5b8c85", "#a8cbbd", "#b08968")
OTHER_COLOR = "#c9cdd4"

CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Source Han Sans SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Hiragino Sans",
    "Hiragino Sans GB",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "IPAexGothic",
    "Droid Sans Fallback",
)
CJK_FILES = ("notosanscjk", "sourcehansans", "wqy-", "droidsansfallback")


@dataclass(frozen=True)
class Palette:
    """The colour of every arm and language of a run."""

    arms: dict[str, str]
    languages: dict[str, str]


def make_palette(arms: Iterable[str], languages: Iterable[str]) -> Palette:
    """Fixed colours for known names; others take spare ones in their order."""
    return Palette(
        _assign(list(arms), ARM_COLORS, ARM_SPARE),
        _assign(list(languages), LANGUAGE_COLORS, LANGUAGE_SPARE),
    )


def _assign(names: list[str], known: dict[str, str], spare: tuple[str, ...]) -> dict[str, str]:
    taken = {known[name] for name in names if name in known}
    free = [color for color in spare if color not in taken] or list(spare)
    unknown = [name for name in names if name not in known]
    extra = {name: free[i % len(free)] for i, name in enumerate(unknown)}
    return {name: known.get(name) or extra[name] for name in names}


def cell_is_dark(place: float, diverging: bool) -> bool:
    """Whether a cell at this place of the colour scale, 0 to 1, needs white text."""
    return (abs(2 * place - 1) if diverging else place) > DARK_FROM


def static_style() -> Any:
    """matplotlib's settings for one figure (a dict), to be used with `matplotlib.rc_context`."""
    return {
        "font.family": ["DejaVu Sans", *cjk_fonts()],
        "font.size": 9.0,
        "text.color": INK,
        # A token such as $x$ is text, not a formula.
        "text.parse_math": False,
        "axes.edgecolor": RULE,
        "axes.labelcolor": INK,
        "axes.labelsize": 9.0,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": "#e9ecf1",
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "svg.hashsalt": "semantic-pivots",
        "svg.fonttype": "path",
        "savefig.facecolor": "white",
        "path.simplify": True,
    }


def cjk_fonts() -> list[str]:
    """Installed fonts with Chinese and Japanese characters, as matplotlib knows them."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {font.name for font in manager.ttflist}
    found = [name for name in CJK_FONTS if name in known]
    if not found:
        # matplotlib keeps a list of fonts from its first start; one may have come since.
        for path in sorted(font_manager.findSystemFonts()):
            if any(part in path.lower().rsplit("/", 1)[-1] for part in CJK_FILES):
                manager.addfont(path)
        known = {font.name for font in manager.ttflist}
        found = [name for name in CJK_FONTS if name in known]
    return found[:2]


def warn_without_cjk_font() -> bool:
    """Log once a report that Chinese and Japanese would show as boxes in the static figures."""
    if cjk_fonts():
        return False
    log.warning(
        "report: no font with Chinese and Japanese characters is installed, the PNG and SVG "
        "figures show boxes for them; install the Debian package fonts-noto-cjk"
    )
    return True
