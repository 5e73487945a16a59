"""The load benchmark's documents, and what it says of two sizes."""

from __future__ import annotations

from pathlib import Path

from launch.bench.load import (
    RESOLUTION_BYTES,
    STAGES,
    TARGET_BYTES,
    markdown,
    verdict,
    write_corpus,
)
from mining.documents import FileReader, Record, list_documents
from mining.settings import CorpusSettings


def test_repeated_documents_are_all_different_and_as_long_as_asked(tmp_path: Path) -> None:
    texts = [("en", "one two three " * 40), ("fr", "un"), ("zh", "一二三" * 100)]
    write_corpus(texts, tmp_path / "docs", 1000, 90, 3)
    corpus = CorpusSettings(path=str(tmp_path / "docs"))
    files = list_documents(corpus).items()
    found = [item for name, path in files for item in FileReader(path, name, corpus)]
    records = [item for item in found if isinstance(item, Record)]
    assert len(files) == 3
    assert len(records) == len(found) == 1000
    assert len({record.id for record in records}) == len({r.text for r in records}) == 1000
    assert {record.lang for record in records} == {"en", "fr", "zh"}
    assert {len(record.text) for record in records if record.lang == "en"} == {90}
    assert max(len(record.text) for record in records) == 90


def test_few_documents_are_too_few_to_tell() -> None:
    growth = {"tokenize": 40.0, "mix": 100_000.0}
    few = verdict(growth, (300, 3000))
    assert few.met is None
    needed = int(few.text.split("at least ")[1].split()[0].replace(",", ""))
    assert verdict(growth, (needed // 10, needed - 10)).met is None
    assert verdict(growth, (needed // 10, needed + 10)).met is False


def test_many_documents_are_judged_by_the_stage_that_grows_most() -> None:
    sizes = (200_000, 2_000_000)
    assert (sizes[1] - sizes[0]) * TARGET_BYTES > RESOLUTION_BYTES
    assert verdict({"tokenize": 40.0, "mix": TARGET_BYTES}, sizes).met is True
    found = verdict({"tokenize": TARGET_BYTES + 1, "mix": -5.0}, sizes)
    assert found.met is False
    assert found.text.startswith(
        "tokenize grows most, by 1,025 bytes a document (give or take 142)"
    )


def test_the_table_has_both_sizes_and_the_slope() -> None:
    small = {stage: {"peak_mb": 500.0, "seconds": 2.0} for stage in STAGES}
    large = {stage: {"peak_mb": 590.0, "seconds": 20.0} for stage in STAGES}
    lines = markdown((100_000, 1_000_000), small, large).splitlines()
    assert lines[2] == "| tokenize | 500 MB | 590 MB | 100 | 20 |"
    assert len(lines) == 2 + len(STAGES)
    assert "1,000,000" in lines[0]
