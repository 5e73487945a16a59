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
BYTE_PIECE_CHARS = len("<0x00>")


def text_bytes(tokens: npt.NDArray[np.int64], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text of all `tokens` but the first, which only says what is before them.

    End-of-text tokens have none. Exact for tokenizers that spell what they do not know as bytes
    (SentencePiece with byte fallback, byte-level BPE), but that SentencePiece takes a lower block
    (U+2581) in a text for a space; elsewhere an unknown token counts as its own name.
    """
    after = tokens[1:]
    kinds = _decoder_kinds(tokenizer)
    if not kinds & {"ByteLevel", "ByteFallback"}:
        return _decoded_bytes(after, tokenizer)
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
        elif len(piece) == BYTE_PIECE_CHARS and piece.startswith("<0x") and piece.endswith(">"):
            lengths[k] = 1
        else:
            lengths[k] = len(piece.replace(BORDER, " ").encode())
            marked[k] = "Strip" in kinds and piece.startswith(BORDER)
    # The border mark before a document is the tokenizer's own.
    begins = tokens[:-1] == tokenizer.eos_id
    return int(lengths[places].sum() - marked[places[begins]].sum())


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    decoder: dict[str, Any] = json.loads(tokenizer.engine.to_str())["decoder"] or {}
    return {part["type"] for part in decoder.get("decoders", [decoder]) if part}


def _decoded_bytes(tokens: npt.NDArray[np.int64], tokenizer: Tokenizer) -> int:
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.eos_id) + 1)
    texts = (
        tokenizer.decode([int(t) for t in document if t != tokenizer.eos_id])
        for document in documents
    )
    return sum(len(text.encode("utf-8", "replace")) for text in texts)
