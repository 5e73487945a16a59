"""Prompts in token space: where the answer begins, whatever the tokenizer does at the border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mining.common.errors import InputError
from mining.common.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A prompt with its answer: `ids[:n_context]` is given, the rest is to be predicted."""

    ids: tuple[int, ...]
    n_context: int

    @property
    def answer(self) -> tuple[int, ...]:
        """The token ids of the answer, at least one."""
        return self.ids[self.n_context :]


def split_answer(prompt: Sequence[int], full: Sequence[int]) -> int:
    """How many tokens of `full` = tau(prompt + answer) are context, given `prompt` = tau(prompt).

    The answer's tokens are those of `full` beyond `prompt` (METHOD section 1). Where the tokenizer
    merges across the border, `prompt` is no prefix of `full`: the answer then begins at the first
    token that differs, so that the merged token, which holds a part of the answer, is predicted
    and every token before it is one that the prompt alone has too.
    """
    length = min(len(prompt), len(full))
    return next((i for i in range(length) if prompt[i] != full[i]), length)


def encode_answers(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]
) -> list[Encoded]:
    """Encode each prompt with its answer text; equal prompts are tokenized once.

    Raises InputError where an answer adds no token, or no token is left to predict it from.
    """
    unique = list(dict.fromkeys(prompts))
    alone = dict(zip(unique, tokenizer.encode_batch(unique), strict=True))
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    result = []
    for prompt, answer, found in zip(prompts, answers, tokenizer.encode_batch(texts), strict=True):
        full = tuple(found.tolist())
        n_context = split_answer(alone[prompt].tolist(), full)
        if n_context == len(full) or n_context == 0:
            problem = "adds no token to its prompt" if n_context else "has no context token"
            raise InputError(
                f"the answer {answer!r} {problem} (prompt ends with {prompt[-40:]!r}); "
                "check the task's templates against the tokenizer"
            )
        result.append(Encoded(full, n_context))
    return result


def is_bare_space(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token is white space only, as some tokenizers put before Chinese and Japanese."""
    return not tokenizer.piece(token).strip()


def word_tokens(tokenizer: Tokenizer, word: str) -> frozenset[int]:
    """A word's tokens, tau(" " + word), but no bare space (METHOD section 2)."""
    return _meaningful(tokenizer, " " + word)


def word_token_forms(tokenizer: Tokenizer, word: str) -> frozenset[int]:
    """The tokens of a word with and without a space before it, but no bare space."""
    return word_tokens(tokenizer, word) | _meaningful(tokenizer, word)


def _meaningful(tokenizer: Tokenizer, text: str) -> frozenset[int]:
    # Nor the unknown token, which a whole-word vocabulary gives for a space by itself.
    return frozenset(
        token
        for token in tokenizer.encode(text)
        if token not in tokenizer.special_ids and not is_bare_space(tokenizer, token)
    )
