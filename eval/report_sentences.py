"""The section on sentence translation, where the run has it."""

from __future__ import annotations

from eval.report_data import RunData
from eval.report_page import Cell, Column, Section, Table
from eval.report_text import count, interval, percent

MEASURES = {
    "sentence_chrf": "mean chrF of the sentences",
    "corpus_chrf": "chrF",
    "corpus_chrf_pp": "chrF++",
}


def sentences_sections(data: RunData) -> tuple[Section, ...]:
    """One section with chrF of every model and direction, or none."""
    if not data.sentences:
        return ()
    first = next(iter(data.sentences.values()))
    signatures = "; ".join(f"{name}: {text}" for name, text in first["signatures"].items())
    return (
        Section(
            id="sentences",
            title="Sentence translation",
            reads="Sentences are translated greedily after one worked example, the preceding "
            "sentence. chrF runs from 0 to 100 and compares character n-grams with one reference.",
            limits="Meaning: a fluent wrong sentence shares characters too, and scores of "
            "different target languages cannot be compared.",
            blocks=(_models_table(data, signatures), _directions_table(data)),
        ),
    )


def _models_table(data: RunData, signatures: str) -> Table:
    columns = [Column("arm"), Column("seed", "num"), Column("sentences", "num")]
    columns += [Column(title, "num") for title in MEASURES.values()]
    columns += [Column("cut off", "num"), Column("empty", "num")]
    rows: list[tuple[Cell, ...]] = []
    for (arm, seed), summary in data.sentences.items():
        scores = (_text(summary[measure]) for measure in MEASURES)
        shares = (percent(summary[share]) for share in ("truncated", "empty"))
        rows.append((arm, str(seed), count(summary["n_sentences"]), *scores, *shares))
    caption = f"Means over the directions, with intervals over sentences. sacrebleu: {signatures}."
    return Table(caption, tuple(columns), tuple(rows))


def _directions_table(data: RunData) -> Table:
    columns = [Column("direction")]
    columns += [Column(arm, "num", f"seed {seed}") for arm, seed in data.sentences]
    pairs = next(iter(data.sentences.values()))["directions"]
    rows: list[tuple[Cell, ...]] = [
        (
            pair.replace("-", " \u2192 "),
            *(_text(s["directions"][pair]["sentence_chrf"]) for s in data.sentences.values()),
        )
        for pair in pairs
    ]
    return Table("Mean chrF of the sentences by direction.", tuple(columns), tuple(rows))


def _text(record: dict[str, float]) -> str:
    return interval(record["value"], record["low"], record["high"], 1)
