"""Sentence translation: generation against a plain loop, chrF against sacrebleu, the stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sacrebleu
import torch
from sacrebleu.metrics import CHRF

from eval import sentences as sentences_module
from eval.chrf import sentence_scores, summarise_chrf
from eval.generate import Line, generate_lines, line_end_tokens
from eval.models import LanguageModel, wrap_model
from eval.sentence_settings import SentencesSettings
from eval.sentences import run_sentences
from eval.stats import Bootstrap
from launch.cli import main
from mining.common.errors import InputError
from mining.common.files import read_json
from mining.common.manifest import read_manifest
from mining.common.tokenizer import Tokenizer
from tests.conftest import folder_bytes

EN = [
    "the cat sleeps", "a small dog runs after the cat", "rain", "we eat bread in the evening",
    "the red house stands by the river", "who is there",
]  # fmt: skip
FR = [
    "le chat dort", "un petit chien court après le chat", "pluie", "nous mangeons du pain le soir",
    "la maison rouge est au bord de la rivière", "qui est là",
]  # fmt: skip
TEXTS = [f"English: {a}.\nFrench: {b}.\n\n" for a, b in zip(EN, FR, strict=True)]
# The fixture's weights, or tied embeddings, make a random model say one word for ever; these let it
# depend on the prompt.
FLATTER = {"bloom": 3.0}
# What ends a text by the checkpoint's own account; the random models hardly ever say a line feed.
MORE_ENDS = list(range(5, 290, 9))


def make_model(tiny_model: Any, tokenizer: Tokenizer, family: str, **more: Any) -> LanguageModel:
    net = tiny_model(family, tokenizer.vocab_size, seed=3, **{"tie_word_embeddings": False, **more})
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(FLATTER.get(family, 0.15))
    net.generation_config.eos_token_id = MORE_ENDS
    return wrap_model(net, tokenizer, family)


@torch.inference_mode()
def plain_line(
    model: LanguageModel, prompt: str, limit: int, ends: Sequence[int] = MORE_ENDS
) -> Line:
    """One prompt, no cache, no batch: append the likeliest token until its text ends the line."""
    ids = model.tokenizer.encode(prompt)
    new: list[int] = []
    while len(new) < limit:
        token = int(model.net(torch.tensor([[*ids, *new]])).logits[0, -1].argmax())
        if token == model.tokenizer.eos_id or token in ends:
            return Line(model.tokenizer.decode(new).strip(), len(new), False)
        text = model.tokenizer.decode([*new, token])
        if "\n" in text:
            return Line(text.split("\n")[0].strip(), len(new), False)
        new.append(token)
    return Line(model.tokenizer.decode(new).strip(), limit, True)


def prompts_and_limits() -> tuple[list[str], list[int]]:
    prompts = [f"{text}English: {word}\nFrench:" for text in TEXTS for word in ("cat", "a red dog")]
    return prompts, [5 + 4 * (i % 6) for i in range(len(prompts))]


@pytest.mark.parametrize("family", ["llama", "neox", "bloom", "gpt2"])
def test_batches_say_what_one_prompt_at_a_time_says(
    family: str, byte_bpe: Callable[..., Tokenizer], tiny_model: Any
) -> None:
    model = make_model(tiny_model, byte_bpe(TEXTS, 290), family)
    prompts, limits = prompts_and_limits()
    expected = [plain_line(model, *pair) for pair in zip(prompts, limits, strict=True)]
    assert len({line.text for line in expected}) > 3  # else any model would pass
    assert {line.truncated for line in expected} == {True, False}
    done: list[int] = []
    assert generate_lines(model, prompts, limits, 700, done.append) == expected
    assert sum(done) == len(prompts)
    assert len(done) > 1
    assert generate_lines(model, prompts, limits, 10**6) == expected
    assert generate_lines(model, prompts, limits, 1) == expected


def test_rows_that_are_done_stay_within_the_models_positions(
    byte_bpe: Callable[..., Tokenizer], tiny_model: Any
) -> None:
    """A long prompt with a short answer beside a short prompt with a long one, in a GPT-2."""
    model = make_model(tiny_model, byte_bpe(TEXTS, 290), "gpt2")
    prompts, limits = ["".join(TEXTS)[:300], "".join(TEXTS)[:280], "cat", "dog"], [4, 9, 180, 170]
    assert 256 - 180 < len(model.tokenizer.encode(prompts[0])) < 252
    model.net.generation_config.eos_token_id = None
    lines = generate_lines(model, prompts, limits, 10**6)
    assert lines == [plain_line(model, *p, ends=()) for p in zip(prompts, limits, strict=True)]
    assert max(line.n_tokens for line in lines) > 100


def force_order(model: LanguageModel, start: int, order: Sequence[int]) -> None:
    """Make a GPT-2 say order[0], order[1], ... from position `start` on, by the place alone."""
    net = model.net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.transformer.ln_f.weight.fill_(1.0)
        for step, token in enumerate(order):
            net.transformer.wte.weight[token, step] = 1.0
            net.transformer.wpe.weight[start + step, step] = 100.0


@pytest.mark.parametrize("end", ["\n", ".\n", "</s>"])
def test_a_line_ends_with_a_line_feed_in_any_token_or_with_the_text(
    end: str, metaspace: Callable[..., Tokenizer], tiny_model: Any
) -> None:
    tokenizer = metaspace(["▁p", "a", "b", "\n", ".\n"])
    prompt, a, b, stop = (tokenizer.engine.token_to_id(t) for t in ("▁p", "a", "b", end))
    assert tokenizer.encode("p") == [prompt]
    model = make_model(tiny_model, tokenizer, "gpt2", tie_word_embeddings=True)
    force_order(model, 0, [a, b, stop, a, a, a])
    assert generate_lines(model, ["p"], [6], 100) == [
        Line("ab." if end == ".\n" else "ab", 2, False)
    ]
    assert generate_lines(model, ["p"], [2], 100) == [Line("ab", 2, True)]


def test_line_ends_of_other_tokenizers(metaspace: Any, word_level: Any) -> None:
    tokenizer = metaspace(["▁", "a", "\n", "▁b\n"])
    pieces = {tokenizer.engine.id_to_token(i) for i in line_end_tokens(tokenizer)}
    assert pieces == {"\n", "▁b\n"}
    assert line_end_tokens(word_level(["a b"])) == frozenset()


def test_defaults_of_the_checkpoint_do_not_count(
    byte_bpe: Callable[..., Tokenizer], tiny_model: Any
) -> None:
    model = make_model(tiny_model, byte_bpe(TEXTS, 290), "llama")
    prompts, limits = prompts_and_limits()
    expected = generate_lines(model, prompts, limits, 700)
    own = model.net.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = True, 3.0, 9.0, 2
    assert generate_lines(model, prompts, limits, 700) == expected
    assert model.net.generation_config is own


def test_prompts_that_do_not_fit_are_refused(
    byte_bpe: Callable[..., Tokenizer], tiny_model: Any
) -> None:
    model = make_model(tiny_model, byte_bpe(TEXTS, 290), "llama")
    with pytest.raises(InputError, match=r"takes at most 256, so that no answer fits"):
        generate_lines(model, ["x" * 256], [4], 100)
    almost = "x" * (255 - len(model.tokenizer.encode("x" * 255)) + 255)
    room = 256 - len(model.tokenizer.encode(almost))
    assert generate_lines(model, [almost], [10**6], 100)[0].n_tokens <= room
    with torch.no_grad():
        model.net.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not numbers"):
        generate_lines(model, ["cat"], [4], 100)


def test_scores_are_sacrebleus() -> None:
    hypotheses = ["le chat dort", "", "un chien", "pluie !", "la maison", "qui est là"]
    found = sentence_scores(hypotheses, FR)
    plain = [sacrebleu.sentence_chrf(h, [r]).score for h, r in zip(hypotheses, FR, strict=True)]
    assert found["chrf"] == plain
    plus = [
        sacrebleu.sentence_chrf(h, [r], word_order=2).score
        for h, r in zip(hypotheses, FR, strict=True)
    ]
    assert found["chrf_pp"] == plus
    other = FR[::-1]
    directions = {"en-fr": (hypotheses, FR), "de-fr": (other, FR)}
    summary = summarise_chrf(directions, Bootstrap(200, 0.9, 5))
    record = summary["directions"]["en-fr"]
    assert record["sentence_chrf"]["value"] == pytest.approx(np.mean(plain))
    for word_order, name in ((0, "chrf"), (2, "chrf_pp")):
        metric = CHRF(word_order=word_order)
        score = metric.corpus_score(hypotheses, [FR]).score
        mirrored = metric.corpus_score(other, [FR]).score
        assert record[f"corpus_{name}"]["value"] == pytest.approx(score)
        overall = summary[f"corpus_{name}"]
        assert overall["value"] == pytest.approx((score + mirrored) / 2)
        assert overall["low"] < overall["value"] < overall["high"]
        assert summary["signatures"][name] == str(metric.get_signature())
        # Its own bootstrap, which has another seed and always 95%, must say nearly the same.
        theirs = CHRF(word_order=word_order).corpus_score(hypotheses, [FR], n_bootstrap=2000)
        ours = summarise_chrf(directions, Bootstrap(2000, 0.95, 1))["directions"]["en-fr"]
        width = ours[f"corpus_{name}"]["high"] - ours[f"corpus_{name}"]["low"]
        assert width / 2 == pytest.approx(theirs._ci, rel=0.1)


@pytest.fixture
def inputs(tmp_path: Path, byte_bpe: Callable[..., Tokenizer], tiny_model: Any) -> tuple[str, str]:
    """A model's folder and a table of sentences."""
    model = make_model(tiny_model, byte_bpe(TEXTS, 290), "llama")
    folder = tmp_path / "byte-bpe"
    model.net.save_pretrained(folder)
    table = tmp_path / "sentences.tsv"
    lines = [f"{a}\t{b}" for a, b in zip(EN, FR, strict=True)]
    table.write_text("\n".join(["en\tfr", *lines]) + "\n")
    return str(folder), str(table)


