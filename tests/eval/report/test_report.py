"""The report as a whole: complete, self-contained, the same bytes, honest, harmless."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
import yaml
from PIL import Image

from eval.report import ReportInputs, run_report
from eval.report_data import SEEDED_STAGES, SINGLE_STAGES
from eval.report_settings import ReportSettings
from eval.settings import EvaluateSettings
from mining.common.errors import InputError, SettingsError
from mining.common.files import read_json
from mining.common.manifest import read_manifest
from mining.common.stage import begin, settings_dict
from mining.mix_settings import MixSettings
from mining.settings import CorpusSettings, TokenizeSettings, WorldSettings
from training.settings import TrainSettings

QUICK = ReportSettings(bootstrap_samples=100)
FIGURES = {
    "differences", "corpus", "pivots", "scripts", "proportions", "sources", "mixes", "overlap",
    "train-loss",
    "validation-loss", "arms", "directions", "groups", "layers", "classes", "scatter", "roc", "auc",
    "heatmaps", "series", "heatmap-direct", "heatmap-pivot", "languages-word",
    "languages-vocabulary", "ablation", "patching",
}  # fmt: skip
SECTIONS = (
    "answer", "corpus", "pivots", "proportions", "mixes", "training", "translation", "layers",
    "cause", "attribution", "lineage",
)  # fmt: skip


class Parsed(HTMLParser):
    """What a browser would see: tags, scripts with their types, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.pre: list[str] = []
        self._in_pre = False
        self._in: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self._in_pre = True
            self.pre.append("")
        if tag in ("script", "style"):
            self._in = tag
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._in:
            self._in = None
        if tag == "pre":
            self._in_pre = False

    def handle_data(self, data: str) -> None:
        if self._in is None:
            self.text += data
            if self._in_pre:
                self.pre[-1] += data
        elif self._in == "script":
            attributes, found = self.scripts[-1]
            self.scripts[-1] = (attributes, found + data)

    def charts(self) -> dict[str, dict]:
        return {
            str(attributes["id"]).removeprefix("chart-"): json.loads(content)
            for attributes, content in self.scripts
            if attributes.get("type") == "application/json"
        }


