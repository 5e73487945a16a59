"""datatrove steps that anyone can put into a pipeline of their own.

LocalPipelineExecutor([
    RecordReader("my-corpus", quarantine="bad"),
    PivotFilter("runs/mine/pivots", "runs/mine/tokenizer", min_proportion=0.1),
    JsonlWriter("pivot-rich"),
], tasks=8).run()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.writers.disk_base import DiskWriter

from mining.common.errors import check_setting
from mining.common.files import write_text
from mining.common.manifest import read_manifest, require_same
from mining.common.tokenizer import load_tokenizer
from mining.documents import SUFFIXES, FileReader, Rejected
from mining.kernels.proportion import count_pivots
from mining.score import pivot_mask
from mining.settings import CorpusSettings
from mining.tokenize import quarantine_line


class RecordReader(BaseDiskReader):  # type: ignore[misc]
    """Reads JSONL (plain, .gz, .zst) and Parquet; bad records go to a quarantine folder.

    Unlike datatrove's JsonlReader it loses no line in silence, goes on after bad UTF-8, and never
    holds a record longer than `settings.max_record_bytes`.

    Args:
        data_folder: folder of the files, local or any fsspec URL.
        quarantine: local folder for the bad records, one JSONL file an input file.
        settings: names of the fields and limits; its path and languages are not used.
        glob_pattern: pattern of the files; None takes those with a known suffix.
    """

    name = "Records (with quarantine)"

    def __init__(
        self,
        data_folder: str,
        quarantine: str,
        settings: CorpusSettings | None = None,
        glob_pattern: str | None = None,
    ) -> None:
        super().__init__(data_folder, glob_pattern=glob_pattern)
        self.quarantine = Path(quarantine)
        self.settings = settings or CorpusSettings()

    def read_file(self, filepath: str) -> DocumentsPipeline:
        """Yield a file's good records as documents, then write its quarantine."""
        if not filepath.endswith(SUFFIXES):
            return
        rejected = []
        path = self.data_folder.resolve_paths(filepath)
        for item in FileReader(path, filepath, self.settings):
            if isinstance(item, Rejected):
                self.stat_update("quarantined", f"quarantined_{item.reason}")
                rejected.append(item)
                continue
            metadata: dict[str, Any] = {
                "lang": item.lang,
                "source": item.source,
                "group": item.group,
            }
            metadata |= {"file_path": path, "line": item.line}
            yield Document(text=item.text, id=item.id, metadata=metadata)
        if rejected:
            lines = "".join(map(quarantine_line, rejected))
            write_text(self.quarantine / f"{filepath.replace('/', '__')}.jsonl", lines)


class PivotFilter(BaseFilter):  # type: ignore[misc]
    """Keeps documents whose share of pivots is at least `min_proportion` (METHOD section 4).

    The share is left in `metadata["pivot_proportion"]` of every document.

    Args:
        pivots: folder of a finished `pivots` stage whose items are tokens.
        tokenizer: tokenizer folder (or hub id) that the pivots were counted with.
        min_proportion: least share of pivots among a document's tokens, 0 to 1.
        exclusion_writer: where dropped documents go, as for every datatrove filter.
    """

    name = "Pivot proportion"

    def __init__(
        self,
        pivots: str,
        tokenizer: str,
        min_proportion: float,
        exclusion_writer: DiskWriter | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        self.pivots, self.tokenizer, self.min_proportion = pivots, tokenizer, min_proportion
        check_setting(self, "min_proportion", 0 <= min_proportion <= 1, "between 0 and 1")
        self._loaded: tuple[Any, Any] | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether to keep one document."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Whether to keep each document of a batch."""
        if self._loaded is None:
            # Here and not in the constructor, so that a worker loads its own.
            self._loaded = self._load()
        tokenizer, mask = self._loaded
        results: list[bool | tuple[bool, str]] = []
        for doc, tokens in zip(
            batch, tokenizer.encode_batch([doc.text for doc in batch]), strict=True
        ):
            n_pivots = int(count_pivots(tokens, np.array([0, len(tokens)]), mask)[0])
            proportion = n_pivots / max(len(tokens), 1)
            doc.metadata["pivot_proportion"] = proportion
            keep = proportion >= self.min_proportion
            results.append(True if keep else (False, "pivot_proportion"))
        return results

    def _load(self) -> tuple[Any, Any]:
        counts = read_manifest(Path(self.pivots), "pivots").counts
        tokenizer = load_tokenizer(self.tokenizer)
        found = {self.pivots: f"{counts['unit']} ids {counts['fingerprint']}"}
        found[self.tokenizer] = f"token ids {tokenizer.fingerprint}"
        require_same("the unit or tokenizer of the ids", found)
        return tokenizer, pivot_mask(Path(self.pivots))
