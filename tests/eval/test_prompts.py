"""Where the answer begins: borders with and without merges, bare spaces, word tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.prompts import (
    encode_answers,
    is_bare_space,
    split_answer,
    word_token_forms,
    word_tokens,
)
from mining.common.errors import InputError

TEXTS = ["English: dog French: chien", "Chinese: 狗 Japanese: 犬", "the dog and le chien"] * 5


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_split_is_the_longest_common_start(prompt: list[int], full: list[int]) -> None:
    n = split_answer(prompt, full)
    assert prompt[:n] == full[:n]
    assert n == min(len(prompt), len(full)) or prompt[n] != full[n]


def test_byte_level_border(byte_bpe: Any) -> None:
    tokenizer = byte_bpe(TEXTS, 320)
    prompts, answers = ["English: dog French:", "Chinese:"], [" chien", " 狗"]
    for encoded, prompt, answer in zip(
        encode_answers(tokenizer, prompts, answers), prompts, answers, strict=True
    ):
        assert tokenizer.decode(encoded.ids) == prompt + answer
        assert list(encoded.ids[: encoded.n_context]) == tokenizer.encode(prompt)
        assert tokenizer.decode(encoded.answer) == answer


def test_a_merge_over_the_border_is_predicted(byte_bpe: Any) -> None:
    # ": d" never merges, but "::" does: the prompt's last token is not a token of the whole.
    tokenizer = byte_bpe(["a:: b::", "c::"] * 9, 300)
    prompt, answer = "a:", ":"
    alone = tokenizer.encode(prompt)
    encoded = encode_answers(tokenizer, [prompt], [answer])[0]
    assert encoded.n_context == len(alone) - 1
    assert tokenizer.decode(encoded.answer) == "::"
    assert tokenizer.decode(encoded.ids) == "a::"


def test_answers_without_tokens_or_context_are_refused(byte_bpe: Any) -> None:
    tokenizer = byte_bpe(TEXTS, 320)
    with pytest.raises(InputError, match="adds no token"):
        encode_answers(tokenizer, ["French:"], [""])
    with pytest.raises(InputError, match="no context"):
        encode_answers(tokenizer, [""], ["dog"])


def test_metaspace_border_and_bare_spaces(metaspace: Any) -> None:
    tokenizer = metaspace(["▁", "▁Chinese", ":", "狗", "犬", "▁dog", "dog", "▁English"])
    encoded = encode_answers(tokenizer, ["Chinese:"], [" 狗"])[0]
    assert [tokenizer.piece(t) for t in encoded.ids] == [" Chinese", ":", " ", "狗"]
    assert encoded.n_context == 2
    assert is_bare_space(tokenizer, encoded.answer[0])
    assert not is_bare_space(tokenizer, encoded.answer[1])
    dog = encode_answers(tokenizer, ["English:"], [" dog"])[0]
    assert [tokenizer.piece(t) for t in dog.answer] == [" dog"]
    assert {tokenizer.piece(t) for t in word_tokens(tokenizer, "狗")} == {"狗"}


def test_word_tokens_with_and_without_the_space(byte_bpe: Any) -> None:
    tokenizer = byte_bpe(TEXTS, 400)
    spaced = word_tokens(tokenizer, "dog")
    both = word_token_forms(tokenizer, "dog")
    assert spaced == set(tokenizer.encode(" dog"))
    assert both == spaced | set(tokenizer.encode("dog"))
    assert not any(is_bare_space(tokenizer, t) for t in both)
