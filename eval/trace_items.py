"""An item ready for the lens: the position that answers it, and the tokens that matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.items import Item
from eval.prompts import encode_answers, is_bare_space, word_token_forms, word_tokens
from mining.common.shards import read_columns
from mining.common.task import Task
from mining.common.tokenizer import Tokenizer

TRACE_DRAW = 0

PairPivots = Mapping[tuple[str, str, str], Sequence[int]]


@dataclass(frozen=True)
class TracedItem:
    """An item ready for the lens: `ids` end at the position that predicts `answer`.

    `source` and `target` are the tokens that decide the class; `sets` are those whose probability
    is summed: source, pivots, target, then the concept's word in each language of the task (empty
    for the item's own two). `skipped` bare spaces before the answer were added to `ids`.
    """

    item: Item
    ids: tuple[int, ...]
    answer: int
    skipped: int
    source: frozenset[int]
    target: frozenset[int]
    sets: tuple[frozenset[int], ...]


def read_pair_pivots(words: Path) -> dict[tuple[str, str, str], list[int]]:
    """Token ids of every pair's pivots, strongest first, by (concept, source, target language)."""
    columns = ["concept", "source_lang", "target_lang", "rank", "token"]
    table = read_columns(words / "pair_pivots.parquet", columns).sort_by("rank")
    data = table.to_pydict()
    result: dict[tuple[str, str, str], list[int]] = {}
    keys = zip(data["concept"], data["source_lang"], data["target_lang"], strict=True)
    for key, token in zip(keys, data["token"], strict=True):
        result.setdefault(key, []).append(token)
    return result


def prepare_items(
    tokenizer: Tokenizer,
    task: Task,
    items: Sequence[Item],
    pivots: PairPivots | None,
    n_pivots: int,
    examples: int,
    seed: int,
) -> list[TracedItem]:
    """Prompts up to the position that predicts the first real answer token, and the token sets."""
    prompts = []
    for item in items:
        langs = (item.source_lang, item.target_lang)
        drawn = task.draw_examples(*langs, item.concept, examples, TRACE_DRAW, seed)
        prompts.append(task.prompt(*langs, drawn, item.source))
    answers = [task.answer_text(item.target) for item in items]
    result = []
    for item, encoded in zip(items, encode_answers(tokenizer, prompts, answers), strict=True):
        skipped = 0
        while skipped < len(encoded.answer) - 1 and is_bare_space(
            tokenizer, encoded.answer[skipped]
        ):
            skipped += 1
        source = word_token_forms(tokenizer, item.source)
        target = word_token_forms(tokenizer, item.target)
        key = (item.concept.id, item.source_lang, item.target_lang)
        strongest = pivots.get(key, ())[:n_pivots] if pivots is not None else ()
        result.append(
            TracedItem(
                item=item,
                ids=encoded.ids[: encoded.n_context + skipped],
                answer=encoded.answer[skipped],
                skipped=skipped,
                source=word_tokens(tokenizer, item.source),
                target=word_tokens(tokenizer, item.target),
                sets=(
                    source,
                    frozenset(strongest) - source - target,
                    target,
                    *_equivalents(tokenizer, task, item, source | target),
                ),
            )
        )
    return result


def _equivalents(
    tokenizer: Tokenizer, task: Task, item: Item, own: frozenset[int]
) -> list[frozenset[int]]:
    """Tokens of the concept's words in each third language, without those of the item's own words.

    Spelling that is shared would make a translation look like a detour through that language.
    """
    found = []
    for lang in task.languages:
        if lang in (item.source_lang, item.target_lang):
            found.append(frozenset[int]())
            continue
        words = (item.concept.words[lang], *item.concept.alternatives[lang])
        found.append(frozenset().union(*(word_token_forms(tokenizer, w) for w in words)) - own)
    return found
