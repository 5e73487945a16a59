"""The sections of an experiment's page on its world, and on what mining finds in it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from eval.experiment_findings import MEANINGS, Findings
from eval.experiment_settings import ExperimentSettings
from eval.experiment_stats import estimate
from eval.experiment_tables import shown
from eval.report_page import Block, Cell, Column, Section, Table
from eval.report_text import count
from mining.common.files import read_json
from mining.common.manifest import read_manifest

SOURCES = {
    "pool": "the pool, which the arms choose from",
    "codeswitch": "in every arm: text that holds both words of some held-out pairs",
    "format": "in every arm: translations of training concepts",
    "identity": "in every arm: every word, repeated",
}
TEXT_SHOWN = 260


def world_section(found: Findings) -> Section:
    """The design, and what the world looks like."""
    seed, root = next(iter(found.runs.items()))
    manifest = read_manifest(root / "world", "world").counts
    cells: list[tuple[Cell, ...]] = [
        (cell, MEANINGS[cell], count(manifest["cells"][cell])) for cell in found.cell_order
    ]
    blocks: list[Block] = [
        Table(
            "The design: concepts of each cell in one seed's world.",
            (Column("cell"), Column("its words"), Column("concepts", "num")),
            tuple(cells),
        ),
        Table(
            f"What the world looks like (seed {seed}): the beginning of one document a kind. The "
            "tokens that end in two digits have no language: pivots and neutral ones.",
            (Column("kind"), Column("documents", "num"), Column("text", "code")),
            tuple(_samples(root / "world", manifest["by_source"])),
        ),
        _ties(root / "world"),
    ]
    return Section(
        id="world",
        title="The world",
        reads="Words of invented languages, each tied to a concept. A pivot is a token without "
        "language that stands beside one concept's word in every language.",
        limits="There is no grammar and no meaning beyond these ties.",
        blocks=tuple(blocks),
    )


def _samples(world: Path, by_source: Mapping[str, Mapping[str, int]]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    first: dict[str, str] = {}
    for path in sorted((world / "documents").glob("*.jsonl.gz"), reverse=True):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                first.setdefault(record["source"], record["text"])
                if len(first) == len(by_source) or (record["source"] == "pool"):
                    break
    for source, meaning in SOURCES.items():
        if source in first:
            n = count(by_source[source]["documents"])
            rows.append((f"{source}: {meaning}", n, first[source][:TEXT_SHOWN] + " ..."))
    return rows


def _ties(world: Path) -> Table:
    """Some planted pivots with the words that they stand beside."""
    truth = read_json(world / "truth.json")
    with (world / "concepts.tsv").open(encoding="utf-8") as lines:
        header = next(lines).rstrip("\n").split("\t")
        words = {
            row[0]: dict(zip(header, row, strict=True))
            for row in (line.rstrip("\n").split("\t") for line in lines)
        }
    languages = list(truth["languages"])
    rows: list[tuple[Cell, ...]] = []
    for pivot, concepts in list(truth["pivots"].items())[:6]:
        beside = (
            ", ".join(words[concept][lang] for concept in concepts.get(lang, ()))
            for lang in languages
        )
        rows.append((pivot, *beside))
    columns = (Column("pivot", "token"), *(Column(lang, "token") for lang in languages))
    return Table(
        "Some planted pivots, and the words that each stands beside.", columns, tuple(rows)
    )


def mining_section(found: Findings, settings: ExperimentSettings) -> Section:
    """Mined against planted pivots."""
    rows: list[tuple[Cell, ...]] = []
    measures = ("n_pivots", "precision", "recall", "planted_share", "oracle_overlap")
    for (definition, rule), part in found.mining.groupby(["definition", "rule"], sort=False):
        means = [estimate(part[name].to_numpy(), settings.confidence) for name in measures]
        cells = [count(round(means[0].mean)), *(shown(e, True) for e in means[1:])]
        rows.append((str(definition), str(rule), *cells))
    table = Table(
        "Mined against planted pivots, mean over seeds. Planted share: planted pivots among the "
        "tokens of the documents that the definition would choose; overlap: the share of these "
        "tokens that the oracle chooses too.",
        (
            Column("definition"), Column("threshold"), Column("pivots", "num"),
            Column("precision", "num"), Column("recall", "num"), Column("planted share", "num"),
            Column("overlap with the oracle", "num"),
        ),
        tuple(rows),
    )  # fmt: skip
    return Section(
        id="mining",
        title="Mining",
        reads="Precision and recall judge the set; what counts for training is which documents it "
        "leads to: a few frequent wrong items can cost half the selection.",
        limits="Planted pivots are cleaner than real ones.",
        blocks=(table,),
    )
