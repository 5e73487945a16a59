"""The `sentences` stage: how well a model translates whole sentences (METHOD section 1).

One worked example, greedy, scored with chrF. The example is the preceding sentence with its
translation; the first sentence takes the last one, so that every sentence counts. Writes
`sentences.parquet`, one row per sentence and direction, and `summary.json`. Each direction's rows
are kept under the stage's partial work, so that an interrupted run continues with the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eval.chrf import sentence_scores, summarise_chrf
from eval.generate import generate_lines
from eval.models import LanguageModel, load_model, model_input, model_name
from eval.sentence_data import Sentences, read_sentences, sentence_files
from eval.sentence_settings import SentencesSettings
from eval.stats import Bootstrap
from mining.common.files import write_json
from mining.common.logs import log, progress
from mining.common.shards import read_columns, write_table
from mining.common.stage import FilesInput, begin, settings_dict

SENTENCE_SCHEMA = pa.schema(
    [
        ("source_lang", pa.string()),
        ("target_lang", pa.string()),
        ("n", pa.int64()),
        ("source", pa.string()),
        ("reference", pa.string()),
        ("hypothesis", pa.string()),
        ("n_tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("chrf", pa.float64()),
        ("chrf_pp", pa.float64()),
    ]
)
INSTRUCTION = "Please translate sentences from {source} to {target}.\n\n"
MIN_NEW_TOKENS = 16


def run_sentences(
    settings: SentencesSettings,
    out: Path,
    model: str,
    seed: int,
    label: Mapping[str, Any] | None = None,
) -> None:
    """Translate and score the sentences of `settings.path` with `model` (a folder or a hub id).

    `label` (arm, seed) goes into the summary; `seed` draws the samples of the intervals. Raises
    InputError where sentences or model cannot be read or do not fit.
    """
    label = dict(label or {})
    files = FilesInput(sentence_files(settings))
    inputs = {"model": model_input(model, settings.revision), "sentences": files}
    record = {**settings_dict(settings), "seed": seed, "label": label}
    run = begin("sentences", out, record, inputs)
    if run is None:
        return
    sentences, n_left_out = read_sentences(settings)
    if n_left_out:
        log.info("sentences: %d left out for their length", n_left_out)
    pairs = settings.pairs()
    n = len(sentences[settings.languages[0]])
    name = model_name(model, settings.revision, label)
    loaded: LanguageModel | None = None
    tables = {}
    with progress(f"sentences {name}", n * len(pairs), "sentences") as ticker:
        for source, target in pairs:
            part = run.work / f"sentences-{source}-{target}.parquet"
            if part.is_file():
                ticker.advance(n)
            else:
                loaded = loaded or load_model(
                    model, settings.revision, settings.device, settings.dtype, name
                )
                rows = translate_direction(
                    loaded, sentences, (source, target), settings, ticker.advance
                )
                write_table(part, pa.Table.from_pylist(rows, schema=SENTENCE_SCHEMA))
            tables[f"{source}-{target}"] = read_columns(part)
    write_table(run.out / "sentences.parquet", pa.concat_tables(tables.values()))
    summary = _summary(tables, settings, seed)
    write_json(
        run.out / "summary.json",
        {
            "model": name,
            "arm": label.get("arm"),
            "seed": label.get("seed"),
            "n_left_out": n_left_out,
            **summary,
        },
    )
    found = summary["sentence_chrf"]
    log.info("sentences %s: chrF %.2f (%.2f to %.2f), %.1f%% cut off, %.1f%% empty", name,
             found["value"], found["low"], found["high"], 100 * summary["truncated"],
             100 * summary["empty"])  # fmt: skip
    run.finish({"sentences": n, "left_out": n_left_out, "directions": len(pairs)})


def sentence_prompt(
    settings: SentencesSettings, pair: tuple[str, str], sentences: Sentences, n: int
) -> str:
    """The prompt that asks for sentence `n`, its predecessor being the worked example."""
    source, target = pair
    names = settings.name(source), settings.name(target)
    # Sentence 0 has no predecessor: index -1 is the last one.
    example = f"{names[0]}: {sentences[source][n - 1]}\n{names[1]}: {sentences[target][n - 1]}\n\n"
    instruction = INSTRUCTION.format(source=names[0], target=names[1])
    return f"{instruction}{example}{names[0]}: {sentences[source][n]}\n{names[1]}:"


def translate_direction(
    model: LanguageModel,
    sentences: Sentences,
    pair: tuple[str, str],
    settings: SentencesSettings,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[dict[str, Any]]:
    """Rows of SENTENCE_SCHEMA for one direction (source, target)."""
    source, target = pair
    originals, references = sentences[source], sentences[target]
    prompts = [sentence_prompt(settings, pair, sentences, n) for n in range(len(originals))]
    limits = [
        max(MIN_NEW_TOKENS, math.ceil(settings.length_factor * len(ids)))
        for ids in model.tokenizer.encode_batch(originals)
    ]
    lines = generate_lines(model, prompts, limits, settings.batch_tokens, advance)
    scores = sentence_scores([line.text for line in lines], references)
    return [
        {
            "source_lang": source,
            "target_lang": target,
            "n": n,
            "source": originals[n],
            "reference": references[n],
            "hypothesis": line.text,
            "n_tokens": line.n_tokens,
            "truncated": line.truncated,
            **{name: values[n] for name, values in scores.items()},
        }
        for n, line in enumerate(lines)
    ]


def _summary(
    tables: Mapping[str, pa.Table], settings: SentencesSettings, seed: int
) -> dict[str, Any]:
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, seed)
    texts = {
        name: (table["hypothesis"].to_pylist(), table["reference"].to_pylist())
        for name, table in tables.items()
    }
    summary = summarise_chrf(texts, bootstrap)
    for name, table in tables.items():
        # Both make a low score mean something else than a bad translation.
        summary["directions"][name] |= {
            "truncated": pc.mean(table["truncated"]).as_py(),
            "empty": pc.mean(pc.equal(table["hypothesis"], "")).as_py(),
        }
    return {
        "n_sentences": next(iter(tables.values())).num_rows,
        "confidence": settings.confidence,
        **{
            share: float(np.mean([d[share] for d in summary["directions"].values()]))
            for share in ("truncated", "empty")
        },
        **summary,
    }
