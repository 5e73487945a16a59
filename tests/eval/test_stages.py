"""evaluate, trace and attribute end to end on a tiny random model, and across a kill."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eval import trace as trace_module
from eval.attribute import run_attribute
from eval.evaluate import run_evaluate
from eval.settings import AttributeSettings, EvaluateSettings, TraceSettings
from eval.trace import run_trace
from mining.common.errors import InputError, MismatchError
from mining.common.files import read_json
from mining.common.manifest import read_manifest
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.common.task import Task, read_task
from mining.common.tokenizer import Tokenizer

N = 24
EVALUATE = EvaluateSettings(
    draws=2, examples=3, forms=("source", "target"), batch_tokens=3000, bootstrap_samples=100
)
TRACE = TraceSettings(
    examples=3, top_k=4, pivots=3, embeddings=True, batch_tokens=500, bootstrap_samples=50
)
ATTRIBUTE = AttributeSettings(bootstrap_samples=50)


@dataclass
class World:
    """A task, a model folder with its tokenizer, and a finished `words` folder."""

    root: Path
    task_path: Path
    task: Task
    model: Path
    tokenizer: Tokenizer
    words: Path


def write_words(folder: Path, task: Task, tokenizer: Tokenizer, fingerprint: str) -> None:
    rng = np.random.default_rng(0)
    words, pairs, pivots = [], [], []
    for concept in task.concepts:
        freq = {lang: int(rng.integers(1, 50)) for lang in task.languages}
        words += [
            {"concept": concept.id, "lang": lang, "word": concept.words[lang], "doc_freq": n}
            for lang, n in freq.items()
        ]
        for source, target in task.directions():
            key = {"concept": concept.id, "source_lang": source, "target_lang": target}
            pairs.append(
                {
                    **key,
                    "source": concept.words[source],
                    "target": concept.words[target],
                    "source_doc_freq": freq[source],
                    "target_doc_freq": freq[target],
                    "pair_doc_freq": int(rng.integers(0, 4)),
                }
            )
            # The first pivot is a token of the source word, which does not count.
            tokens = [tokenizer.encode(concept.words[source])[0], *rng.integers(2, 20, 4).tolist()]
            pivots += [
                {**key, "rank": rank, "token": token, "path": float(10 - rank)}
                for rank, token in enumerate(tokens, start=1)
            ]
    run = begin("words", folder, {}, {})
    assert run is not None
    write_table(folder / "words.parquet", pa.Table.from_pylist(words))
    write_table(folder / "pairs.parquet", pa.Table.from_pylist(pairs))
    # Out of order, as a reader must not rely on it.
    write_table(folder / "pair_pivots.parquet", pa.Table.from_pylist(pivots[::-1]))
    run.finish({"documents": 100, "fingerprint": fingerprint})


@pytest.fixture
def world(tmp_path: Path, word_task: Any, word_level: Any, tiny_model: Any) -> World:
    path = word_task(tmp_path / "task", N, ("en", "fr"), groups=2)
    task = read_task(path)
    model = tmp_path / "model"
    prompts = [
        task.prompt(a, b, list(task.concepts), task.concepts[0].words[a])
        for a, b in task.directions()
    ]
    tokenizer = word_level(prompts, model)
    tiny_model("llama", tokenizer.vocab_size).save_pretrained(model)
    words = tmp_path / "words"
    write_words(words, task, tokenizer, tokenizer.fingerprint)
    return World(tmp_path, path, task, model, tokenizer, words)


def evaluate(world: World, out: Path, settings: EvaluateSettings = EVALUATE) -> None:
    label = {"arm": "pivot", "seed": 1}
    run_evaluate(settings, out, str(world.model), world.task_path, world.words, 5, label)


def trace(world: World, out: Path, settings: TraceSettings = TRACE) -> None:
    label = {"arm": "pivot", "seed": 1}
    run_trace(settings, out, str(world.model), world.task_path, world.words, 5, label)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", ".lock")
    }


@torch.inference_mode()
def plain_probability(world: World, net: Any, prompts: list[str], answer: str) -> float:
    """P(answer | .) as METHOD section 1 defines it, over the draws' prompts."""
    losses = []
    for prompt in prompts:
        context = world.tokenizer.encode(prompt)
        ids = world.tokenizer.encode(prompt + answer)
        log_probs = torch.log_softmax(net(torch.tensor([ids])).logits[0], dim=-1)
        terms = [float(log_probs[i - 1, ids[i]]) for i in range(len(context), len(ids))]
        losses.append(-sum(terms) / len(terms))
    return float(np.exp(-np.mean(losses)))


