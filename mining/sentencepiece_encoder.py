"""Encodes with the `tokenizer` stage's SentencePiece model: the ids of tokenizer.json, faster.

Three things make the ids the same for every text, not only for most. Texts are cut where a piece
cannot run on, between words, into short fragments. A unigram model's scores are multiples of 2**-8
(`mining.sentencepiece_json.round_scores`), so that SentencePiece's sums in 32 bits are exact for a
fragment, as the other engine's sums in 64 bits are; otherwise about one document in a hundred gets
other ids. And what is too long for that is left to the other engine.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from mining.common.errors import InputError
from mining.common.files import sha256_file
from mining.common.logs import log
from mining.common.manifest import read_manifest
from mining.common.tokenizer import Tokenizer, engine_fingerprint
from mining.sentencepiece_json import (
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


class SentencePieceEncoder:
    """Encodes texts with the model of a tokenizer folder, for which `load_encoder` vouches."""

    def __init__(self, model: Path, tokenizer: Tokenizer) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self._tokenizer = tokenizer
        lowest = min(map(self._processor.get_score, range(len(self._processor))))
        self._max_chars = min(MAX_CHARS, int(MAX_SUM / (UNKNOWN_PENALTY - lowest)))
        if read_kind(model.read_bytes()) == "bpe":
            self._max_chars = MAX_CHARS  # the order of merges takes no sums

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each text, uint32: what `Tokenizer.encode_batch` gives."""
        fragments = [cut_text(text) for text in texts]
        flat = list(itertools.chain.from_iterable(fragments))
        short = [fragment for fragment in flat if len(fragment) <= self._max_chars]
        found = self._processor.encode(short, out_type=int, num_threads=_threads())
        if len(short) < len(flat):
            long = [fragment for fragment in flat if len(fragment) > self._max_chars]
            others = iter(self._tokenizer.encode_batch(long))
            ours = iter(found)
            found = [next(ours if len(f) <= self._max_chars else others) for f in flat]
        ids = iter(found)
        return [
            np.fromiter(
                itertools.chain.from_iterable(itertools.islice(ids, len(parts))), dtype=np.uint32
            )
            for parts in fragments
        ]


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
    if kind == "word":
        return None  # a look-up, which the other engine does as fast
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
