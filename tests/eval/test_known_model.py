"""A model built by hand, whose every number is known: lens, classes, curves, ablation, patching.

Block 1 reads the source word and writes a pivot (concept a) or the target (concept b); block 2
reads the pivot and writes a's target, or reads b's target and writes more of it. There is no
attention: the prompt ends with the source word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eval import intervene as intervene_module
from eval.intervene import run_intervene
from eval.intervene_settings import InterveneSettings
from eval.settings import TraceSettings
from eval.trace import run_trace
from mining.common.errors import InputError, MismatchError
from mining.common.files import read_json
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.common.tokenizer import Tokenizer
from tests.conftest import folder_bytes

WORDS = ["source-a", "target-a", "source-b", "target-b", "pivot-a", "pivot-b", *"uvwxyz"]
SCALE = 3.0  # of the unembedding
# Of each block: (token read, token written, how much a unit of activation writes).
WRITES = (
    (("source-a", "pivot-a", 0.6), ("source-b", "target-b", 0.6)),
    (("pivot-a", "target-a", 1.2), ("target-b", "target-b", 0.5)),
)


def stream(word: str, tokens: dict[str, int], n: int, removed: str | None = None) -> list[Any]:
    """The residual stream after each block, float64 [n]; one token's part removed after block 1."""
    states = [np.zeros(n)]
    states[0][tokens[word]] = 1
    for number, block in enumerate(WRITES):
        now = states[-1]
        x = now / np.sqrt((now**2).mean() + 1e-6)
        after = now.copy()
        for read, written, amount in block:
            value = x[tokens[read]]
            after[tokens[written]] += amount * value * value / (1 + np.exp(-value))
        if number == 0 and removed is not None:
            after[tokens[removed]] = 0
        states.append(after)
    return states[1:]


def probabilities(state: Any) -> Any:
    """What the lens shows of a state, float64 [n]."""
    logits = SCALE * state / np.sqrt((state**2).mean() + 1e-6)
    return np.exp(logits) / np.exp(logits).sum()


def build_model(folder: Path, tokens: dict[str, int], n: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=n, hidden_size=n, intermediate_size=2, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=16, tie_word_embeddings=False,
        rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.model.embed_tokens.weight.copy_(torch.eye(n))
        net.lm_head.weight.copy_(SCALE * torch.eye(n))
        net.model.norm.weight.fill_(1)
        for layer, writes in zip(net.model.layers, WRITES, strict=True):
            layer.post_attention_layernorm.weight.fill_(1)
            for unit, (read, written, amount) in enumerate(writes):
                layer.mlp.gate_proj.weight[unit, tokens[read]] = 1
                layer.mlp.up_proj.weight[unit, tokens[read]] = 1
                layer.mlp.down_proj.weight[tokens[written], unit] = amount
    net.save_pretrained(folder)


class Known:
    """The finished trace of the model, and what belongs to it."""

    def __init__(self, root: Path, word_level: Any) -> None:
        self.root, self.model, self.words = root, root / "model", root / "words"
        self.tokenizer: Tokenizer = word_level(WORDS, self.model)
        self.tokens = {word: self.tokenizer.encode(word)[0] for word in WORDS}
        self.n = self.tokenizer.vocab_size
        build_model(self.model, self.tokens, self.n)
        self.task = self._write_task()
        self._write_words()
        settings = TraceSettings(examples=0, top_k=3, bootstrap_samples=20, heatmap_positions=3)
        run_trace(settings, root / "trace", str(self.model), self.task, self.words, 0)

    def _write_task(self) -> Path:
        folder = self.root / "task"
        folder.mkdir()
        lines = ["id\tpos\tclass\ten\tfr"]
        lines += [f"{c}\tnoun\tk\tsource-{c}\ttarget-{c}" for c in "ab"]
        (folder / "concepts.tsv").write_text("\n".join(lines) + "\n", "utf-8")
        task = {
            "format": 1, "name": "known", "version": 1, "license": "CC0-1.0",
            "languages": {"en": "English", "fr": "French"}, "instruction": "",
            "example": "{source} {target} ", "query": "{source}", "answer": " {target}",
            "concepts": "concepts.tsv",
        }  # fmt: skip
        (folder / "task.yaml").write_text(json.dumps(task), "utf-8")
        return folder / "task.yaml"

    def _write_words(self) -> None:
        run = begin("words", self.words, {}, {})
        assert run is not None
        rows = [
            {"concept": c, "source_lang": a, "target_lang": b, "rank": 1,
             "token": self.tokens[f"pivot-{c}"], "path": 1.0}
            for c in "ab"
            for a, b in (("en", "fr"), ("fr", "en"))
        ]  # fmt: skip
        write_table(run.out / "pair_pivots.parquet", pa.Table.from_pylist(rows))
        run.finish({"fingerprint": self.tokenizer.fingerprint})

    def intervene(self, out: str, **settings: Any) -> Path:
        chosen = InterveneSettings(**{"bootstrap_samples": 20, **settings})
        folder = self.root / out
        run_intervene(
            chosen, folder, self.root / "trace", str(self.model), self.task, self.words, 0
        )
        return folder


@pytest.fixture
def known(tmp_path: Path, word_level: Any) -> Known:
    return Known(tmp_path, word_level)


def forward_rows(path: Path) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(path).to_pylist() if row["source_lang"] == "en"]


