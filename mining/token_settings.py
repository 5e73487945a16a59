"""Settings of documents that are token ids already (see mining.settings)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mining.common.errors import check_setting
from mining.common.stage import path_setting


@dataclass(frozen=True)
class TokenFilesSettings:
    """Documents that are token ids already: the files under corpus.path hold ids, not text.

    Attributes:
        layout: ds (datatrove: NAME.ds with NAME.ds.index), memmap (raw ids, each document with an
            end-of-text id behind it), sequences (raw ids in pieces of sequence_length, as OLMo
            trains on them); null means that corpus.path holds text.
        dtype: type of the ids; null means uint16 where the tokenizer's vocabulary fits it.
        separator: the id behind each document; null means the tokenizer's end-of-text.
        files: ordered list of the token files for sequences, relative to corpus.path or whole URLs:
            a text file of one a line, or an OLMo training config (.yaml, its data.paths); null
            takes the files found, by name.
        sequence_length: tokens of a sequence; a file's last tokens that fill none are left out.
        order: OLMo's global_indices.npy: sequence numbers (uint32, no header) in the order of
            training; null takes the sequences as they lie.
        first_step: training steps done before the first sequence that is wanted.
        steps: training steps whose sequences are wanted; null means all that are left.
        step_sequences: sequences of one training step.
    """

    layout: Literal["ds", "memmap", "sequences"] | None = None
    dtype: Literal["uint16", "uint32"] | None = None
    separator: int | None = None
    files: str | None = path_setting()
    sequence_length: int = 2048
    order: str | None = path_setting()
    first_step: int = 0
    steps: int | None = None
    step_sequences: int = 2048

    def __post_init__(self) -> None:
        for key in ("files", "order"):
            ok = getattr(self, key) is None or self.layout == "sequences"
            check_setting(self, key, ok, "null unless layout is sequences")
        check_setting(self, "first_step", self.first_step >= 0, "at least 0")
        check_setting(self, "steps", self.steps is None or self.steps >= 1, "at least 1, or null")
        for key in ("sequence_length", "step_sequences"):
            check_setting(self, key, getattr(self, key) >= 1, "at least 1")
        check_setting(
            self, "separator", self.separator is None or self.separator >= 0, "an id, or null"
        )
