"""The exported task folder: what stands in it, and that the real lm_eval scores it as we do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers import processors

from eval.evaluate import run_evaluate
from eval.export_lm_eval import run_export
from eval.export_settings import ExportLmEvalSettings
from eval.models import load_model
from eval.prompts import encode_answers
from eval.settings import EvaluateSettings
from launch.cli import main
from mining.common.errors import InputError, SettingsError
from mining.common.manifest import read_manifest
from mining.common.shards import write_table
from mining.common.stage import begin
from mining.common.task import Task, read_task
from tests.conftest import folder_bytes
from tests.eval.conftest import EOS

LANGS = ("en", "fr", "zh")
EXAMPLES = 2
# Our own scores for the export's draw, the first.
EVALUATE = EvaluateSettings(
    draws=1, examples=EXAMPLES, forms=("source", "target"), bootstrap_samples=10, device="cpu"
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def prompts(task: Task, doc: dict[str, Any], file: str, draw: int, seed: int) -> list[str]:
    """The prompts that the evaluation would make for a document's candidates."""
    form, source, target = file.split("-")
    concept = next(c for c in task.concepts if c.id == doc["concept"])
    shown = task.draw_examples(source, target, concept, EXAMPLES, draw, seed)
    asked = doc["candidates"] if form == "source" else [doc["source"]] * len(doc["candidates"])
    return [task.prompt(source, target, shown, word) for word in asked]


@pytest.mark.parametrize("draw", [0, 2])
def test_prompts_are_those_of_the_draw_and_the_right_one_stands_anywhere(
    draw: int, word_task: Any, tmp_path: Path
) -> None:
    path = word_task(tmp_path / "task", 40, LANGS)
    task = read_task(path)
    out = tmp_path / "out"
    run_export(ExportLmEvalSettings(draw=draw), EVALUATE, out, path, None, 7)
    for form in ("source", "target"):
        for source, target in task.directions():
            file = f"{form}-{source}-{target}"
            docs = read_lines(out / f"{file}.jsonl")
            assert [d["concept"] for d in docs] == [c.id for c in task.concepts[1:]]  # 0: identical
            gold = [doc["gold"] for doc in docs]
            assert len(set(gold)) > 5
            for doc in docs:
                right = doc["source"] if form == "source" else doc["target"]
                assert doc["candidates"][doc["gold"]] == right
                assert len(set(doc["candidates"])) == 10
                expected = prompts(task, doc, file, draw, 7)
                if form == "source":
                    assert [doc["start"] + query for query in doc["queries"]] == expected
                    assert doc["queries"][doc["gold"]].startswith(f"Language-{source} : {right}\n")
                    assert doc["answer"] == f" {doc['target']}"
                else:
                    assert [doc["prompt"]] * 10 == expected
                    assert doc["answers"] == [f" {word}" for word in doc["candidates"]]
    before = folder_bytes(out)
    run_export(ExportLmEvalSettings(draw=draw), EVALUATE, tmp_path / "again", path, None, 7)
    assert folder_bytes(tmp_path / "again") == before
    group = yaml.safe_load((out / "made_up_source.yaml").read_text())
    assert group["task"] == [f"made_up_source_{a}_{b}" for a, b in task.directions()]
    assert (group["metadata"]["version"], group["metadata"]["draw"]) == (1, draw)
    assert read_manifest(out, "export-lm-eval").counts["target-fr-en"] == 39


def test_the_command_writes_what_the_settings_say(
    word_task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = word_task(tmp_path / "task", 14)
    out = tmp_path / "out"
    more = ["--evaluate.examples", "3", "--export_lm_eval.forms", '["target"]']
    more += ["--evaluate.max_items", "4"]
    assert main(["export-lm-eval", str(out), "--task", str(path), *more]) == 0
    assert "README.md" in capsys.readouterr().out
    docs = read_lines(out / "target-en-fr.jsonl")
    assert len(docs) == 4
    assert docs[0]["prompt"].count("Language-en :") == 4
    assert not list(out.glob("*source*"))
    assert "--tasks made_up_target\n" in (out / "README.md").read_text()
    assert main(["export-lm-eval"]) == 2
    assert "export-lm-eval: found no folder" in capsys.readouterr().err


def test_items_are_those_of_the_evaluation(word_task: Any, tmp_path: Path) -> None:
    path = word_task(tmp_path / "task", 14)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "単語"}))
    words, out = tmp_path / "words", tmp_path / "out"
    run = begin("words", words, {}, {})
    assert run is not None
    rows = [{"concept": f"c{i}", "lang": a, "doc_freq": i} for i in range(14) for a in LANGS[:2]]
    write_table(words / "words.parquet", pa.Table.from_pylist(rows))
    run.finish({})
    evaluate = dataclasses.replace(EVALUATE, min_doc_freq=11)
    run_export(ExportLmEvalSettings(), evaluate, out, path, words, 0)
    for form in ("source", "target"):
        docs = read_lines(out / f"{form}-en-fr.jsonl")
        assert [doc["concept"] for doc in docs] == ["c11", "c12", "c13"]
    assert (out / "words_source_en_fr.yaml").is_file()
    with pytest.raises(SettingsError, match="min_doc_freq"):
        run_export(ExportLmEvalSettings(), evaluate, tmp_path / "none", path, None, 0)


