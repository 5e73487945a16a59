"""Names of items: the text of token ids and word ids, and whether they hold a letter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.errors import InputError
from mining.common.logs import log
from mining.common.manifest import MANIFEST
from mining.common.shards import read_columns
from mining.common.stage import FilesInput, Input, StageInput
from mining.common.tokenizer import Tokenizer
from mining.settings import MAX_ITEMS

RARE_WORDS = 0
VOCABULARY = "vocabulary.parquet"
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def tokenizer_input(path: Path) -> Input:
    """A tokenizer folder as a stage's input: of our `tokenizer` stage, or any other folder."""
    if (path / MANIFEST).is_file():
        return StageInput(path, "tokenizer")
    names = ("tokenizer.json", "tokenizer_config.json")
    if not path.exists():
        raise InputError(f"{path}: does not exist; run `pivots tokenizer` first")
    found = {name: path / name for name in names if (path / name).is_file()}
    return FilesInput(found) if found else FilesInput.folder(path)


def holds_letter(text: str) -> bool:
    """Whether the text has a letter of any script."""
    return any(unicodedata.category(char).startswith("L") for char in text)


def token_holds_letter(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token is more than punctuation, digits, white space or a part of a character.

    Decided on the decoded token: the vocabulary writes bytes as "<0x4C>" or as stand-in letters.
    """
    if token in tokenizer.special_ids:
        return False
    piece = tokenizer.engine.id_to_token(token)
    if piece is None or BYTE_PIECE.fullmatch(piece):
        return False
    return holds_letter(tokenizer.decode([token]))


def token_columns(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, pa.Array]:
    """The columns `text`, `tokens` and `has_letter` of token-id items."""
    return {
        "text": pa.array([tokenizer.piece(token) for token in ids], pa.string()),
        "tokens": pa.array([[token] for token in ids], pa.list_(pa.uint32())),
        "has_letter": pa.array([token_holds_letter(tokenizer, t) for t in ids], pa.bool_()),
    }


def word_columns(
    tokenizer: Tokenizer, vocabulary: Sequence[str], ids: Sequence[int]
) -> dict[str, pa.Array]:
    """The columns `text`, `tokens` (of a space and the word) and `has_letter` of word-id items."""
    words = [vocabulary[word] for word in ids]
    tokens = tokenizer.encode_batch([" " + word for word in words])
    return {
        "text": pa.array(words, pa.string()),
        "tokens": pa.array(tokens, pa.list_(pa.uint32())),
        "has_letter": pa.array([holds_letter(word) for word in words], pa.bool_()),
    }


def read_vocabulary(folder: Path) -> list[str]:
    """The words of a word-shard folder by their ids ("" for RARE_WORDS).

    Raises InputError where there is no vocabulary.
    """
    path = folder / VOCABULARY
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `pivots tokenize` with tokenize.words")
    table = read_columns(path, ["id", "word"])
    words = [""] * (1 + max(table.column("id").to_pylist(), default=RARE_WORDS))
    for number, word in zip(*(column.to_pylist() for column in table.columns), strict=True):
        words[number] = word
    return words


def read_item_list(
    path: Path, vocabulary: Sequence[str], excluded: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which ids a file of one item a line names, as a mask (bool [n_ids]).

    Words (NFC, case folded) where there is a vocabulary of words, else token ids. Words that the
    vocabulary lacks and ids that are `excluded` cannot be counted: they are left out, with a
    warning. Raises InputError for a line that is no id, and where nothing is left.
    """
    numbers = {word: number for number, word in enumerate(vocabulary)}
    mask = np.zeros(len(excluded), dtype=np.bool_)
    left_out: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    for row, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if vocabulary:
            number = numbers.get(unicodedata.normalize("NFC", line).casefold())
        elif not (line.isascii() and line.isdigit()) or int(line) >= len(mask):
            raise InputError(
                f"{path}:{row}: found {line[:80]!r}, expected a token id below {len(mask)} "
                "(for words: count.unit word)"
            )
        else:
            number = int(line)
        if number is None or excluded[number]:
            left_out.append(line)
        else:
            mask[number] = True
    if left_out:
        log.warning(
            "count: %d items of %s are not in the corpus' vocabulary, such as %s",
            len(left_out), path, ", ".join(left_out[:5]),
        )  # fmt: skip
    if not 2 <= mask.sum() <= MAX_ITEMS:
        raise InputError(f"{path}: {mask.sum()} items can be counted, expected 2 to {MAX_ITEMS}")
    return mask


def excluded_ids(special: Sequence[int], n_ids: int) -> npt.NDArray[np.bool_]:
    """Mask (bool [n_ids]) of the ids that are never items."""
    mask = np.zeros(n_ids, dtype=np.bool_)
    mask[[token for token in special if token < n_ids]] = True
    return mask
