"""Direct or pivot: how an item's answer comes about in the layers (METHOD section 2). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

DIRECT, PIVOT, NONE = "direct", "pivot", "none"
BEHAVIOURS = (DIRECT, PIVOT, NONE)


@dataclass(frozen=True)
class Winner:
    """t*, the most probable token over all block outputs; `layer` is 1-based."""

    token: int
    layer: int
    probability: float


def find_winner(top_tokens: Sequence[int], top_probs: Sequence[float]) -> Winner:
    """t* among each block's top token (entry l - 1 is block l's); ties go to the later layer."""
    best = max(range(len(top_probs)), key=lambda i: (top_probs[i], i))
    return Winner(top_tokens[best], best + 1, top_probs[best])


def classify(
    top_tokens: Sequence[int],
    top_probs: Sequence[float],
    source: AbstractSet[int],
    target: AbstractSet[int],
) -> str:
    """METHOD's rule. `source` and `target` are the words' tokens, without bare spaces.

    "none" where the words share a token; "direct" where t* is the last block's top token or belongs
    to the source word; "pivot" otherwise.
    """
    if source & target:
        return NONE
    winner = find_winner(top_tokens, top_probs)
    if winner.token == top_tokens[-1] or winner.token in source:
        return DIRECT
    return PIVOT


def classify_any(
    top_tokens: Sequence[int],
    top_probs: Sequence[float],
    source: AbstractSet[int],
    target: AbstractSet[int],
    threshold: float,
) -> str:
    """The alternative: "pivot" if a block's top token, in neither word, reaches `threshold`."""
    if source & target:
        return NONE
    foreign = (
        probability >= threshold and token not in source and token not in target
        for token, probability in zip(top_tokens, top_probs, strict=True)
    )
    return PIVOT if any(foreign) else DIRECT