def test_what_the_harness_would_score_otherwise_is_refused(word_task: Any, tmp_path: Path) -> None:
    path = word_task(tmp_path / "task", 14)
    task = json.loads(path.read_text())
    path.write_text(json.dumps(task | {"query": task["query"] + " ", "answer": "{target}"}))
    with pytest.raises(InputError, match=r"a prompt ends with .* expected no white space"):
        run_export(ExportLmEvalSettings(), EVALUATE, tmp_path / "out", path, None, 0)
    alone = word_task(tmp_path / "alone", 4)
    lines = (alone.parent / "concepts.tsv").read_text().splitlines()
    rows = [line.replace("noun", f"kind{i}") for i, line in enumerate(lines)]
    (alone.parent / "concepts.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match="no item to export"):
        run_export(ExportLmEvalSettings(), EVALUATE, tmp_path / "none", alone, None, 0)


@pytest.fixture
def model_folder(word_task: Any, tmp_path: Path, byte_bpe: Any, tiny_model: Any) -> Path:
    """A random Llama whose tokenizer would put a token first, as many do."""
    task = read_task(word_task(tmp_path / "task", 24, LANGS))
    texts = [
        task.prompt(a, b, list(task.concepts)[:6], task.concepts[0].words[a])
        for a, b in task.directions()
    ]
    tokenizer = byte_bpe(texts, 330)
    folder = tmp_path / "byte-bpe"
    engine = tokenizer.engine
    engine.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, tokenizer.eos_id)]
    )
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": EOS, "eos_token": EOS,
                    "tokenizer_class": "PreTrainedTokenizerFast"})
    )  # fmt: skip
    tiny_model("llama", tokenizer.vocab_size).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_lm_eval_gives_our_accuracy_item_by_item(model_folder: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    path = tmp_path / "task" / "task.yaml"
    task, out, seed = read_task(path), tmp_path / "out", 3
    run_export(ExportLmEvalSettings(), EVALUATE, out, path, None, seed)
    run_evaluate(EVALUATE, tmp_path / "evaluate", str(model_folder), path, None, seed)
    items = {
        (r["source_lang"], r["target_lang"], r["concept"]): r
        for r in pq.read_table(tmp_path / "evaluate" / "items.parquet").to_pylist()
    }
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model_folder), "add_bos_token": False, "dtype": "float32"},
        tasks=["made_up_source", "made_up_target"],
        task_manager=TaskManager(include_path=str(out), include_defaults=False),
        device="cpu",
        batch_size=32,
        bootstrap_iters=0,
    )
    assert found is not None
    assert len(found["samples"]) == 12
    model = load_model(str(model_folder), None, "cpu", "float32")
    lengths = set()
    for name, samples in found["samples"].items():
        form, source, target = name.removeprefix("made_up_").split("_")
        hits = []
        assert len(samples) == 23
        for sample in samples:
            doc = sample["doc"]
            asked = prompts(task, doc, f"{form}-{source}-{target}", 0, seed)
            words = [doc["target"]] * 10 if form == "source" else doc["candidates"]
            encoded = encode_answers(model.tokenizer, asked, [f" {word}" for word in words])
            lengths.update(len(e.answer) for e in encoded)
            sums = [log_probability(model.net, e.ids, e.n_context) for e in encoded]
            theirs = [float(response[0]) for response in sample["filtered_resps"]]
            assert theirs == pytest.approx(sums, abs=1e-3)
            best = max(range(10), key=sums.__getitem__)
            assert sample["acc"] == float(best == doc["gold"])
            if form == "source":  # one answer: the same by sum and by mean
                item = items[source, target, doc["concept"]]
                assert sample["acc"] == float(item["correct"])
            hits.append(sample["acc"])
        assert found["results"][name]["acc,none"] == pytest.approx(sum(hits) / len(hits))
        assert found["n-shot"][name] == 0
        assert found["versions"][name] == 1
    assert len(lengths) > 1  # else sums and means could not be told apart
    for form in ("source", "target"):
        each = [
            r["acc,none"] for n, r in found["results"].items() if n.startswith(f"made_up_{form}_")
        ]
        assert found["groups"][f"made_up_{form}"]["acc,none"] == pytest.approx(sum(each) / 6)
    assert {0.0, 1.0} <= {s["acc"] for samples in found["samples"].values() for s in samples}


@torch.inference_mode()
def log_probability(net: Any, ids: tuple[int, ...], n_context: int) -> float:
    """Summed log p of the tokens from `n_context` on."""
    log_probs = torch.log_softmax(net(torch.tensor([ids])).logits[0].double(), dim=-1)
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(n_context, len(ids)))