def report(tmp_path: Path, inputs: ReportInputs, settings: ReportSettings = QUICK) -> Parsed:
    run_report(settings, tmp_path / "report", inputs)
    return Parsed((tmp_path / "report" / "report.html").read_text("utf-8"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the static figures out, for tests that are about the page's words."""
    monkeypatch.setattr("eval.report_figures.draw", lambda chart: chart)
    monkeypatch.setattr("eval.report_figures.encode", lambda chart, kind: b"image")


def test_report_is_complete_and_self_contained(tmp_path, finished_run):
    page = report(tmp_path, finished_run(seeds=(0, 1), series=True))
    out = tmp_path / "report"
    assert (out / "report.html").stat().st_size < 10_000_000
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert ids.issuperset(SECTIONS)
    for name in FIGURES:
        with Image.open(out / "figures" / f"{name}.png") as image:
            assert image.info["dpi"][0] >= 150
            assert image.width >= 1000
        assert (out / "figures" / f"{name}.svg").stat().st_size > 1000
        assert f"plot-{name}" in ids
    assert set(page.charts()) == FIGURES
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert "Each pair of models" in page.text
    assert "pivot/1 minus original/0" in page.text
    assert "0.046" in page.text  # a corrected p-value
    assert "mean reciprocal rank" in page.text
    assert "tokens elsewhere than in pivot" in page.text
    assert "21.3%" in page.text  # how far another arm's sources are from the pivot arm's
    manifest = read_manifest(out, "report")
    assert {"tokenizer", "train/pivot/0", "attribute/random/1", "task"} <= set(manifest.inputs)
    assert manifest.counts["verdict"] == "better"
    assert "Yes, on this run" in page.text
    assert "The account adds up" in page.text
    assert page.text.count("How to read it.") == page.text.count("What it does not show.") == 10
    # Of the trace, intervene and attribute summaries.
    for words in ("any, from 0.1", "0.62 [0.50, 0.75]", "Depth at which", "KL of the last layer",
                  "pivots more than", "the pivot class minus the direct class", "held fixed",
                  "1 to 9", "10 or more"):  # fmt: skip
        assert words in page.text, words


@pytest.mark.usefixtures("undrawn")
def test_comparisons_of_one_seed_and_without_the_stage(tmp_path, finished_run):
    arms = ("random", "pivot")
    page = report(tmp_path / "one", finished_run(arms=arms))
    assert "Each pair of models" in page.text
    assert "single training runs" not in page.text
    # The matrices of the arms show these values already, and there is no series.
    assert not {"heatmaps", "series"} & set(page.charts())
    page = report(tmp_path / "none", finished_run(arms=arms, compared=False))
    assert "Each pair of models" not in page.text
    assert "mean reciprocal rank" in page.text


@pytest.mark.usefixtures("undrawn")
def test_charts_are_valid_for_plotly(tmp_path, finished_run):
    for name, spec in report(tmp_path, finished_run(seeds=(0, 1), series=True)).charts().items():
        figure = go.Figure(spec)
        assert len(figure.data) > 0, name


def test_same_inputs_give_the_same_bytes_and_a_rerun_does_nothing(tmp_path, finished_run, caplog):
    caplog.set_level("INFO", logger="pivots")
    inputs = finished_run(arms=("random", "pivot"))
    moved = tmp_path / "elsewhere"
    root = inputs.task.parent
    shutil.copytree(root, moved)
    per_run = SEEDED_STAGES
    changed = {
        name: {key: moved / path.relative_to(root) for key, path in getattr(inputs, name).items()}
        for name in per_run
    }
    singles = {
        field.name: moved / getattr(inputs, field.name).relative_to(root)
        for field in dataclasses.fields(inputs)
        if isinstance(getattr(inputs, field.name), Path)
    }
    run_report(QUICK, tmp_path / "a", inputs)
    assert "report: intervals: 10/10 statistics" in caplog.text
    assert "report: 11/11 sections" in caplog.text
    run_report(QUICK, tmp_path / "b", ReportInputs(**singles, **changed))
    first, second = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    assert first.outputs == second.outputs
    assert first == second
    before = (tmp_path / "a" / "report.html").stat().st_mtime_ns
    run_report(QUICK, tmp_path / "a", inputs)
    assert (tmp_path / "a" / "report.html").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory, finished_run) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    report(folder, finished_run(hostile=True))
    return folder / "report" / "report.html"


def test_strangers_text_stays_text(hostile_report):
    raw = hostile_report.read_text("utf-8")
    page = Parsed(raw)
    executable = [content for attributes, content in page.scripts if not attributes.get("type")]
    assert len(executable) == 3  # the style sheet's element and two scripts
    policy = next(
        str(attributes["content"])
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    for content in executable[1:]:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
        assert "alert(1)" not in content
    assert "default-src 'none'" in policy
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "$x^2$" in page.text
    assert "\u202e" not in page.text
    assert "&lt;" in page.text  # a token of that spelling, shown as it is
    assert raw.count("<script>alert") == 0
    for attributes, content in page.scripts:
        if attributes.get("type") == "application/json":
            assert "<" not in content
            for text in _strings(json.loads(content)):
                shown = text.replace("<b>", "").replace("</b>", "").replace("<br>", "")
                assert "<" not in shown, text


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in _strings(part)]
    return [text for part in value for text in _strings(part)] if isinstance(value, list) else []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("effect", "tone", "word"),
    [
        ({"pivot": 0.1, "random": 0.1}, "open", "Not shown"),
        ({"pivot": 0.0, "random": 0.3}, "worse", "No, the reverse"),
    ],
)
def test_an_absent_or_reversed_effect_is_said_plainly(tmp_path, finished_run, effect, tone, word):
    page = report(tmp_path, finished_run(effect=effect, arms=("random", "pivot")))
    assert word in page.text
    assert read_manifest(tmp_path / "report").counts["verdict"] == tone
    assert "One training seed per arm" in page.text


@pytest.mark.usefixtures("undrawn")
def test_models_at_chance_are_called_so(tmp_path, finished_run):
    effect = {"pivot": -0.25, "random": -0.3}
    page = report(tmp_path, finished_run(effect=effect, arms=("random", "pivot")))
    assert "Accuracy is not clearly above chance" in page.text


@pytest.mark.usefixtures("undrawn")
def test_without_the_baseline_there_is_no_answer(tmp_path, finished_run):
    page = report(tmp_path, finished_run(arms=("original", "pivot")))
    assert "Not answered" in page.text
    assert "This run has no evaluation of random." in page.text
    assert "differences" not in page.charts()


@pytest.mark.usefixtures("undrawn")
def test_sentences_have_a_section_where_the_run_translates_them(tmp_path, finished_run):
    inputs = finished_run(arms=("random", "pivot"), translated=True, traced=False, attributed=False)
    page = report(tmp_path, inputs)
    summary = read_json(inputs.sentences["pivot", 0] / "summary.json")
    assert ("section", "sentences") in {(tag, a.get("id")) for tag, a in page.tags}
    for measure in ("sentence_chrf", "corpus_chrf", "corpus_chrf_pp"):
        found = summary[measure]
        assert f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]" in page.text
    assert summary["signatures"]["chrf_pp"] in page.text
    assert "ja → zh" in page.text
    assert "25.0%" in page.text
    assert "12.5%" in page.text