def stage(inputs: tuple[str, str], out: Path, **fields: Any) -> None:
    model, path = inputs
    settings = SentencesSettings(
        path, languages=("en", "fr"), length_factor=1.0, bootstrap_samples=50, **fields
    )
    run_sentences(settings, out, model, 5, {"arm": "pivot", "seed": 1})


def test_stage_translates_every_sentence_after_its_predecessor(
    inputs: tuple[str, str], tmp_path: Path
) -> None:
    from eval.models import load_model

    out = tmp_path / "out"
    stage(inputs, out)
    rows = pq.read_table(out / "sentences.parquet").to_pylist()
    assert [(r["source_lang"], r["n"]) for r in rows] == [
        (lang, n) for lang in ("en", "fr") for n in range(6)
    ]
    model = load_model(inputs[0], None, "cpu", "float32")
    for row in rows[:6]:
        before = row["n"] - 1 if row["n"] else 5
        prompt = (
            "Please translate sentences from English to French.\n\n"
            f"English: {EN[before]}\nFrench: {FR[before]}\n\nEnglish: {EN[row['n']]}\nFrench:"
        )
        limit = max(16, len(model.tokenizer.encode(EN[row["n"]])))
        line = plain_line(model, prompt, limit)
        assert (row["hypothesis"], row["n_tokens"], row["truncated"]) == (
            line.text, line.n_tokens, line.truncated,
        )  # fmt: skip
        assert row["chrf"] == sacrebleu.sentence_chrf(row["hypothesis"], [FR[row["n"]]]).score
    summary = read_json(out / "summary.json")
    assert (summary["arm"], summary["seed"], summary["n_sentences"]) == ("pivot", 1, 6)
    assert summary["truncated"] == pytest.approx(np.mean([r["truncated"] for r in rows]))
    empty = [r["hypothesis"] == "" for r in rows if r["source_lang"] == "fr"]
    assert summary["directions"]["fr-en"]["empty"] == pytest.approx(np.mean(empty))
    assert list(summary["directions"]) == ["en-fr", "fr-en"]
    assert read_manifest(out, "sentences").counts == {
        "sentences": 6, "left_out": 0, "directions": 2,
    }  # fmt: skip
    assert json.dumps(summary).find(str(tmp_path)) < 0


