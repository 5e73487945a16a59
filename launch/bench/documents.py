"""Generated documents for the benchmarks of counting, as arrays and as a `tokenize` folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers

from mining.common.shards import SCHEMA, ShardInfo, write_shard
from mining.common.stage import begin
from mining.common.tokenizer import load_tokenizer

Documents = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]
POWER = 0.7  # with 420 tokens of 8,192: 364 different items a document
SHARD_TOKENS = 25_000_000


def draw_documents(n_documents: int, mean_tokens: int, n_ids: int, seed: int) -> Documents:
    """Tokens (uint32) and offsets (int64 [n_documents + 1]) of documents.

    Ids are drawn with Zipf frequencies, lengths from a log-normal distribution.
    """
    rng = np.random.default_rng(seed)
    sigma = 0.6
    sizes = rng.lognormal(np.log(mean_tokens) - sigma**2 / 2, sigma, n_documents).astype(np.int64)
    offsets = np.zeros(n_documents + 1, dtype=np.int64)
    np.cumsum(np.maximum(sizes, 1), out=offsets[1:])
    weights = np.arange(1, n_ids + 1) ** -POWER
    # A table of shares of a 2**20-th: looking an id up is much faster than a search for it.
    table = np.searchsorted(np.cumsum(weights / weights.sum()), np.arange(1 << 20) / (1 << 20))
    drawn = rng.integers(0, 1 << 20, int(offsets[-1]), dtype=np.uint32)
    return np.minimum(table, n_ids - 1).astype(np.uint32)[drawn], offsets


def write_tokenizer(folder: Path, n_ids: int) -> Path:
    """A tokenizer of `n_ids` words, the first two of them special."""
    words = {"<unk>": 0, "</s>": 1, **{f"w{k}": k for k in range(2, n_ids)}}
    model = models.WordLevel(words, unk_token="<unk>")  # nosec B106 # no password
    engine = Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.add_special_tokens(["<unk>", "</s>"])
    folder.mkdir(parents=True)
    engine.save(str(folder / "tokenizer.json"))
    return folder


def write_shards(
    folder: Path, tokenizer: Path, n_tokens: int, mean_tokens: int, n_ids: int
) -> Path:
    """A finished `tokenize` folder with about so many tokens, in shards of 25 million."""
    run = begin("tokenize", folder, {"tokens": n_tokens, "mean": mean_tokens}, {})
    if run is None:
        return folder
    info = ShardInfo("token", load_tokenizer(tokenizer).fingerprint)
    n_documents = 0
    for number, size in enumerate(_sizes(n_tokens, SHARD_TOKENS)):
        count = max(1, size // mean_tokens)
        tokens, offsets = draw_documents(count, mean_tokens, n_ids - 2, number)
        lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(tokens + 2))
        columns = {
            "id": pa.array([f"{number}/{k}" for k in range(count)]),
            "lang": pa.array(["en"] * count),
            "source": pa.array(["generated"] * count),
            "group": pa.array([None] * count, pa.string()),
            "n_chars": pa.array(np.diff(offsets) * 4),
            "tokens": lists,
        }
        write_shard(
            folder / "tokens" / f"{number:05d}.parquet", pa.table(columns, schema=SCHEMA), info
        )
        n_documents += count
    run.finish({"documents": n_documents})
    return folder


def _sizes(total: int, most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, most)
        total -= most


def head(documents: Documents, n_documents: int) -> Documents:
    """The first documents."""
    tokens, offsets = documents
    return tokens[: offsets[n_documents]], offsets[: n_documents + 1]