def test_missing_parts_are_said_in_words(tmp_path, finished_run):
    page = report(
        tmp_path,
        finished_run(trained=False, evaluated=False, traced=False, attributed=False, pivots=False),
    )
    for stage in ("train", "evaluate", "trace", "intervene", "attribute"):
        assert f"no results of the stage `{stage}`" in page.text
    assert "No item passed" in page.text
    assert {"corpus", "mixes"} <= set(page.charts())


@pytest.mark.usefixtures("undrawn")
def test_the_settings_shown_are_a_config(tmp_path, finished_run):
    inputs = finished_run()
    folder = tmp_path / "tokenize"
    corpus = settings_dict(CorpusSettings(min_chars=7))
    record = {**settings_dict(TokenizeSettings()), "corpus": corpus}
    run = begin("tokenize", folder, record, {})
    assert run is not None
    run.finish(read_manifest(inputs.tokenize).counts)
    world = begin("world", tmp_path / "world", settings_dict(WorldSettings(format_passes=7)), {})
    assert world is not None
    world.finish({})
    models = {"hub": "somebody/model@abc", "own": "FOLDER"}
    page = report(
        tmp_path,
        dataclasses.replace(inputs, tokenize=folder, world=tmp_path / "world", models=models),
    )
    shown = yaml.safe_load(page.pre[-1])
    assert WorldSettings(**shown["world"]).format_passes == 7
    assert shown["models"] == models
    assert "DOCUMENTS" not in page.pre[0]  # the world brings them
    assert shown["seeds"] == [0]
    assert shown["corpus"] == corpus
    assert MixSettings(**shown["mix"]).budget_tokens == 100_000
    assert EvaluateSettings(**shown["evaluate"]).draws == 3
    assert ReportSettings(**shown["report"]) == QUICK
    parts = {"seed", "seeds", "models", "world", "corpus", "compare", "report"}
    assert set(shown) <= {*parts, *SINGLE_STAGES, *SEEDED_STAGES}
    assert set(shown["train"]) == set(settings_dict(TrainSettings()))
    assert set(shown["tokenize"]) == set(settings_dict(TokenizeSettings()))


@pytest.mark.usefixtures("undrawn")
def test_no_long_document_is_said_in_words(tmp_path, finished_run):
    settings = dataclasses.replace(QUICK, min_document_tokens=10**9)
    page = report(tmp_path, finished_run(), settings)
    assert "No document of at least 1,000,000,000 tokens holds a pivot" in page.text
    assert "with the highest proportion" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_one_behaviour_class_and_no_groups(tmp_path, finished_run):
    page = report(tmp_path, finished_run(behaviours=("direct",), groups=False))
    assert "No item shows pivot behaviour" in page.text
    assert "so there is no ROC" in page.text
    assert "names no groups" in page.text


@pytest.mark.usefixtures("undrawn")
def test_an_account_that_does_not_add_up_is_a_warning(tmp_path, finished_run):
    inputs = finished_run()
    folder = tmp_path / "tokenize"
    counts = read_manifest(inputs.tokenize).counts
    run = begin("tokenize", folder, {}, {})
    assert run is not None
    run.finish({**counts, "records": counts["records"] + 1})
    page = report(tmp_path, dataclasses.replace(inputs, tokenize=folder))
    assert "does not add up" in page.text


def test_an_unfinished_stage_is_an_error(tmp_path, finished_run):
    inputs = dataclasses.replace(finished_run(), score=tmp_path / "nothing")
    with pytest.raises(InputError, match="nothing"):
        run_report(QUICK, tmp_path / "report", inputs)


@pytest.mark.parametrize(
    "wrong",
    [{"title": " "}, {"baseline": "pivot"}, {"top_pivots": 0}, {"confidence": 1.0}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ReportSettings(**wrong)


@pytest.mark.slow
def test_hostile_report_in_a_browser(tmp_path, hostile_report):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium; install the Debian package chromium")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--virtual-time-budget=20000", "--window-size=1400,30000", "--dump-dom",
        hostile_report.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'class="chart live"' in done.stdout
    page = Parsed(done.stdout)
    # Drawn charts show the words as text too; nothing became an element.
    assert not any("alert(1)" in content for attributes, content in page.scripts
                   if not attributes.get("type"))  # fmt: skip
    assert "{{ 7*7 }}" in page.text
