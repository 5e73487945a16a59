"""Tokenizers: any folder or hub id with a `tokenizer.json`, read with the `tokenizers` library.

The `tokenizer` stage writes its SentencePiece model in this form too, so that mining, training and
evaluation use one engine and the same ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Engine

from mining.common.errors import InputError
from mining.common.files import read_json

END_OF_TEXT_NAMES = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "[SEP]")
# The library takes some 150 bytes of memory for each byte of the texts of one call.
CHARS_AT_A_TIME = 1 << 19
SizedT = TypeVar("SizedT", bound=Sized)


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer.

    `fingerprint` is the hex SHA-256 of its canonical JSON: equal exactly when every text gives the
    same ids. `end_of_text` is None where it has no such token. `vocab_size` is one more than the
    largest id, added tokens and gaps between ids included.
    """

    fingerprint: str
    end_of_text: int | None
    vocab_size: int
    special_ids: frozenset[int]
    engine: Engine = field(repr=False, compare=False)

    @property
    def eos_id(self) -> int:
        """The token that ends a document in a token file; the tokenizer must have one."""
        assert self.end_of_text is not None
        return self.end_of_text

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each text, uint32, without special tokens."""
        found = []
        for batch in batches(texts):
            encodings = self.engine.encode_batch_fast(batch, add_special_tokens=False)
            found += [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens."""
        ids: list[int] = self.engine.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self.engine.decode(list(ids), skip_special_tokens=False)
        return text

    def piece(self, token: int) -> str:
        """The vocabulary entry of a token id, for people: a word border shows as a space."""
        raw: str | None = self.engine.id_to_token(token)
        if raw is None:
            return f"<{token}>"
        if "\u2581" in raw:
            return raw.replace("\u2581", " ")
        text = self.decode([token])
        return raw if "\ufffd" in text or not text else text


def batches(texts: Iterable[SizedT]) -> Iterator[list[SizedT]]:
    """The texts in order, as many at a time as have CHARS_AT_A_TIME characters together.

    One that is longer is by itself.
    """
    batch: list[SizedT] = []
    n_chars = 0
    for text in texts:
        if batch and n_chars + len(text) > CHARS_AT_A_TIME:
            yield batch
            batch, n_chars = [], 0
        batch.append(text)
        n_chars += len(text)
    if batch:
        yield batch


def load_tokenizer(
    source: Path | str, revision: str | None = None, needs_eos: bool = True
) -> Tokenizer:
    """Load from a folder with `tokenizer.json`, such a file, or a hub id (and revision).

    Raises InputError where there is none, or where no end-of-text token can be found although
    documents are to be ended with it (`needs_eos`).
    """
    path = _tokenizer_file(source, revision)
    try:
        engine = Engine.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise InputError(f"{path}: not a readable tokenizer.json ({error})") from None
    engine.no_padding()
    engine.no_truncation()
    # "<s>" in somebody's text is text, not the beginning of a sequence.
    engine.encode_special_tokens = True
    special = {token: text.content for token, text in _added(engine).items() if text.special}
    candidates = [
        engine.token_to_id(name) for name in (_eos_name(path), *END_OF_TEXT_NAMES) if name
    ]
    eos_id = next((token for token in candidates if token is not None), None)
    if eos_id is None and needs_eos:
        raise InputError(
            f"{path}: no end-of-text token; name it as eos_token in tokenizer_config.json"
        )
    vocabulary = engine.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise InputError(f"{path}: has no entries")
    return Tokenizer(
        fingerprint=engine_fingerprint(engine),
        end_of_text=eos_id,
        vocab_size=1 + max(vocabulary.values()),
        special_ids=frozenset(special if eos_id is None else {*special, eos_id}),
        engine=engine,
    )


def engine_fingerprint(engine: Engine) -> str:
    """Hex SHA-256 of an engine's canonical JSON (see Tokenizer)."""
    return hashlib.sha256(engine.to_str().encode("utf-8")).hexdigest()


def _added(engine: Engine) -> dict[int, Any]:
    added: dict[int, Any] = engine.get_added_tokens_decoder()
    return added


def _tokenizer_file(source: Path | str, revision: str | None) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise InputError(f"{path}: holds no tokenizer.json")
        return path / "tokenizer.json"
    return hub_file(str(source), "tokenizer.json", revision)


def hub_file(repo: str, name: str, revision: str | None) -> Path:
    """A file of a Hugging Face hub repository, from the local cache or downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{repo}: neither a local folder nor a hub repository that could be reached for {name} "
            f"({type(error).__name__})"
        ) from None


def _eos_name(path: Path) -> str | None:
    config = path.parent / "tokenizer_config.json"
    if not config.is_file():
        return None
    values = read_json(config)
    value = values.get("eos_token") if isinstance(values, dict) else None
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None
