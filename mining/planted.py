"""What a generated world planted, as token ids: for the arms that know it, and to judge mining.

The arms `oracle` and `broken-pivot` of a world are controls. The oracle chooses documents by the
planted pivots. The broken arm holds the documents of the pivot arm with every planted pivot
replaced by another of its topic, by one permutation a language: length, density and frequencies
stay, only the tie between the languages is gone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.files import read_json
from mining.common.seeds import generator
from mining.common.tokenizer import Tokenizer


@dataclass(frozen=True)
class Planted:
    """The planted pivots of a world.

    `ids` int64 [n], ascending, are their token ids; `topic` [n] the topic of each one's concept;
    `languages` the codes of the world.
    """

    ids: npt.NDArray[np.int64]
    topic: tuple[str, ...]
    languages: tuple[str, ...]

    def mask(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """bool [vocab_size]: which ids are planted pivots."""
        found = np.zeros(vocab_size, dtype=bool)
        found[self.ids] = True
        return found

    def broken(self, vocab_size: int, seed: int) -> dict[str, npt.NDArray[np.uint32]]:
        """Language -> the id that stands for each id in the broken arm, uint32 [vocab_size].

        Pivots of a topic change places among themselves, each language by a draw of its own; no
        other id changes.
        """
        found = {}
        for lang in self.languages:
            new = np.arange(vocab_size, dtype=np.uint32)
            for topic in sorted(set(self.topic)):
                here = self.ids[[name == topic for name in self.topic]]
                rng = generator(seed, "mix", "broken", lang, topic)
                new[here] = rng.permutation(here).astype(np.uint32)
            found[lang] = new
        return found


def read_planted(world: Path, tokenizer: Tokenizer) -> Planted:
    """The truth of a `world` folder in a tokenizer's ids.

    Raises InputError where a pivot is not one token of its own, so that no id stands for it.
    """
    path = world / "truth.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; the arms oracle and broken-pivot need a world's")
    truth = read_json(path)
    topics: dict[int, str] = {}
    texts: dict[int, list[str]] = defaultdict(list)
    for text, concepts in truth["pivots"].items():
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            raise InputError(
                f"{path}: the pivot {text!r} is {len(ids)} tokens, expected one; take a tokenizer "
                "of whole words (tokenizer.model_type word) with a vocab_size for all of them"
            )
        # A concept's id is its topic and its place in it.
        topics[ids[0]] = next(iter(concepts.values()))[0].rsplit("-", 1)[0]
        texts[ids[0]].append(text)
    if shared := [found for found in texts.values() if len(found) > 1]:
        raise InputError(
            f"{path}: the pivots {' and '.join(shared[0])} are the same token (unknown words?); "
            "raise tokenizer.vocab_size"
        )
    ids = sorted(topics)
    return Planted(
        np.asarray(ids, dtype=np.int64), tuple(topics[i] for i in ids), tuple(truth["languages"])
    )
