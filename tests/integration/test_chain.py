"""The whole chain through the command line, on the generated world at a size for tests."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.config import STAGES
from mining.common.lineage import verify_outputs
from mining.common.manifest import read_manifest
from tests.conftest import REPOSITORY, folder_bytes

CONFIG = REPOSITORY / "configs" / "smoke" / "quickstart.yaml"
ARMS = ("random", "pivot", "low-pivot", "original")
FANNED = ("train", "evaluate", "trace", "intervene", "attribute")
# A generated world has no parallel sentences to translate.
CHAIN = [stage for stage in STAGES if stage != "sentences"]
pytestmark = pytest.mark.slow


def pivots(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-3000:]
    return out, error


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "run"
    printed, _ = finish(pivots("run", str(CONFIG), "--out", str(out)))
    assert printed.strip().endswith("report.html")
    return out


def test_every_stage_is_finished_and_as_its_manifest_says(base: Path) -> None:
    for stage in CHAIN:
        folders = [base / stage]
        if stage in FANNED:
            folders = [base / stage / arm / "0" for arm in ARMS]
        for folder in folders:
            assert read_manifest(folder).stage == stage
            verify_outputs(folder)
            assert not (folder / ".work").exists()


def test_a_second_run_does_nothing_and_changes_nothing(base: Path) -> None:
    before = folder_bytes(base)
    _, log = finish(pivots("run", str(CONFIG), "--out", str(base)))
    assert log.count("already done") == 10 + len(FANNED) * len(ARMS)
    assert folder_bytes(base) == before


def test_mixes_balance_and_the_pivot_arm_is_richer(base: Path) -> None:
    arms = json.loads((base / "mix" / "arms.json").read_text())["arms"]
    assert len({arm["tokens"] for arm in arms.values()}) == 1
    for lang in ("la", "lb", "lc"):
        tokens = {name: arms[name]["languages"][lang]["tokens"] for name in ARMS[:3]}
        assert set(tokens.values()) == {10_000}
        means = [
            arms[n]["languages"][lang]["mean_proportion"] for n in ("low-pivot", "random", "pivot")
        ]
        assert means == sorted(means)
        assert means[2] > 1.5 * means[1]


def test_planted_pivots_are_found(base: Path) -> None:
    table = pd.read_parquet(base / "pivots" / "pivots.parquet")
    truth = json.loads((base / "world" / "truth.json").read_text())
    planted = set(truth["pivots"])
    found = set(table.text[table.is_pivot].str.strip())
    assert len(found & planted) >= 0.5 * len(planted)
    assert len(found & planted) >= 0.9 * len(found)


def inspected(base: Path, *arguments: str) -> dict[str, Any]:
    config = str(base / "config.yaml")
    out, _ = finish(pivots("inspect", *arguments, "--config", config, "--json"))
    found: dict[str, Any] = json.loads(out)
    return found


def test_inspect_says_why_an_item_is_a_pivot(base: Path) -> None:
    table = pd.read_parquet(base / "pivots" / "pivots.parquet")
    row = table[table.is_pivot].iloc[0]
    facts = inspected(base, row.text.strip(), "--contexts", "1")
    assert facts["is_pivot"]
    assert all(rule["passes"] for rule in facts["rules"])
    assert facts["doc_freq"] == row.doc_freq == sum(facts["doc_freq_by_language"].values())
    assert [n["text"] for n in facts["neighbours"]["la"]][:5] == [
        text.strip() for text in row.neighbours_la
    ]
    assert {context["lang"] for context in facts["contexts"]} == {"la", "lb", "lc"}
    for context in facts["contexts"]:
        assert context["text"].strip() == row.text.strip()
    other = table[~table.is_pivot & (table.doc_freq >= 20)].iloc[0]
    assert not all(rule["passes"] for rule in inspected(base, other.text.strip())["rules"])
    plain, _ = finish(pivots("inspect", row.text.strip(), "--config", str(base / "config.yaml")))
    assert "a pivot by specificity" in plain
    assert "\x1b" not in plain


def test_inspect_shows_a_document_and_its_pivots(base: Path) -> None:
    scores = pd.read_parquet(base / "score" / "scores")
    row = scores.sort_values(["n_pivots", "id"], ascending=[False, True]).iloc[0]
    facts = inspected(base, row.id)
    assert facts["proportion"] == row.proportion
    assert sum(pivot["times"] for pivot in facts["pivots"]) == facts["n_pivots"] == row.n_pivots
    names = {pivot["text"].strip() for pivot in facts["pivots"]}
    marked = [word for part in facts["text"] if part["pivot"] for word in part["text"].split()]
    assert set(marked) == names
    assert len(marked) == row.n_pivots
    documents = base / "world" / "documents"
    texts = {
        record["id"]: record["text"]
        for path in documents.rglob("*.jsonl*")
        for record in map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    }
    assert "".join(part["text"] for part in facts["text"]).split() == texts[row.id].split()
    same = scores[scores.lang == row.lang].proportion
    assert facts["language"]["lower"] == pytest.approx((same < row.proportion).mean())


def test_inspect_shows_a_pair_and_names_what_it_does_not_know(base: Path) -> None:
    pairs = pd.read_parquet(base / "words" / "pairs.parquet")
    row = pairs[pairs.pair_doc_freq > 0].iloc[0]
    facts = inspected(base, row.source, row.target)
    found = next(p for p in facts["pairs"] if p["target_lang"] == row.target_lang)
    assert found["pair_doc_freq"] == row.pair_doc_freq
    table = pd.read_parquet(base / "words" / "pair_pivots.parquet")
    own = table[(table.concept == row.concept) & (table.source_lang == row.source_lang)
                & (table.target_lang == row.target_lang)]  # fmt: skip
    assert [p["token"] for p in found["pivots"]] == own.token.tolist()[:15]
    config = str(base / "config.yaml")
    for arguments in ((row.source + "x",), (row.source + "x", row.target)):
        process = pivots("inspect", *arguments, "--config", config)
        _, error = process.communicate(timeout=100)
        assert process.returncode == 3
        assert f"'{row.source}x'" in error
        assert row.source in error.split("there are")[1]


def test_checkpoint_opens_in_plain_transformers(base: Path) -> None:
    folder = base / "train" / "pivot" / "0" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("LA", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert model(ids).logits.shape[-1] >= len(tokenizer)


def test_losses_fall(base: Path) -> None:
    for arm in ARMS:
        lines = (base / "train" / arm / "0" / "metrics.jsonl").read_text().splitlines()
        metrics = pd.DataFrame(map(json.loads, lines))
        train = metrics[metrics.kind == "train"].loss
        assert train.iloc[-1] < train.iloc[0] - 0.5
        validation = metrics[metrics.kind == "validation"].groupby("step").loss.mean()
        assert validation.iloc[-1] < validation.iloc[0]


def test_report_is_one_file_that_names_the_arms(base: Path) -> None:
    page = (base / "report" / "report.html").read_text()
    assert len(page) < 10_000_000
    assert all(arm in page for arm in ARMS)
    assert 'src="http' not in page
    figures = list((base / "report" / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}


def test_lineage_leads_to_the_world(base: Path) -> None:
    out, _ = finish(pivots("lineage", str(base / "attribute" / "pivot" / "0")))
    for stage in ("attribute", "trace", "evaluate", "train", "mix", "score", "pivots", "count"):
        assert f"{stage} " in out
    assert "CHANGED" not in out


def only_stage(stage: str, base: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """One stage into a folder of its own, all its inputs taken from the unbroken run."""
    arguments = [stage, "--config", str(CONFIG), "--out", str(out), *more]
    for other in CHAIN:
        if other != stage:
            arguments += [f"--inputs.{other}", str(base / other)]
    if stage in FANNED:
        arguments += ["--only", '["pivot/0"]']
    return pivots(*arguments)


@pytest.mark.parametrize("stage", CHAIN)
def test_a_killed_stage_is_finished_by_a_rerun_with_the_same_bytes(
    stage: str, base: Path, tmp_path: Path
) -> None:
    part = Path(stage, "pivot", "0") if stage in FANNED else Path(stage)
    expected = folder_bytes(base / part)
    finish(only_stage(stage, base, tmp_path / "whole"))
    assert folder_bytes(tmp_path / "whole" / part) == expected
    seconds = json.loads((tmp_path / "whole" / part / "run.json").read_text())["seconds"]
    for number, share in enumerate((0.6, 0.3, 0.1)):  # earlier, if it was over before the kill
        broken = tmp_path / f"broken{number}"
        process = only_stage(stage, base, broken)
        while not (broken / part / ".work").exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (broken / part / "manifest.json").exists():
            break
    else:
        pytest.fail(f"{stage} was over before every kill")
    finish(only_stage(stage, base, broken))
    assert folder_bytes(broken / part) == expected


def test_a_changed_setting_is_named_and_the_stage_runs_again(base: Path, tmp_path: Path) -> None:
    finish(only_stage("pivots", base, tmp_path))
    before = folder_bytes(tmp_path / "pivots")
    _, log = finish(only_stage("pivots", base, tmp_path, "--pivots.min_gap", "0.1"))
    assert "pivots: runs again, settings.min_gap changed: 0.06 -> 0.1" in log
    assert folder_bytes(tmp_path / "pivots") != before
    finish(only_stage("pivots", base, tmp_path))
    assert folder_bytes(tmp_path / "pivots") == before


def test_bad_input_is_quarantined_and_the_stage_finishes(base: Path, tmp_path: Path) -> None:
    """Truncated gzip, broken JSON, invalid UTF-8, missing text, empty file, duplicate ids."""
    corpus = tmp_path / "corpus"
    shutil.copytree(base / "world" / "documents", corpus)
    good = gzip.decompress((corpus / "la.jsonl.gz").read_bytes()).splitlines(keepends=True)
    renamed = [line.replace(b'"id":"', b'"id":"again-') for line in good[:400]]
    whole = gzip.compress(b"".join(line.replace(b"again", b"cut") for line in renamed), mtime=0)
    (corpus / "truncated.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (corpus / "mixed.jsonl").write_bytes(
        renamed[0] + b'{"id": "x", "text": "no end\n' + b'{"id": "u", "text": "\xff\xfe"}\n'
        + b'{"id": "t"}\n' + good[0] + renamed[1]
    )  # fmt: skip
    (corpus / "empty.jsonl").write_bytes(b"")
    more = ["--corpus.path", str(corpus), "--corpus.deduplicate", "false"]
    finish(only_stage("tokenize", base, tmp_path / "run", *more))
    counts = read_manifest(tmp_path / "run" / "tokenize").counts
    assert counts["quarantined"] == {
        "truncated file": 1, "invalid JSON": 1, "invalid UTF-8": 1, "no text": 1, "duplicate id": 1,
    }  # fmt: skip
    for name, entry in counts["files"].items():
        out = sum(entry["quarantined"].values()) + sum(entry["dropped"].values())
        assert entry["records"] == entry["documents"] + out, name
    assert counts["files"]["empty.jsonl"]["records"] == 0
    assert 0 < counts["files"]["truncated.jsonl.gz"]["documents"] < 400
    lines = [
        json.loads(line)
        for path in (tmp_path / "run" / "tokenize" / "quarantine").iterdir()
        for line in path.read_text().splitlines()
    ]
    places = {(line["file"], line["line"], line["reason"]) for line in lines}
    assert places == {
        ("mixed.jsonl", 2, "invalid JSON"),
        ("mixed.jsonl", 3, "invalid UTF-8"),
        ("mixed.jsonl", 4, "no text"),
        ("mixed.jsonl", 5, "duplicate id"),
        ("truncated.jsonl.gz", counts["files"]["truncated.jsonl.gz"]["records"], "truncated file"),
    }