def test_lens_classes_curves_and_peaks(known: Known) -> None:
    items = forward_rows(known.root / "trace" / "items.parquet")
    assert {i["concept"]: i["behaviour"] for i in items} == {"a": "pivot", "b": "direct"}
    assert {i["concept"]: i["winning_token"] for i in items} == {"a": "pivot-a", "b": "target-b"}
    rows = forward_rows(known.root / "trace" / "layers.parquet")
    assert [(row["concept"], row["layer"]) for row in rows] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip
    tops = {"a": ["pivot-a", "target-a"], "b": ["target-b", "target-b"]}
    for row in rows:
        c, layer = row["concept"], row["layer"]
        p = probabilities(stream(f"source-{c}", known.tokens, known.n)[layer - 1])
        assert row["top_tokens"][0] == tops[c][layer - 1]
        assert row["top_word"] == ("neither" if (c, layer) == ("a", 1) else "target")
        for column, token in (("p_source", "source"), ("p_pivot", "pivot"), ("p_target", "target")):
            assert row[column] == pytest.approx(p[known.tokens[f"{token}-{c}"]], abs=1e-6)
        assert row["p_answer"] == pytest.approx(row["p_target"], abs=1e-9)
        assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
        # Both languages' words are the item's own here, and the vocabulary is that of the task.
        assert row["p_word_en"] is None
        english = p[known.tokens["source-a"]] + p[known.tokens["source-b"]]
        assert row["p_vocabulary_en"] == pytest.approx(english, abs=1e-6)
    summary = read_json(known.root / "trace" / "summary.json")
    assert summary["directions"]["en-fr"]["counts"] == {"direct": 1, "pivot": 1, "none": 0}
    pivot = summary["curves"]["pivot"]
    expected = [probabilities(s) for s in stream("source-a", known.tokens, known.n)]
    for curve, token in (("p_pivot", "pivot-a"), ("p_target", "target-a")):
        wanted = [p[known.tokens[token]] for p in expected]
        np.testing.assert_allclose(pivot[curve]["mean"], wanted, atol=1e-6)
    peaks = summary["peaks"]["pivot"]
    assert peaks["depth"]["p_pivot"]["value"] == 0.5
    assert peaks["depth"]["p_target"]["value"] == 1.0
    order = peaks["order"]["p_pivot before p_target"]
    assert (order["value"], order["first_earlier"], order["p"]) == (0.5, 1.0, 1.0)