def test_scores_equal_the_definition(world: World) -> None:
    from transformers import AutoModelForCausalLM

    out = world.root / "evaluate"
    evaluate(world, out)
    net = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)
    rows = pq.read_table(out / "items.parquet").to_pylist()
    assert len(rows) == 2 * N
    for row in [rows[0], rows[3], rows[-1]]:
        concept = next(c for c in world.task.concepts if c.id == row["concept"])
        a, b = row["source_lang"], row["target_lang"]
        if row["identical"]:
            assert row["score"] is None
            assert row["correct"] is None
            continue
        draws = [world.task.draw_examples(a, b, concept, 3, draw, 5) for draw in range(2)]

        def ask(word: str, answer: str, a: str = a, b: str = b, draws: Any = draws) -> float:
            prompts = [world.task.prompt(a, b, examples, word) for examples in draws]
            return plain_probability(world, net, prompts, " " + answer)

        gold = ask(concept.words[a], concept.words[b])
        wrong = [ask(w, concept.words[b]) for w in world.task.distractors(b, a, concept)]
        mirrored = [ask(concept.words[a], w) for w in world.task.distractors(a, b, concept)]
        assert row["n_distractors"] == len(wrong) == 9
        assert row["p_gold"] == pytest.approx(gold, abs=1e-5)
        assert row["loss"] == pytest.approx(-np.log(gold), abs=1e-4)
        assert row["score"] == pytest.approx(gold - np.mean(wrong), abs=1e-5)
        assert row["rank"] == 1 + sum(p >= gold for p in wrong)
        assert row["correct"] == (row["rank"] == 1)
        assert row["target_score"] == pytest.approx(gold - np.mean(mirrored), abs=1e-5)
        assert row["target_rank"] == 1 + sum(p >= gold for p in mirrored)


def test_summary_of_a_random_model_is_chance(world: World) -> None:
    out = world.root / "evaluate"
    evaluate(world, out)
    summary = read_json(out / "summary.json")
    rows = [r for r in pq.read_table(out / "items.parquet").to_pylist() if not r["identical"]]
    assert (summary["model"], summary["arm"], summary["seed"]) == ("pivot/1", "pivot", 1)
    assert summary["n_items"] == len(rows) == 2 * (N - 1)
    assert summary["n_identical"] == 2
    assert summary["chance"] == pytest.approx(0.1)
    assert summary["score"]["low"] <= 0 <= summary["score"]["high"]
    assert summary["accuracy"]["low"] <= 0.1 <= summary["accuracy"]["high"]
    means = []
    for name, record in summary["directions"].items():
        part = [r for r in rows if f"{r['source_lang']}-{r['target_lang']}" == name]
        assert record["n"] == len(part)
        assert record["score"]["mean"] == pytest.approx(np.mean([r["score"] for r in part]))
        assert record["accuracy"]["mean"] == pytest.approx(np.mean([r["correct"] for r in part]))
        means.append(record["score"]["mean"])
    assert summary["score"]["mean"] == pytest.approx(np.mean(means))
    assert set(summary["groups"]) == {"g0", "g1"}
    assert sum(group["n"] for group in summary["groups"].values()) == len(rows)
    assert "target_accuracy" in summary["groups"]["g0"]["directions"]["en-fr"]


def test_settings_and_batching_change_no_number(world: World) -> None:
    settings = [
        EVALUATE,
        EvaluateSettings(**{**vars(EVALUATE), "share_prefixes": "off", "batch_tokens": 200}),
    ]
    tables = []
    for i, choice in enumerate(settings):
        evaluate(world, world.root / f"evaluate-{i}", choice)
        tables.append(pq.read_table(world.root / f"evaluate-{i}" / "items.parquet").to_pandas())
    np.testing.assert_allclose(tables[0].score, tables[1].score, atol=1e-5)
    np.testing.assert_array_equal(tables[0]["rank"], tables[1]["rank"])


