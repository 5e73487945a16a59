"""Encodes with the `tokenizer` stage's SentencePiece model: the ids of tokenizer.json, faster.

Three things make the ids the same for every text, not only for most. Texts are cut where a piece
cannot run on, between words, into short fragments. A unigram model's scores are multiples of 2**-8
(`mining.sentencepiece_json.round_scores`), so that SentencePiece's sums in 32 bits are exact for a
fragment, as the other engine's sums in 64 bits are; otherwise about one document in a hundred gets
other ids. And what is too long for that is left to the other engine, a million characters at a
time: it takes 150 bytes of memory for each byte of text.
"""

from __future__ import annotations

import dataclasses
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
from tokenizers import Tokenizer as Engine
from tokenizers import normalizers

from mining.common.errors import InputError
from mining.common.files import sha256_file
from mining.common.logs import log
from mining.common.manifest import read_manifest
from mining.common.tokenizer import Tokenizer, batches, engine_fingerprint
from mining.sentencepiece_json import (
    BORDER,
    SCORE_UNIT,
    has_rounded_scores,
    read_kind,
    to_tokenizer_json,
)

MODEL = "spm.model"
# A unigram fragment's sums stay below this with 24 bits at steps of SCORE_UNIT.
MAX_SUM = SCORE_UNIT * (1 << 24)
UNKNOWN_PENALTY = 10.0  # SentencePiece's own, below the lowest score
FRAGMENT_CHARS = 200
MAX_CHARS = 2000
LINES_CHARS = 10_000
NEWLINE = "<0x0A>"


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part of text number `text`; `begins` where a word begins there, with its border."""

    text: int
    chars: str
    begins: bool

    def __len__(self) -> int:
        return len(self.chars)


class SentencePieceEncoder:
    """Encodes texts with the model of a tokenizer folder, for which `load_encoder` vouches."""

    def __init__(self, model: Path, tokenizer: Tokenizer) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self._tokenizer = tokenizer
        lowest = min(map(self._processor.get_score, range(len(self._processor))))
        self._max_chars = min(MAX_CHARS, int(MAX_SUM / (UNKNOWN_PENALTY - lowest)))
        kind = read_kind(model.read_bytes())
        if kind == "bpe":
            self._max_chars = MAX_CHARS  # the order of merges takes no sums
        elif kind == "word":
            self._max_chars = 0  # a look-up, which the other engine does as fast

        self._within = _within_words(tokenizer) if _cuts_lines(self._processor) else None

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each text, uint32: what `Tokenizer.encode_batch` gives."""
        found = [array("I") for _ in texts]
        for batch in batches(self._parts(texts)):
            short = [part for part in batch if self._is_short(part)]
            ids = self._processor.encode(
                [part.chars for part in short], out_type=int, num_threads=_threads()
            )
            ours = iter(ids)
            others = iter(self._encode_long([part for part in batch if not self._is_short(part)]))
            for part in batch:
                if self._is_short(part):
                    found[part.text].fromlist(next(ours))
                else:
                    found[part.text].frombytes(next(others).tobytes())
        return [np.array(ids, dtype=np.uint32) for ids in found]

    def _parts(self, texts: Sequence[str]) -> Iterator[Part]:
        for number, text in enumerate(texts):
            for fragment in cut_text(text):
                if len(fragment) <= self._max_chars or self._within is None:
                    yield Part(number, fragment, True)
                    continue
                for k, lines in enumerate(cut_lines(fragment)):
                    yield Part(number, lines, k == 0)

    def _is_short(self, part: Part) -> bool:
        return part.begins and len(part.chars) <= self._max_chars

    def _encode_long(self, parts: list[Part]) -> Iterator[npt.NDArray[np.uint32]]:
        first = iter(self._tokenizer.encode_batch([part.chars for part in parts if part.begins]))
        rest = [part.chars for part in parts if not part.begins]
        others = iter(self._within.encode_batch(rest) if self._within is not None else ())
        return (next(first if part.begins else others) for part in parts)


def _cuts_lines(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether a line's end is a byte for itself, so that no piece and no merge runs across it."""
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    across = [piece for piece in pieces if "\n" in piece or NEWLINE in piece]
    return across == [NEWLINE] and processor.is_byte(pieces.index(NEWLINE))


def _within_words(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for what goes on a word: it puts no border before a text."""
    engine = Engine.from_str(tokenizer.engine.to_str())
    engine.normalizer = normalizers.Replace(" ", BORDER)
    engine.encode_special_tokens = True
    return dataclasses.replace(tokenizer, engine=engine)


def cut_text(text: str) -> list[str]:
    """Cut between words after every 200 characters; the space at a cut is left out.

    Both engines put a word's space before it, and one before a text: so each fragment has its own.
    """
    fragments = []
    start = 0
    while (cut := text.find(" ", start + FRAGMENT_CHARS)) >= 0:
        while text.startswith(" ", cut + 1):
            cut += 1  # the last of several spaces is the next word's
        if cut + 1 == len(text):
            break
        fragments.append(text[start:cut])
        start = cut + 1
    fragments.append(text[start:])
    return fragments


def cut_lines(text: str) -> Iterator[str]:
    """Cut after the first end of a line in every 10,000 characters; nothing is left out."""
    start = 0
    while (end := text.find("\n", start + LINES_CHARS) + 1) > 0 and end < len(text):
        yield text[start:end]
        start = end
    yield text[start:]


def load_encoder(
    folder: Path, tokenizer: Tokenizer, sample: Iterable[str]
) -> SentencePieceEncoder | None:
    """The encoder of a tokenizer folder; None where its ids might not be those of `tokenizer`.

    Where the model is not the one that tokenizer.json was made from, or its scores are not rounded,
    there is no such encoder. The texts of `sample` are encoded both ways all the same.
    """
    path = folder / MODEL
    if not path.is_file():
        return None
    model = path.read_bytes()
    kind = read_kind(model)
    if not _is_recorded(folder):
        engine, _ = to_tokenizer_json(model, kind)
        if engine_fingerprint(engine) != tokenizer.fingerprint:
            log.warning("%s is not the model of the tokenizer beside it, and is not used", path)
            return None
    encoder = SentencePieceEncoder(path, tokenizer)
    if kind == "unigram" and not has_rounded_scores(model):
        log.info("%s has scores that are not rounded, and is not used to tokenize", path)
        return None
    texts = list(sample)
    pairs = zip(encoder.encode_batch(texts), tokenizer.encode_batch(texts), strict=True)
    if not all(np.array_equal(ours, others) for ours, others in pairs):
        log.warning("%s gives other ids than the tokenizer.json beside it, and is not used", path)
        return None
    return encoder


def _is_recorded(folder: Path) -> bool:
    """Whether the stage that made tokenizer.json from the model says that both are what it wrote.

    To make it again would take longer than to tokenize megabytes.
    """
    try:
        manifest = read_manifest(folder, "tokenizer")
    except InputError:
        return False
    names, outputs = (MODEL, "tokenizer.json"), manifest.outputs
    # A tokenizer of somebody else's was copied: nobody knows what it was made from.
    return "model_type" in manifest.settings and all(
        name in outputs and outputs[name]["sha256"] == sha256_file(folder / name) for name in names
    )


def _threads() -> int:
    """As many threads as the other engine takes: all cores, but one in a worker process."""
    return int(os.environ.get("RAYON_NUM_THREADS", len(os.sched_getaffinity(0))))