def test_ablation_and_patching_give_the_known_answer(known: Known) -> None:
    folder = known.intervene("intervene")
    rows = forward_rows(folder / "ablation.parquet")
    by_key = {(row["concept"], row["condition"]): row for row in rows}
    assert len(by_key) == 2 * 4
    for c in "ab":
        answer = known.tokens[f"target-{c}"]
        clean = probabilities(stream(f"source-{c}", known.tokens, known.n)[1])[answer]
        assert by_key[c, "clean"]["p_answer"] == pytest.approx(clean, abs=1e-6)
        assert by_key[c, "pivots"]["tokens"] == [known.tokens[f"pivot-{c}"]]
        # The other pair's pivot, and a random token, are in nobody's stream.
        for control in ("random", "other"):
            assert by_key[c, control]["p_answer"] == pytest.approx(clean, abs=1e-6)
    without = stream("source-a", known.tokens, known.n, removed="pivot-a")[1]
    ablated = probabilities(without)[known.tokens["target-a"]]
    assert by_key["a", "pivots"]["p_answer"] == pytest.approx(ablated, abs=1e-6)
    assert by_key["a", "pivots"]["top_token"] == "source-a"
    assert by_key["b", "pivots"]["p_answer"] == by_key["b", "clean"]["p_answer"]
    patched = forward_rows(folder / "patching.parquet")
    assert sorted((row["concept"], row["layer"]) for row in patched) == [
        (c, layer) for c in "ab" for layer in (0, 1, 2)
    ]
    for row in patched:
        c = row["concept"] if row["layer"] == 0 else row["donor"]
        # From block 1 on there is nothing but the donor's state.
        p = probabilities(stream(f"source-{c}", known.tokens, known.n)[1])
        own, donor = (known.tokens[f"target-{k}"] for k in (row["concept"], row["donor"]))
        assert np.exp(row["log_p_own"]) == pytest.approx(p[own], abs=1e-6)
        assert np.exp(row["log_p_donor"]) == pytest.approx(p[donor], abs=1e-6)


def test_the_summary_of_the_interventions(known: Known) -> None:
    summary = read_json(known.intervene("intervene") / "summary.json")
    assert (summary["layers"], summary["controls_matched_in"]) == ([1], "length")
    clean = stream("source-a", known.tokens, known.n)[1]
    without = stream("source-a", known.tokens, known.n, removed="pivot-a")[1]
    answer = known.tokens["target-a"]
    drop = probabilities(clean)[answer] - probabilities(without)[answer]
    found = summary["ablation"]["pivot"]
    assert found["n"] == 1
    assert found["drop"]["pivots"]["value"] == pytest.approx(drop, abs=1e-6)
    assert found["drop"]["random"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["drop"]["more_than_random"]["value"] == pytest.approx(drop, abs=1e-6)
    assert summary["ablation"]["classes"]["drop"]["value"] == pytest.approx(drop, abs=1e-6)
    layers = summary["patching"]["all"]
    assert [entry["layer"] for entry in layers] == [0, 1, 2]
    # The reverse direction only copies, so that its answers follow the donor's source word.
    assert [entry["follows"]["value"] for entry in summary["patching"]["pivot"]] == [0, 1, 1]


def test_a_killed_intervention_goes_on_with_the_same_bytes(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = known.intervene("whole")
    real, calls = intervene_module.intervene_direction, []

    def once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(intervene_module, "intervene_direction", once)
    with pytest.raises(KeyboardInterrupt):
        known.intervene("broken")
    assert not (known.root / "broken" / "manifest.json").exists()
    broken = known.intervene("broken")
    # The direction that was finished is not done again.
    assert len(calls) == 3
    found, expected = folder_bytes(broken), folder_bytes(whole)
    assert found == expected
    assert {"ablation.parquet", "patching.parquet", "summary.json"} <= set(found)


def test_removing_at_the_answering_position_only(known: Known) -> None:
    # Each prompt is one token, so that there is no difference.
    tables = [
        pq.read_table(known.intervene(name, positions=name) / "ablation.parquet")
        for name in ("all", "answer")
    ]
    assert tables[0].equals(tables[1])


def test_an_unknown_layer_and_another_model_are_refused(known: Known) -> None:
    with pytest.raises(InputError, match="layers: found layer 3, but the model has 2"):
        known.intervene("deep", layers=(2, 3))
    with torch.no_grad():
        build_model(known.model, known.tokens | {"pivot-a": known.tokens["u"]}, known.n)
    with pytest.raises(MismatchError, match="the model differs"):
        known.intervene("other")
