"""Tokenising: the engine that `tokenize` takes against the Hugging Face one, same ids.

    python -m launch.bench.tokenizing [--corpus FOLDER]

On the documents of a folder, or on generated ones: words of made-up syllables with Zipf
frequencies, and Chinese characters without spaces. One thread. The last line is for unigram models,
the kind that is trained by default; BPE is timed beside it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from launch.bench.timing import medians, report
from mining.common.files import write_text
from mining.common.tokenizer import load_tokenizer
from mining.documents import FileReader, Record, list_documents
from mining.sentencepiece_encoder import load_encoder
from mining.settings import CorpusSettings, ModelType, TokenizerSettings
from mining.train_tokenizer import run_tokenizer

TARGET = 2.0
KINDS: tuple[ModelType, ...] = ("bpe", "unigram")


def main() -> None:
    """Run the benchmark; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", help="folder of documents; generated ones without it")
    parser.add_argument("--megabytes", type=float, default=8.0, help="text to encode, at most")
    parser.add_argument("--vocab_size", type=int, default=16_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # both engines go by it, the other one from its first use

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.corpus is None:
            write_text(root / "documents" / "a.jsonl", _generated(options.megabytes))
        corpus = CorpusSettings(path=options.corpus or str(root / "documents"), id_field=None)
        texts, n_bytes = _sample(corpus, options.megabytes)
        ratios = {}
        for kind in KINDS:
            trained = TokenizerSettings(
                model_type=kind, vocab_size=options.vocab_size, sample_chars=3_000_000
            )
            run_tokenizer(trained, corpus, root / kind, seed=0)
            tokenizer = load_tokenizer(root / kind)
            encoder = load_encoder(root / kind, tokenizer, texts[:64])
            assert encoder is not None, "the fast engine gives other ids"
            both = zip(encoder.encode_batch(texts), tokenizer.encode_batch(texts), strict=True)
            assert all(np.array_equal(a, b) for a, b in both), "the two engines give other ids"
            ways = {
                "ours": lambda encode=encoder.encode_batch: encode(texts),
                "hugging_face": lambda encode=tokenizer.encode_batch: encode(texts),
            }
            seconds = medians(ways, options.repeats)
            ratios[kind] = seconds["hugging_face"] / seconds["ours"]
            rates = {name: n_bytes / time / 1e6 for name, time in seconds.items()}
            print(kind, ", ".join(f"{name} {rate:.2f} MB/s" for name, rate in rates.items()))
    report(
        "tokenizing",
        ratios["unigram"],
        TARGET,
        ratio_bpe=round(ratios["bpe"], 2),
        megabytes=round(n_bytes / 1e6, 1),
        documents=len(texts),
        vocab_size=options.vocab_size,
        corpus="given" if options.corpus else "generated",
    )


def _sample(corpus: CorpusSettings, megabytes: float) -> tuple[list[str], int]:
    """Every n-th document, so that all files are there, and their bytes."""
    texts = [
        item.text
        for name, path in list_documents(corpus).items()
        for item in FileReader(path, name, corpus)
        if isinstance(item, Record)
    ]
    n_bytes = sum(len(text.encode()) for text in texts)
    step = max(1, int(n_bytes / (megabytes * 1e6)))
    texts = texts[::step]
    return texts, sum(len(text.encode()) for text in texts)


def _generated(megabytes: float) -> str:
    rng = np.random.default_rng(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 5))) for _ in range(30_000)]
    weights = 1.0 / np.arange(1, len(words) + 1)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]
    shares = 1.0 / np.arange(1, len(characters) + 1)
    lines: list[str] = []
    n_bytes = 0
    while n_bytes < megabytes * 1e6:
        if len(lines) % 2:
            text = " ".join(rng.choice(words, 400, p=weights / weights.sum()))
        else:
            text = "".join(rng.choice(characters, 800, p=shares / shares.sum()))
        lines.append(f'{{"text": "{text}", "lang": "xx"}}\n')
        n_bytes += len(text.encode())
    return "".join(lines)


if __name__ == "__main__":
    main()
