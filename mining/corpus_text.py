"""The text of the documents in token shards, read once more from the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mining.common.errors import MismatchError
from mining.common.manifest import read_manifest
from mining.documents import Record
from mining.inputs import Reader, input_files, open_readers
from mining.settings import CorpusSettings

SHARD_COLUMNS = ["id", "lang", "n_chars"]


def open_text(corpus: CorpusSettings, tokens: Path, tokenizer: Path, n_shards: int) -> list[Reader]:
    """The corpus' parts, the k-th one with the documents of the k-th shard of `tokens`.

    Raises MismatchError where the shards were made from other files.
    """
    readers = open_readers(corpus, tokenizer)
    names = sorted(input_files(corpus))
    recorded = read_manifest(tokens, "tokenize").inputs.get("documents", {}).get("files")
    if len(readers) != n_shards or (recorded is not None and sorted(recorded) != names):
        raise MismatchError(
            f"corpus.path has {len(names)} files, but {tokens} was made from "
            f"{n_shards if recorded is None else len(recorded)}, or from others; "
            "run `pivots tokenize` again"
        )
    return readers


def documents_of(reader: Reader, shard: Any, path: Path) -> Iterator[Record]:
    """The records that the shard at `path` holds, in order; `shard` has its SHARD_COLUMNS.

    A shard is its file's records without the rejected and dropped ones, so both are walked through
    side by side. Length and language tell a document from one of the same id that was dropped.
    """
    ids = shard.column("id").to_pylist()
    langs = shard.column("lang").to_pylist()
    lengths = shard.column("n_chars").to_pylist()
    row = 0
    for record in reader:
        if (
            row < len(ids)
            and isinstance(record, Record)
            and record.id == ids[row]
            and len(record.text) == lengths[row]
            and record.lang in (None, langs[row])
        ):
            row += 1
            yield record
    if row < len(ids):
        raise MismatchError(
            f"{reader.path}: the document '{ids[row]}' of {path} is not there, or another length; "
            "the corpus changed, run `pivots tokenize` again"
        )


def require_unchanged(hashes: Mapping[str, str], tokens: Path) -> None:
    """Raise MismatchError where a file's hash is not the one it had when it was tokenised."""
    recorded = read_manifest(tokens, "tokenize").inputs.get("documents", {}).get("files", {})
    for name, entry in recorded.items():
        if name in hashes and entry.get("sha256", hashes[name]) != hashes[name]:
            raise MismatchError(f"{name}: changed since {tokens}; run `pivots tokenize` again")
