"""The estimate of a batch's memory: what it grows with, and that a large model fits."""

from __future__ import annotations

from typing import Any

from eval.lens import rows_at_a_time
from eval.lens_memory import batch_bytes, lens_bytes
from eval.lens_parts import find_parts
from eval.models import wrap_model

# A model of 7 B parameters in bfloat16; on a GPU 512 MiB of logits are decoded at a time.
LARGE: dict[str, int] = {
    "length": 102, "width": 4096, "inner": 11008, "layers": 32, "value_bytes": 2,
    "decoded_rows": (512 << 20) // (4 * 50_000), "vocabulary": 50_000,
}  # fmt: skip


def test_a_model_of_7_b_traces_2000_items_on_80_gb() -> None:
    # Batches of 16,384 tokens are 160 prompts; more items are more batches.
    at_work = batch_bytes(rows=160, **LARGE)
    assert round(at_work / 1e9, 1) == 4.3  # docs/TRACING.md
    weights = 2 * 6_738_000_000
    assert weights + at_work < 80e9 / 4
    # All layers' logits of all items at once would not.
    assert at_work < 2000 * 33 * 50_000 * 4


def test_more_layers_add_one_position_each() -> None:
    more = batch_bytes(rows=160, **{**LARGE, "layers": 64})
    assert more - batch_bytes(rows=160, **LARGE) == 160 * 32 * 4096 * 2


def test_of_a_model(tiny_model: Any, word_level: Any) -> None:
    model = wrap_model(tiny_model("llama", 50), word_level(["a"]), "tiny")
    parts = find_parts(model, None, None)
    assert lens_bytes(model, parts, 8, 20) == batch_bytes(
        rows=8, length=20, width=32, inner=48, layers=3, value_bytes=4,
        decoded_rows=rows_at_a_time(model), vocabulary=50,
    )  # fmt: skip
