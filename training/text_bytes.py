"""How many bytes of text tokens stand for, to the byte.

Decoding cannot say it: of a document that is cut inside a character it gives marks of replacement,
and it leaves out the space that a decoder takes away before a text. So each token counts what it
stands for, and the counts of the parts of a document add up to the document's.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from mining.common.tokenizer import Tokenizer

BORDER = "\u2581"
BYTE_SPACE = "\u0120"  # how byte-level BPE writes a space
BYTE_PIECE_CHARS = len("<0x00>")


def text_bytes(tokens: npt.NDArray[np.int64], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text of all `tokens` but the first, which only says what is before them.

    End-of-text tokens have none, nor has the space that a tokenizer puts before each document
    (SentencePiece's border mark, `add_prefix_space`): the first token of a document counts without
    it. Exact for tokenizers that spell what they do not know as bytes (SentencePiece with byte
    fallback, byte-level BPE), with two exceptions. SentencePiece takes a lower block (U+2581) in a
    text for a space. And tokenizers that put their space only before a document that begins without
    one (Metaspace, `add_prefix_space`) give both the same tokens: a document that begins with a
    space counts one byte less. Elsewhere an unknown token counts as its own name.
    """
    after = tokens[1:]
    description = json.loads(tokenizer.engine.to_str())
    kinds = {part["type"] for part in _parts(description["decoder"], "decoders")}
    if not kinds & {"ByteLevel", "ByteFallback"}:
        return _decoded_bytes(after, tokenizer)
    prefixed = _puts_a_space_before(description)
    present, places = np.unique(after, return_inverse=True)
    lengths, marked = (np.zeros(len(present), dtype=np.int64) for _ in range(2))
    added = {i: t.content for i, t in tokenizer.engine.get_added_tokens_decoder().items()}
    for k, token in enumerate(present.tolist()):
        piece: str | None = tokenizer.engine.id_to_token(token)
        if piece is None or token == tokenizer.eos_id:
            continue
        if token in added:
            lengths[k] = len(added[token].encode())
        elif "ByteLevel" in kinds:
            lengths[k] = len(piece)  # a character stands for a byte
            marked[k] = prefixed and piece.startswith(BYTE_SPACE)
        elif len(piece) == BYTE_PIECE_CHARS and piece.startswith("<0x") and piece.endswith(">"):
            lengths[k] = 1
        else:
            lengths[k] = len(piece.replace(BORDER, " ").encode())
            marked[k] = prefixed and piece.startswith(BORDER)
    begins = tokens[:-1] == tokenizer.eos_id
    return int(lengths[places].sum() - marked[places[begins]].sum())


def _puts_a_space_before(description: dict[str, Any]) -> bool:
    """Whether a text without a space before it gets one from the tokenizer."""
    before = _parts(description["normalizer"], "normalizers")
    before += _parts(description["pre_tokenizer"], "pretokenizers")
    return any(
        part.get("prepend") == BORDER
        or part.get("add_prefix_space") is True
        or part.get("prepend_scheme") in ("always", "first")
        for part in before
    )


def _parts(description: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A part of a tokenizer, or the parts that it is a sequence of."""
    parts: list[dict[str, Any]] = (description or {}).get(key, [description])
    return [part for part in parts if part]


def _decoded_bytes(tokens: npt.NDArray[np.int64], tokenizer: Tokenizer) -> int:
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.eos_id) + 1)
    texts = (
        tokenizer.decode([int(t) for t in document if t != tokenizer.eos_id])
        for document in documents
    )
    return sum(len(text.encode("utf-8", "replace")) for text in texts)
