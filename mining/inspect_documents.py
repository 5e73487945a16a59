"""Documents of the token shards as text, in which items can be pointed at."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from icu4py.breakers import WordBreaker

from mining.common.shards import list_shards, open_table, read_columns
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.segment import words as segment

Facts = dict[str, Any]
CONTEXT_CHARS = 60
NEAR_DOCUMENTS = 2000


@dataclass(frozen=True)
class Part:
    """A piece of a document's text: one item, or what lies between items (`item` None)."""

    text: str
    item: int | None


class Documents:
    """The documents of a `tokenize` folder.

    `unit` is "token" or "word"; `item_of` leads from token or word ids to items, `word_item` from
    the words themselves.
    """

    def __init__(
        self,
        tokenize: Path,
        tokenizer: Path,
        unit: str,
        item_of: dict[int, int],
        word_item: dict[str, int],
    ) -> None:
        self.unit, self.item_of, self.word_item = unit, item_of, word_item
        self._tokenize, self._tokenizer = tokenize, tokenizer

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the shards."""
        return load_tokenizer(self._tokenizer)

    def _shards(self, unit: str) -> list[Path]:
        return list_shards(self._tokenize / f"{unit}s")

    def find(self, name: str) -> tuple[Facts, list[int]] | None:
        """The token shards' row of a document's id, and the ids of its tokens or words."""
        for number, shard in enumerate(self._shards("token")):
            ids = read_columns(shard, columns=["id"]).column("id")
            row = pc.index(ids, pa.scalar(name, ids.type)).as_py()
            if row >= 0:
                found = _row(shard, row)
                if self.unit == "token":
                    return found, found["tokens"]
                return found, _row(self._shards(self.unit)[number], row)["tokens"]
        return None

    def near(self, name: str) -> list[str]:
        """Ids that are written like `name`, among the first documents of each shard."""
        ids: list[str] = []
        for shard in self._shards("token"):
            with open_table(shard) as file:
                batch = next(file.iter_batches(batch_size=NEAR_DOCUMENTS, columns=["id"]), None)
            ids += batch.column("id").to_pylist() if batch is not None else []
        return difflib.get_close_matches(name, ids, n=3)

    def parts(self, tokens: Sequence[int], lang: str) -> list[Part]:
        """A document's text in parts, from its token ids."""
        if self.unit == "token":
            return list(self._token_parts(tokens))
        return [
            Part(piece, self.word_item.get(words[0]) if len(words) == 1 else None)
            for piece in WordBreaker(self.tokenizer.decode(tokens), lang)
            for words in [segment(piece, lang)]
        ]

    def _token_parts(self, tokens: Sequence[int]) -> Iterator[Part]:
        """Items one by one, other tokens together: these may be bytes of one character."""
        before: list[int] = []
        runs = itertools.groupby(
            enumerate(tokens), key=lambda pair: (self.item_of.get(pair[1]), self._whole(*pair))
        )
        for (item, _), run in runs:
            ids = [token for _, token in run]
            # What a run adds after the token before it: decoders treat the first token otherwise.
            text = self.tokenizer.decode([*before, *ids])[len(self.tokenizer.decode(before)) :]
            yield Part(text, item)
            before = ids[-1:]

    def _whole(self, place: int, token: int) -> int:
        """A key that keeps items apart and leaves other tokens together."""
        return place if token in self.item_of else -1

    def contexts(
        self,
        item: int,
        id_: int,
        languages: Sequence[str],
        at_most: int,
        max_shards: int | None = None,
    ) -> list[Facts]:
        """Snippets of text around an item, of up to `at_most` documents in each language.

        Reads until it has them, or to the end of the first `max_shards` shards.
        """
        wanted = dict.fromkeys(languages, at_most)
        found: list[Facts] = []
        tokens = self._shards("token")
        shards = list(zip(tokens, self._shards(self.unit), strict=True))[:max_shards]
        for text_shard, shard in shards:
            if not any(wanted.values()):
                break
            for row, lang in _rows_with(shard, id_):
                if wanted.get(lang, 0) <= 0:
                    continue
                document = _row(text_shard, row)
                snippet = self._snippet(self.parts(document["tokens"], lang), item)
                if snippet is not None:
                    wanted[lang] -= 1
                    found.append({"lang": lang, "document": document["id"], **snippet})
        return sorted(found, key=lambda context: languages.index(context["lang"]))

    def _snippet(self, parts: list[Part], item: int) -> Facts | None:
        place = next((k for k, part in enumerate(parts) if part.item == item), None)
        if place is None:
            return None
        before = "".join(part.text for part in parts[max(0, place - CONTEXT_CHARS) : place])
        after = "".join(part.text for part in parts[place + 1 : place + 1 + CONTEXT_CHARS])
        return {
            "before": " ".join(before.split())[-CONTEXT_CHARS:] + _edge(before[-1:]),
            "text": parts[place].text,
            "after": _edge(after[:1]) + " ".join(after.split())[:CONTEXT_CHARS],
        }


def _edge(char: str) -> str:
    """The space that joining words by single spaces loses at a snippet's border."""
    return " " if char.isspace() else ""


def _rows_with(shard: Path, id_: int) -> Iterator[tuple[int, str]]:
    """Row and language of the documents of a shard that hold an id."""
    first = 0
    with open_table(shard) as file:
        for batch in file.iter_batches(batch_size=4096, columns=["lang", "tokens"]):
            lists = batch.column("tokens")
            offsets = lists.offsets.to_numpy()
            hits = np.flatnonzero(lists.values.to_numpy() == id_)
            rows = np.unique(np.searchsorted(offsets, hits, side="right") - 1)
            for row in rows[(rows >= 0) & (rows < len(batch))].tolist():
                yield first + row, batch.column("lang")[row].as_py()
            first += len(batch)


def _row(shard: Path, row: int) -> Facts:
    """One row of a shard, reading the one row group that holds it."""
    with open_table(shard) as file:
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row < n_rows:
                found: Facts = file.read_row_group(group).slice(row, 1).to_pylist()[0]
                return found
            row -= n_rows
    raise IndexError(f"{shard}: no row {row}")
