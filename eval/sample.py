"""The sample command: what a model writes after a prompt, as text and as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.generate import no_defaults, text_end_tokens
from eval.models import LanguageModel, load_model, model_input, model_name
from eval.sample_settings import SampleSettings
from eval.scoring import check_known
from mining.common.errors import InputError
from mining.common.files import write_text
from mining.common.manifest import read_manifest
from mining.common.seeds import child_seed, generator
from mining.common.stage import Input, StageInput, begin, settings_dict
from mining.common.token_file import open_token_file
from mining.common.tokenizer import load_tokenizer

TEXT, LINES = "samples.txt", "samples.jsonl"


@dataclass(frozen=True)
class Prompt:
    """A text to write on from. One of a validation document has its language, the document's number
    in the language's file, and how the document itself goes on.
    """

    text: str
    lang: str | None = None
    document: int | None = None
    reference: str | None = None


def run_sample(
    settings: SampleSettings,
    out: Path,
    model: str,
    revision: str | None,
    mix: Path,
    seed: int,
    label: Mapping[str, Any],
) -> str:
    """Let `model` (a folder or a hub id) write into `out`; returns the readable text.

    `mix` is read only for prompts of validation documents.
    """
    inputs: dict[str, Input] = {"model": model_input(model, revision)}
    if not settings.prompts:
        inputs["mix"] = StageInput(mix, "mix")
    recorded = {**settings_dict(settings), "seed": seed, "label": dict(label)}
    run = begin("sample", out, recorded, inputs)
    if run is None:
        return (out / TEXT).read_text(encoding="utf-8")
    prompts = [Prompt(text) for text in settings.prompts]
    prompts = prompts or list(validation_prompts(settings, mix, seed))
    name = model_name(model, revision, label)
    loaded = load_model(model, revision, settings.device, settings.dtype, name)
    rows = []
    for number, prompt in enumerate(prompts):
        # A seed of its own: what stands before it changes nothing.
        draw = child_seed(seed, "sample", prompt.lang, number)
        rows.append({**asdict(prompt), "written": write_on(loaded, prompt.text, settings, draw)})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(out / LINES, lines)
    text = "\n".join(_readable(row) for row in rows)
    write_text(out / TEXT, text)
    run.finish({"samples": len(rows), "model": name})
    return text


def validation_prompts(settings: SampleSettings, mix: Path, seed: int) -> Iterator[Prompt]:
    """Beginnings of documents of each language, those that go on after `prompt_tokens`.

    InputError for a language that the mix has no validation documents of.
    """
    read_manifest(mix, "mix")
    files = {path.stem: path for path in sorted((mix / "validation").glob("*.ds"))}
    if missing := sorted(set(settings.languages) - set(files)):
        raise InputError(
            f"{mix}: no validation documents in {', '.join(missing)} (sample.languages); there are "
            f"{', '.join(files)}"
        )
    tokenizer = load_tokenizer(mix / "tokenizer")
    first, new = settings.prompt_tokens, settings.new_tokens
    for lang in settings.languages or files:
        tokens, ends = open_token_file(files[lang], tokenizer.vocab_size)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        lengths = ends.astype(np.int64) - starts - 1  # without end-of-text
        long = np.flatnonzero(lengths > first)
        chosen = generator(seed, "sample", lang).permutation(long)[: settings.per_language]
        for document in chosen.tolist():
            ids = tokens[starts[document] :][: lengths[document]].tolist()
            # Together, as a decoder may drop the space before a text.
            given = _whole(tokenizer.decode(ids[:first]))
            both = _whole(tokenizer.decode(ids[: first + new]))
            yield Prompt(given, lang, document, both.removeprefix(given))


def write_on(model: LanguageModel, prompt: str, settings: SampleSettings, seed: int) -> str:
    """What `model` writes after the prompt, to an end of text or `new_tokens`.

    InputError where the prompt leaves no room, or the logits are not numbers.
    """
    from transformers import GenerationConfig

    ids = model.tokenizer.encode(prompt)
    check_known(model, [ids])
    room = settings.new_tokens
    if model.max_positions is not None:
        room = min(room, model.max_positions - len(ids))
    if not ids or room < 1:
        raise InputError(
            f"{model.name}: the prompt {prompt[:40]!r} has {len(ids)} tokens, expected at least "
            f"one and room for more among {model.max_positions} (sample.prompt_tokens)"
        )
    draws: dict[str, Any] = {"do_sample": False}
    if settings.temperature:
        draws = {"do_sample": True, "temperature": settings.temperature, "top_k": 0}
        draws["top_p"] = settings.top_p
    ends = text_end_tokens(model)

    def check(_: Tensor, scores: Tensor) -> Tensor:
        if bool(torch.isnan(scores.softmax(-1)).any()):
            raise InputError(f"{model.name}: the logits are not numbers; try sample.dtype float32")
        return scores

    given = torch.tensor([ids], device=model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices), no_defaults(model):
        torch.manual_seed(seed)
        found = model.net.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            generation_config=GenerationConfig(
                max_new_tokens=room,
                eos_token_id=sorted(ends) or None,
                pad_token_id=min(ends, default=0),
                **draws,
            ),
            logits_processor=[check],
        )[0].tolist()
    kept = [token for token in found if token not in model.tokenizer.special_ids]
    return _whole(model.tokenizer.decode(kept)).removeprefix(model.tokenizer.decode(ids))


def _whole(text: str) -> str:
    """Without a character at the end of which only some bytes are there."""
    return text.rstrip("\ufffd")


def _readable(row: Mapping[str, Any]) -> str:
    place = "" if row["lang"] is None else f"{row['lang']}, validation document {row['document']}"
    return f"=== {place}\n{row['text']}[>>>]{row['written']}\n"
