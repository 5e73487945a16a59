"""What a generated world planted, as token ids: for the arms that know it, and to judge mining.

The arms `oracle` and `broken-pivot` of a world are controls. The oracle chooses documents by the
planted pivots. The broken arm holds the documents of the pivot arm with every planted pivot
replaced by another of its topic, by one permutation a language: length, density and frequencies
stay, only the tie between the languages is gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mining.common.errors import InputError
from mining.common.files import read_json
from mining.common.seeds import generator
from mining.common.shards import read_shard
from mining.common.token_file import open_token_file, write_token_file
from mining.common.tokenizer import Tokenizer
from mining.kernels.proportion import count_pivots
from mining.mix_select import Pool, Selection, select_documents
from mining.mix_settings import PLANTED_ARMS


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

        Pivots of a topic change places among themselves, by a drawn cycle that is turned once more
        for each language: no two languages agree on any pivot, and the first keeps its own. No
        other id changes. Raises InputError where a topic has fewer pivots than there are languages.
        """
        found = {lang: np.arange(vocab_size, dtype=np.uint32) for lang in self.languages}
        for topic in sorted(set(self.topic)):
            here = self.ids[[name == topic for name in self.topic]]
            if len(here) < len(self.languages):
                raise InputError(
                    f"the arm broken-pivot needs {len(self.languages)} pivots in each topic, one a "
                    f"language, and {topic} has {len(here)}; raise world.pivots"
                )
            order = generator(seed, "mix", "broken", topic).permutation(here)
            for shift, new in enumerate(found.values()):
                new[order] = np.roll(order, shift)
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


def shares_in(
    shards: Sequence[Path], masks: Sequence[npt.NDArray[np.bool_]]
) -> list[npt.NDArray[np.float64]]:
    """Each document's share of tokens in each set of ids (bool [vocabulary]), shards in order.

    A float64 [n_documents] a set.
    """
    found: list[list[npt.NDArray[np.float64]]] = [[] for _ in masks]
    for shard in shards:
        for batch in read_shard(shard):
            n_tokens = np.maximum(np.diff(batch.offsets), 1)
            for values, mask in zip(found, masks, strict=True):
                values.append(count_pivots(batch.tokens, batch.offsets, mask) / n_tokens)
    return [np.concatenate(values) for values in found]


def select_with_planted(pool: Pool, share: npt.NDArray[np.float64] | None) -> dict[str, Selection]:
    """`select_documents` for all arms; `share` float64 [n]: planted pivots among the tokens.

    The oracle is the pivot arm of these shares; broken-pivot has the pivot arm's documents.
    """
    plain = tuple(arm for arm in pool.settings.arms if arm not in PLANTED_ARMS)
    found = select_documents(
        replace(pool, settings=replace(pool.settings, arms=plain or ("pivot",)))
    )
    if share is not None:
        knowing = replace(
            pool,
            documents=replace(pool.documents, proportion=share),
            settings=replace(pool.settings, arms=("pivot",)),
        )
        found["oracle"] = select_documents(knowing, {"pivot": "oracle"})["pivot"]
    if "pivot" in found:
        found["broken-pivot"] = found["pivot"]
    names = [*pool.settings.arms, *(name for name in found if name.startswith("validation/"))]
    return {name: found[name] for name in names}


def write_broken(
    mix: Path,
    planted: Planted,
    langs: Sequence[str],
    always: npt.NDArray[np.bool_],
    tokenizer: Tokenizer,
    seed: int,
) -> None:
    """Make the token file of the broken arm of a `mix` folder from that of its pivot arm.

    `langs` [n] and `always` bool [n] are the documents' languages, and whether they stand in every
    arm and so stay as they are.
    """
    tokens, ends = open_token_file(mix / "pivot" / "tokens.ds", tokenizer.vocab_size)
    maps = planted.broken(tokenizer.vocab_size, seed)

    def documents() -> Iterator[npt.NDArray[np.uint32]]:
        start = 0
        for lang, fixed, end in zip(langs, always.tolist(), ends.tolist(), strict=True):
            ids = tokens[start : end - 1].astype(np.uint32)
            # Documents of several languages hold no pivots.
            yield ids if fixed or lang not in maps else maps[lang][ids]
            start = end

    path = mix / "broken-pivot" / "tokens.ds"
    write_token_file(path, documents(), tokenizer.vocab_size, tokenizer.eos_id)