def test_rare_words_are_left_out(world: World) -> None:
    freq = pq.read_table(world.words / "words.parquet").to_pylist()
    rare = {row["concept"] for row in freq if row["doc_freq"] < 20}
    settings = EvaluateSettings(draws=1, examples=1, min_doc_freq=20, max_items=6)
    evaluate(world, world.root / "evaluate", settings)
    rows = pq.read_table(world.root / "evaluate" / "items.parquet").to_pylist()
    asked = {row["concept"] for row in rows}
    assert asked
    assert not asked & rare
    assert sum(not row["identical"] for row in rows) <= 12
    manifest = read_manifest(world.root / "evaluate", "evaluate")
    assert set(manifest.inputs) == {"model", "task", "words"}
    with pytest.raises(InputError, match="no item to score"):
        evaluate(world, world.root / "none", EvaluateSettings(min_doc_freq=1000))


@pytest.mark.parametrize("made", [False, True])
def test_frequencies_of_an_unfinished_words_stage_are_an_error(world: World, made: bool) -> None:
    folder = world.root / "elsewhere"
    if made:
        folder.mkdir()
    settings = EvaluateSettings(min_doc_freq=2)
    with pytest.raises(InputError, match=r"elsewhere.*run `pivots words` first"):
        run_evaluate(settings, world.root / "e", str(world.model), world.task_path, folder, 0)
    with pytest.raises(InputError, match=r"elsewhere.*run `pivots words` first"):
        run_trace(
            TraceSettings(min_doc_freq=2), world.root / "t", str(world.model), world.task_path,
            folder, 0,
        )  # fmt: skip


class KilledError(Exception):
    """Stands for a SIGKILL between two directions."""


def test_an_interrupted_trace_gives_the_same_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = world.root / "whole", world.root / "broken"
    trace(world, whole)
    real = trace_module.trace_direction
    calls = []

    def once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KilledError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trace_module, "trace_direction", once)
        with pytest.raises(KilledError):
            trace(world, broken)
    assert not (broken / "manifest.json").exists()
    assert len(list((broken / ".work").glob("items-*.parquet"))) == 1
    calls.clear()

    def counted(*args: Any) -> Any:
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(trace_module, "trace_direction", counted)
    trace(world, broken)
    assert len(calls) == 1
    assert digests(whole) == digests(broken)
    trace(world, broken)
    assert len(calls) == 1


def test_a_killed_trace_goes_on_with_changed_settings_from_the_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = world.root / "whole", world.root / "broken"
    real, calls = trace_module.trace_direction, []

    def once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trace_module, "trace_direction", once)
        with pytest.raises(KeyboardInterrupt):
            trace(world, broken)
    assert len(list((broken / ".work").glob("items-*.parquet"))) == 1
    changed = TraceSettings(**{**vars(TRACE), "top_k": 2})
    trace(world, broken, changed)
    trace(world, whole, changed)
    assert digests(whole) == digests(broken)


