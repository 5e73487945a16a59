"""What a written run holds: the plan, its words, and how a stage folder is begun."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mining.common.stage import Input, StageInput, begin, settings_dict

WORDS = {
    "en": ["water", "house", "tree", "book", "bread", "stone", "river", "night", "hand", "window"],
    "fr": [
        "eau",
        "maison",
        "arbre",
        "livre",
        "pain",
        "pierre",
        "fleuve",
        "nuit",
        "main",
        "fenêtre",
    ],
    "zh": ["水", "房子", "树", "书", "面包", "石头", "河", "夜晚", "手", "窗户"],
    "ja": ["水", "家", "木", "本", "パン", "石", "川", "夜", "手", "窓"],
}
SOURCES = ("manpages", "python-docs", "libreoffice-help", "tldr")
ITEM_TEXTS = (" LibreOffice", " Unicode", " Python", " GIMP", " Debian", " HTML", "印刷", "文字")
EFFECT = {"original": 0.05, "random": 0.08, "pivot": 0.16, "low-pivot": 0.04}
HOSTILE = (
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "$x^2$",
    "\u202eabc",
    "%{x}",
    "</script>",
    "&lt;",
)


@dataclass
class RunPlan:
    """What the run holds; the defaults are a whole run with one seed."""

    languages: tuple[str, ...] = ("en", "fr", "zh", "ja")
    arms: tuple[str, ...] = ("original", "random", "pivot", "low-pivot")
    seeds: tuple[int, ...] = (0,)
    concepts: int = 10
    layers: int = 6
    documents: int = 400
    items: int = 300
    effect: dict[str, float] = field(default_factory=lambda: dict(EFFECT))
    behaviours: tuple[str, ...] = ("direct", "pivot", "none")
    groups: bool = True
    hostile: bool = False
    pivots: bool = True
    evaluated: bool = True
    translated: bool = False
    traced: bool = True
    attributed: bool = True
    trained: bool = True
    compared: bool = True
    series: bool = False


class Folders:
    """What the stages of a plan share: its words and pairs, and how a folder is begun."""

    def __init__(self, root: Path, plan: RunPlan) -> None:
        self.root, self.plan = root, plan
        self.rng = np.random.default_rng(7)
        words = {lang: list(WORDS.get(lang, WORDS["en"])) for lang in plan.languages}
        if plan.hostile:
            for lang in words:
                words[lang] = [f"{HOSTILE[i % len(HOSTILE)]}{lang}{i}" for i in range(10)]
        more = range(plan.concepts)
        self.words = {
            lang: [(w[i % 10] if i < 10 else f"{w[i % 10]}{i // 10}") for i in more]
            for lang, w in words.items()
        }
        self.pairs = list(itertools.permutations(plan.languages, 2))
        self.pair_freq = {
            (c, *pair): int(self.rng.poisson(np.exp(self.rng.normal(1.5, 1.4))))
            for c in more
            for pair in self.pairs
        }

    def group(self, concept: str) -> str:
        if not self.plan.groups:
            return ""
        return "seen" if concept < "c005" else "held-out"

    def concept(self, i: int) -> str:
        return f"c{i:03d}"

    def stage(self, name: str, settings: object, inputs: dict[str, str], out: Path | None = None):
        record = settings_dict(settings) if not isinstance(settings, dict) else settings
        links: dict[str, Input] = {k: StageInput(self.root / v, k) for k, v in inputs.items()}
        run = begin(name, out or self.root / name, {**record, "seed": 0}, links)
        assert run is not None
        return run
