"""Which records of a part of the corpus stand by themselves; the same ones, read a second time.

Their texts and raw bytes are not kept between the readings, as they are as large as the corpus.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mining.common.errors import InputError
from mining.common.files import read_json
from mining.documents import Record, Rejected, reject_record
from mining.duplicates import KEPT, SAME_ID, Verdict, read_verdict
from mining.inputs import Reader
from mining.langid import identify
from mining.settings import CorpusSettings


def keep_records(
    reader: Iterable[Record | Rejected],
    corpus: CorpusSettings,
    report: dict[str, Any],
    identified: list[tuple[int, str, str, float]],
    reject: Callable[[Rejected], object],
    keep_raw: bool = False,
) -> Iterator[tuple[Record, str]]:
    """Yield the records that stand by themselves, with their language; account for the others.

    Their `raw` is kept only on demand: a batch of them would be twice as large with it.
    `identified` gets (row, id, language, confidence) of those that no field labelled.
    """
    row = 0
    for item in reader:
        report["records"] += 1
        if isinstance(item, Rejected):
            reject(item)
            report["quarantined"][item.reason] += 1
            continue
        if len(item.text) < corpus.min_chars:
            report["dropped"]["too short"] += 1
            continue
        lang, confidence = item.lang, None
        if lang is None:
            lang, confidence = identify(item.text)
            report["languages_identified"] += 1
        if corpus.languages and lang not in corpus.languages:
            report["dropped"]["language"] += 1
            continue
        if confidence is not None:
            identified.append((row, item.id, lang, confidence))
        row += 1
        # What it was read from is needed no more, and is as large as the text.
        yield (item if keep_raw else dataclasses.replace(item, raw=b"")), lang


def kept_texts(k: int, readers: list[Reader], corpus: CorpusSettings, parts: Path) -> Iterator[str]:
    """The texts of a part's documents that are kept so far."""
    kept = read_verdict(parts, k) == KEPT
    for row, record in _read_again(k, readers[k], corpus, parts):
        if kept[row]:
            yield record.text


def _read_again(
    k: int, reader: Reader, corpus: CorpusSettings, parts: Path, keep_raw: bool = False
) -> Iterator[tuple[int, Record]]:
    """The records of a part that stand by themselves, by row, as the first reading found them.

    Raises InputError where they are others by now.
    """
    n_rows, row = len(read_verdict(parts, k)), -1
    good = keep_records(reader, corpus, _no_report(), [], lambda _: None, keep_raw)
    for row, (record, _) in enumerate(good):
        if row == n_rows:
            raise _changed(reader)
        yield row, record
    if row + 1 != n_rows or reader.hashes != read_json(parts / f"{k:05d}.json")["hashes"]:
        raise _changed(reader)


def _changed(reader: Reader) -> InputError:
    return InputError(
        f"{reader.path} ({reader.name}): changed while it was read; run the same command again "
        "once nothing writes to it any more"
    )


def _no_report() -> dict[str, Any]:
    return defaultdict(Counter, records=0, languages_identified=0)


def requarantine(
    k: int, verdict: Verdict, reader: Reader, corpus: CorpusSettings, parts: Path
) -> Iterator[Rejected]:
    """Fetch the raw records of a file's duplicate ids again, in order."""
    bad = verdict == SAME_ID
    if not bad.any():
        return
    for row, record in _read_again(k, reader, corpus, parts, keep_raw=True):
        if bad[row]:
            detail = f"the id {record.id!r} stood in an earlier record"
            yield reject_record(record, "duplicate id", detail)