def test_the_command_translates_with_the_models_of_the_configuration(
    inputs: tuple[str, str], tmp_path: Path
) -> None:
    model, path = inputs
    arguments = ["--models", json.dumps({"m": model}), "--only", '["m"]', "--sentences.path", path]
    arguments += ["--sentences.languages", '["en", "fr"]', "--sentences.directions", '["fr-en"]']
    arguments += ["--sentences.max_chars", "30", "--sentences.length_factor", "1"]
    assert main(["sentences", "--out", str(tmp_path / "run"), *arguments]) == 0
    summary = read_json(tmp_path / "run" / "sentences" / "m" / "0" / "summary.json")
    assert (summary["arm"], summary["n_sentences"], summary["n_left_out"]) == ("m", 4, 2)
    assert list(summary["directions"]) == ["fr-en"]


def test_a_killed_stage_goes_on_with_the_next_direction(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(inputs, tmp_path / "whole")
    real, calls = sentences_module.translate_direction, []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sentences_module, "translate_direction", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(inputs, tmp_path / "cut")
    stage(inputs, tmp_path / "cut")
    assert calls == [("en", "fr"), ("fr", "en"), ("fr", "en")]
    assert folder_bytes(tmp_path / "cut") == folder_bytes(tmp_path / "whole")
    stage(inputs, tmp_path / "cut")  # done already
    assert len(calls) == 3
    stage(inputs, tmp_path / "cut", directions=("fr-en",), max_sentences=4)
    table = pq.read_table(tmp_path / "cut" / "sentences.parquet").to_pydict()
    assert table["source_lang"] == ["fr"] * 4