def test_trace_writes_layers_and_classes(world: World) -> None:
    out = world.root / "trace"
    trace(world, out)
    for name in ("items", "layers", "heatmaps"):
        metadata = pq.read_schema(out / f"{name}.parquet").metadata
        assert metadata[b"fingerprint"].decode() == world.tokenizer.fingerprint
    items = pq.read_table(out / "items.parquet").to_pylist()
    layers = pq.read_table(out / "layers.parquet").to_pylist()
    assert len(items) == 2 * (N - 1)
    assert len(layers) == len(items) * (3 + 1)
    for i, item in enumerate(items):
        own = layers[4 * i : 4 * i + 4]
        assert [row["layer"] for row in own] == [0, 1, 2, 3]
        assert all(row["concept"] == item["concept"] for row in own)
        best = max(own[1:], key=lambda row: (row["top_probs"][0], row["layer"]))
        assert (item["winning_layer"], item["winning_id"]) == (best["layer"], best["top_ids"][0])
        source = world.tokenizer.encode(item["source"])
        direct = item["winning_id"] in (own[-1]["top_ids"][0], *source)
        assert item["behaviour"] == ("direct" if direct else "pivot")
        assert item["answer_id"] == world.tokenizer.encode(item["target"])[0]
        # The strongest pivot is a token of the source word; two of the three may coincide.
        assert 1 <= item["n_pivots"] <= 2
        for row in own:
            assert len(row["top_ids"]) == 4
            assert row["top_probs"] == sorted(row["top_probs"], reverse=True)
            assert 0 <= row["p_source"] + row["p_pivot"] + row["p_target"] <= 1 + 1e-6
            assert row["entropy"] >= 0
    summary = read_json(out / "summary.json")
    counts = summary["counts"]
    assert sum(counts.values()) == len(items) == summary["n"]
    assert counts["direct"] == sum(item["behaviour"] == "direct" for item in items)
    assert read_manifest(out).counts["shares"]["direct"] == counts["direct"] / len(items)
    assert set(summary["directions"]) == {"en-fr", "fr-en"}
    curve = summary["curves"]["all"]
    assert curve["layers"] == [0, 1, 2, 3]
    expected = np.mean([row["p_target"] for row in layers if row["layer"] == 2])
    assert curve["p_target"]["mean"][2] == pytest.approx(expected)
    assert curve["p_target"]["low"][2] <= expected <= curve["p_target"]["high"][2]
    assert summary["curves"]["none"]["p_pivot"]["mean"] == [None] * 4


def test_heatmaps_are_the_lens_at_every_position(world: World) -> None:
    settings = TraceSettings(**{**vars(TRACE), "heatmaps": 2, "heatmap_positions": 5})
    trace(world, world.root / "trace", settings)
    items = pq.read_table(world.root / "trace" / "items.parquet").to_pylist()
    layers = pq.read_table(world.root / "trace" / "layers.parquet").to_pylist()
    rows = pq.read_table(world.root / "trace" / "heatmaps.parquet").to_pylist()
    by_class = {row["behaviour"] for row in items} & {"direct", "pivot"}
    assert len(rows) == len(by_class) * 2 * 5 * 4
    tops = {
        (row["concept"], row["source_lang"], row["layer"]): (row["top_tokens"][0], row["p_answer"])
        for row in layers
    }
    for behaviour in by_class:
        part = [row for row in rows if row["behaviour"] == behaviour]
        probs = sorted(r["winning_prob"] for r in items if r["behaviour"] == behaviour)[-2:]
        keys = {(row["concept"], row["source_lang"]) for row in part}
        chosen = [r["winning_prob"] for r in items if (r["concept"], r["source_lang"]) in keys]
        assert sorted(chosen) == probs
    for row in rows:
        assert -4 <= row["position"] <= 0
        if row["position"] == 0:
            assert row["token"] == ":"
            token, p = tops[row["concept"], row["source_lang"], row["layer"]]
            assert row["top_token"] == token
            assert row["p_answer"] == pytest.approx(p, abs=1e-6)


def test_a_tuned_trace_is_resumed_and_reused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = world.root / "text"
    words = [c.words[lang] for c in world.task.concepts for lang in ("en", "fr")]
    text.write_text("\n".join(" ".join(words) for _ in range(30)), "utf-8")
    settings = TraceSettings(**{**vars(TRACE), "tuned_text": str(text), "tuned_steps": 3})
    trace(world, world.root / "whole", settings)
    summary = read_json(world.root / "whole" / "summary.json")
    assert summary["lens"] == "tuned"
    assert len(summary["tuned"]["kl_tuned"]) == len(summary["tuned"]["kl_logit"]) == 3
    # Killed after the training: what was trained is there, and used.
    with monkeypatch.context() as patch:
        patch.setattr(trace_module, "trace_direction", _killed)
        with pytest.raises(KilledError):
            trace(world, world.root / "broken", settings)
    with monkeypatch.context() as patch:
        patch.setattr(trace_module, "train_translators", _killed)
        trace(world, world.root / "broken", settings)
        assert digests(world.root / "whole") == digests(world.root / "broken")
        lens = str(world.root / "whole" / "tuned_lens.safetensors")
        reused = TraceSettings(**{**vars(TRACE), "tuned_lens": lens})
        trace(world, world.root / "reused", reused)
    tables = [pq.read_table(world.root / k / "layers.parquet") for k in ("whole", "reused")]
    assert tables[0].equals(tables[1])
    trace(world, world.root / "plain")
    assert not pq.read_table(world.root / "plain" / "layers.parquet").equals(tables[0])


