"""How much memory a batch of the trace takes beside the model: an estimate before it runs.

Nothing grows with the number of items, nor with layers x vocabulary: a batch keeps one position of
every layer, the block at work, and LOGIT_BYTES of logits at a time.
"""

from __future__ import annotations

from eval.lens import rows_at_a_time
from eval.lens_parts import LensParts
from eval.models import LanguageModel

# Arrays of the size of a chunk's logits that are alive at once: the logits, a copy in float32 where
# the weights are of half precision, their probabilities, and room for what is made of both.
LOGIT_COPIES = 4


def batch_bytes(
    rows: int,
    length: int,
    width: int,
    inner: int,
    layers: int,
    value_bytes: int,
    decoded_rows: int,
    vocabulary: int,
) -> int:
    """Bytes at work for a batch of `rows` prompts padded to `length` tokens.

    `width` of the residual stream, `inner` of the blocks' feed-forward part; `decoded_rows` of
    `vocabulary` logits are decoded at a time.
    """
    tokens = rows * length
    # The block at work: residual stream in and out, norms, queries, keys, values and their output;
    # gate, up and their product. Attention is computed without scores of its own (flash, sdpa).
    block = tokens * (8 * width + 3 * inner) * value_bytes
    kept = rows * (layers + 1) * width * value_bytes
    logits = LOGIT_COPIES * min(decoded_rows, rows * (layers + 1)) * vocabulary * 4
    return block + kept + logits


def lens_bytes(model: LanguageModel, parts: LensParts, rows: int, length: int) -> int:
    """`batch_bytes` of this model."""
    config = model.net.config.get_text_config()
    width = int(config.hidden_size)
    return batch_bytes(
        rows=rows,
        length=length,
        width=width,
        inner=getattr(config, "intermediate_size", None) or 4 * width,
        layers=len(parts.blocks),
        value_bytes=next(model.net.parameters()).element_size(),
        decoded_rows=rows_at_a_time(model),
        vocabulary=model.n_embeddings,
    )
