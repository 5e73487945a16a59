"""The mix stage on many documents: time, memory and how fast the parts are.

    python -m launch.bench.mixing --documents 2000000

Writes token shards and scores of generated documents (random ids of tokens, lengths around
--tokens, 4 languages, 200 sources), then runs `pivots mix` on them in a process of its own, so that
its peak memory can be told from the generator's. The last line says documents, seconds and peak
resident memory, of the stage and of its workers. No other tool does the same work, so there is no
ratio and no target.

--keep FOLDER leaves the data there, and a second call with the same FOLDER uses them again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models

from mining.common.files import read_json, write_json
from mining.common.shards import SCHEMA as SHARD_SCHEMA
from mining.common.shards import ShardInfo, write_shard, write_table
from mining.common.stage import begin
from mining.common.tokenizer import load_tokenizer
from mining.engine_settings import EngineSettings
from mining.mix import run_mix
from mining.mix_settings import MixSettings
from mining.score import SCHEMA as SCORE_SCHEMA
from mining.settings import CorpusSettings

VOCABULARY = 32_000
SHARD_DOCUMENTS = 100_000
LANGUAGES = ("de", "en", "fr", "zh")
SOURCES = 200


def generate(folder: Path, n_documents: int, mean_tokens: int) -> None:
    """Write finished stage folders `tokenizer`, `tokenize` and `score`."""
    run = begin("tokenizer", folder / "tokenizer", {}, {})
    assert run is not None
    end = "</s>"
    names = {"<unk>": 0, end: 1, **{f"t{k}": k for k in range(2, VOCABULARY)}}
    model = models.WordLevel(names, unk_token="<unk>")  # nosec B106 # no password
    engine = Tokenizer(model)
    engine.save(str(run.out / "tokenizer.json"))
    write_json(run.out / "tokenizer_config.json", {"eos_token": end})
    run.finish({})
    fingerprint = load_tokenizer(folder / "tokenizer").fingerprint
    tokenize = begin("tokenize", folder / "tokenize", {}, {})
    score = begin("score", folder / "score", {}, {})
    assert tokenize is not None
    assert score is not None
    for k, first in enumerate(range(0, n_documents, SHARD_DOCUMENTS)):
        n = min(SHARD_DOCUMENTS, n_documents - first)
        rng = np.random.default_rng(k)
        columns = _columns(rng, first, n, mean_tokens)
        offsets = np.concatenate([[0], np.cumsum(columns["n_tokens"])]).astype(np.int32)
        ids = rng.integers(2, VOCABULARY, offsets[-1], dtype=np.uint32)
        shard = {**columns, "tokens": pa.ListArray.from_arrays(offsets, ids)}
        table = pa.table({name: shard[name] for name in SHARD_SCHEMA.names})
        info = ShardInfo("token", fingerprint)
        write_shard(folder / f"tokenize/tokens/{k:05d}.parquet", table, info)
        scores = {name: columns[name] for name in SCORE_SCHEMA.names}
        write_table(folder / f"score/scores/{k:05d}.parquet", pa.table(scores, schema=SCORE_SCHEMA))
    tokenize.finish({})
    score.finish({"unit": "token"})


def _columns(rng: np.random.Generator, first: int, n: int, mean_tokens: int) -> dict[str, pa.Array]:
    n_tokens = np.maximum(1, rng.lognormal(np.log(mean_tokens) - 0.5, 1.0, n)).astype(np.int64)
    n_pivots = (n_tokens * rng.beta(2, 30, n)).astype(np.int64)
    sources = np.minimum(rng.zipf(1.5, n), SOURCES)
    return {
        "id": pa.array([f"http://example.org/{first + i:012d}/index.html" for i in range(n)]),
        "lang": pa.array(rng.choice(LANGUAGES, n, p=[0.2, 0.5, 0.2, 0.1])),
        "source": pa.array([f"source-{k}" for k in sources]),
        "group": pa.nulls(n, pa.string()),
        "n_chars": 4 * n_tokens,
        "n_tokens": n_tokens,
        "n_pivots": n_pivots,
        "proportion": n_pivots / n_tokens,
    }


def mix(folder: Path, out: Path, budget: int, match: bool, workers: int) -> None:
    """Run the stage, one arm of each kind."""
    settings = MixSettings(budget_tokens=budget, validation_share=0.01)
    if match:
        settings = dataclasses.replace(settings, match=("source", "length"))
    run_mix(
        settings, out, CorpusSettings(), folder / "tokenize", folder / "score",
        folder / "tokenizer", EngineSettings(workers=workers), 0,
    )  # fmt: skip


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a mean document")
    parser.add_argument("--share", type=float, default=0.05, help="of all tokens in each arm")
    parser.add_argument("--match", action="store_true", help="match arms on source and length")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", help="folder for the data, made if it is not there")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    budget = int(options.share * options.documents * options.tokens)
    if options.stage is not None:
        mix(Path(options.keep), Path(options.stage), budget, options.match, options.workers)
        return
    with tempfile.TemporaryDirectory(prefix="pivots-mixing-") as temporary:
        folder = Path(options.keep or Path(temporary) / "data")
        if not (folder / "score" / "manifest.json").is_file():
            generate(folder, options.documents, options.tokens)
        out = Path(temporary) / "mix"
        arguments = [*sys.argv[1:], "--keep", str(folder), "--stage", str(out)]
        subprocess.run([sys.executable, "-m", "launch.bench.mixing", *arguments], check=True)
        facts = read_json(out / "run.json")
        arms = read_json(out / "arms.json")["arms"]
    line = {
        "name": "mixing",
        "documents": options.documents,
        "tokens": options.documents * options.tokens,
        "tokens_written": sum(arm["tokens"] for arm in arms.values()),
        "matched": options.match,
        "workers": options.workers,
        "seconds": facts["seconds"],
        "documents_per_second": round(options.documents / facts["seconds"]),
        "peak_rss_mib": facts["peak_rss_mib"],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