def _killed(*args: Any) -> Any:
    raise KilledError


def test_trace_without_words_has_no_pivots(world: World) -> None:
    out = world.root / "trace"
    run_trace(TRACE, out, str(world.model), world.task_path, None, 5)
    layers = pq.read_table(out / "layers.parquet")
    assert layers.column("p_pivot").null_count == layers.num_rows
    assert read_json(out / "summary.json")["curves"]["all"]["p_pivot"]["mean"] == [None] * 4


def test_pivots_of_another_tokenizer_are_refused(world: World) -> None:
    world.words = world.root / "other"
    write_words(world.words, world.task, world.tokenizer, "0" * 64)
    with pytest.raises(MismatchError, match=f"fingerprint.*{'0' * 64}.*pivot/1"):
        trace(world, world.root / "trace")
    assert not (world.root / "trace" / "manifest.json").exists()


def test_attribute_joins_and_is_deterministic(world: World) -> None:
    traced, evaluated = world.root / "trace", world.root / "evaluate"
    trace(world, traced)
    evaluate(world, evaluated)
    outs = [world.root / "attribute-0", world.root / "attribute-1"]
    for out in outs:
        run_attribute(ATTRIBUTE, out, traced, evaluated, world.words, 5)
    assert digests(outs[0]) == digests(outs[1])
    rows = pq.read_table(outs[0] / "items.parquet").to_pylist()
    scores = {
        (row["concept"], row["source_lang"]): row["score"]
        for row in pq.read_table(evaluated / "items.parquet").to_pylist()
    }
    pairs = {
        (row["concept"], row["source_lang"]): row
        for row in pq.read_table(world.words / "pairs.parquet").to_pylist()
    }
    assert len(rows) == 2 * (N - 1)
    for row in rows:
        key = (row["concept"], row["source_lang"])
        assert row["score"] == scores[key]
        assert row["log_pair"] == pytest.approx(np.log(1 + pairs[key]["pair_doc_freq"]))
        assert row["log_source"] == pytest.approx(np.log(1 + pairs[key]["source_doc_freq"]))
        expected = sum(np.log(1 + 10 - rank) for rank in range(1, 6))
        assert row["pivot_contribution"] == pytest.approx(expected)
    summary = read_json(outs[0] / "summary.json")
    assert (summary["arm"], summary["rule"], summary["n_items"]) == ("pivot", "trace", len(rows))
    # Every pair has the same contribution here, so the two-variable fit has no answer.
    assert summary["fit"]["r2"]["value"] is None
    assert summary["line"]["direct"]["value"] is not None
    assert set(summary["auc"]) == {"pair", "source", "target"}
    roc = pq.read_table(outs[0] / "roc.parquet")
    assert roc.column_names == ["direction", "fpr", "tpr"]
    limited = AttributeSettings(bootstrap_samples=10, pivots=2, rule="any")
    run_attribute(limited, world.root / "limited", traced, evaluated, world.words, 5)
    first = pq.read_table(world.root / "limited" / "items.parquet").to_pylist()[0]
    assert first["pivot_contribution"] == pytest.approx(np.log(10) + np.log(9))


def test_attribute_refuses_runs_of_two_models(world: World, tiny_model: Any) -> None:
    trace(world, world.root / "trace")
    tiny_model("llama", world.tokenizer.vocab_size, seed=1).save_pretrained(world.model)
    evaluate(world, world.root / "evaluate")
    with pytest.raises(MismatchError, match=r"different inputs \(model\)"):
        run_attribute(
            ATTRIBUTE,
            world.root / "attribute",
            world.root / "trace",
            world.root / "evaluate",
            world.words,
            5,
        )
