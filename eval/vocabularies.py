"""Which tokens belong to a language: by the corpus counts, else by the task's own words.

METHOD section 4: the language of an item is the one that holds at least 90 % of its documents.
Documents whose language is unknown (`und`) or several (`mul`) count among them, but are no language
whose vocabulary is looked at: these are the task's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from eval.prompts import word_token_forms
from mining.common.manifest import read_manifest
from mining.common.shards import read_columns
from mining.common.task import Task
from mining.common.tokenizer import Tokenizer

OWN_SHARE = 0.9


@dataclass(frozen=True)
class Vocabularies:
    """`members` float32 [languages, head rows] is 1 where a token belongs to a language.

    `source` says how that was found: `counts` or `task`.
    """

    languages: Sequence[str]
    members: Tensor
    source: str

    def sizes(self) -> dict[str, int]:
        """Tokens of each language."""
        counts = self.members.sum(dim=1).long().tolist()
        return dict(zip(self.languages, counts, strict=True))


def language_vocabularies(
    task: Task, tokenizer: Tokenizer, count: Path | None, n_rows: int, device: torch.device
) -> Vocabularies:
    """The tokens of each of the task's languages; a token belongs to one of them at most.

    From the folder of the `count` stage where it counted this tokenizer's tokens; else those of the
    task's words that no word of another language has.
    """
    languages = list(task.languages)
    found = _counted(languages, tokenizer, count) if count is not None else None
    source = "task" if found is None else "counts"
    members = torch.zeros(len(languages), n_rows)
    for row, tokens in enumerate(_from_task(task, tokenizer) if found is None else found):
        members[row, list(tokens)] = 1
    return Vocabularies(languages, members.to(device), source)


def _counted(languages: list[str], tokenizer: Tokenizer, count: Path) -> list[set[int]] | None:
    counts = read_manifest(count, "count").counts
    if counts["unit"] != "token" or counts["fingerprint"] != tokenizer.fingerprint:
        return None
    names = pq.read_schema(count / "items.parquet").names
    known = [lang for lang in languages if f"doc_freq_{lang}" in names]
    columns = ["tokens", "doc_freq", *(f"doc_freq_{lang}" for lang in known)]
    data = read_columns(count / "items.parquet", columns).to_pydict()
    found: dict[str, set[int]] = {lang: set() for lang in languages}
    for row, tokens in enumerate(data["tokens"]):
        for lang in known if len(tokens) == 1 else ():
            if data[f"doc_freq_{lang}"][row] >= OWN_SHARE * data["doc_freq"][row] > 0:
                found[lang].add(int(tokens[0]))
    return [found[lang] for lang in languages]


def _from_task(task: Task, tokenizer: Tokenizer) -> list[set[int]]:
    forms: list[set[int]] = [set() for _ in task.languages]
    for concept in task.concepts:
        for column, lang in enumerate(task.languages):
            for word in (concept.words[lang], *concept.alternatives[lang]):
                forms[column] |= word_token_forms(tokenizer, word)
    return [
        own - set().union(*(other for k, other in enumerate(forms) if k != column))
        for column, own in enumerate(forms)
    ]
