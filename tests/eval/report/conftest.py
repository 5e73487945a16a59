"""Writes the finished stage folders of a small run, in the schemas of the real stages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from eval.ablation import ABLATION_SCHEMA
from eval.attribute import observations
from eval.attribute import summarise as summarise_attribution
from eval.chrf import summarise_chrf
from eval.compare import COMPARISON_SCHEMA, DIRECTION_SCHEMA, SERIES_SCHEMA
from eval.intervene_settings import InterveneSettings
from eval.intervene_summary import summarise as summarise_interventions
from eval.patching import PATCHING_SCHEMA
from eval.report_data import ReportInputs
from eval.sentence_settings import SentencesSettings
from eval.settings import AttributeSettings, CompareSettings, EvaluateSettings, TraceSettings
from eval.stats import Bootstrap
from eval.trace_rows import HEATMAP_SCHEMA
from eval.trace_summary import summarise as summarise_trace
from mining.common.files import write_json, write_text
from mining.common.shards import write_table
from mining.common.stage import Input, StageInput, begin, settings_dict
from mining.mix_settings import MixSettings
from mining.settings import (
    CountSettings,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
)
from training.settings import TrainSettings

WORDS = {
    "en": ["water", "house", "tree", "book", "bread", "stone", "river", "night", "hand", "window"],
    "fr": [
        "eau",
        "maison",
        "arbre",
        "livre",
        "pain",
        "pierre",
        "fleuve",
        "nuit",
        "main",
        "fenêtre",
    ],
    "zh": ["水", "房子", "树", "书", "面包", "石头", "河", "夜晚", "手", "窗户"],
    "ja": ["水", "家", "木", "本", "パン", "石", "川", "夜", "手", "窓"],
}
SOURCES = ("manpages", "python-docs", "libreoffice-help", "tldr")
ITEM_TEXTS = (" LibreOffice", " Unicode", " Python", " GIMP", " Debian", " HTML", "印刷", "文字")
EFFECT = {"original": 0.05, "random": 0.08, "pivot": 0.16, "low-pivot": 0.04}
HOSTILE = (
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "$x^2$",
    "\u202eabc",
    "%{x}",
    "</script>",
    "&lt;",
)


@dataclass
class RunPlan:
    """What the run holds; the defaults are a whole run with one seed."""

    languages: tuple[str, ...] = ("en", "fr", "zh", "ja")
    arms: tuple[str, ...] = ("original", "random", "pivot", "low-pivot")
    seeds: tuple[int, ...] = (0,)
    concepts: int = 10
    layers: int = 6
    documents: int = 400
    items: int = 300
    effect: dict[str, float] = field(default_factory=lambda: dict(EFFECT))
    behaviours: tuple[str, ...] = ("direct", "pivot", "none")
    groups: bool = True
    hostile: bool = False
    pivots: bool = True
    evaluated: bool = True
    translated: bool = False
    traced: bool = True
    attributed: bool = True
    trained: bool = True
    compared: bool = True
    series: bool = False


def build_run(root: Path, plan: RunPlan) -> ReportInputs:
    """Write all folders of `plan` under `root`."""
    builder = _Builder(root, plan)
    builder.mining()
    keys = list(itertools.product(plan.arms, plan.seeds))
    stages: dict[str, dict[tuple[str, int], Path]] = {}
    for stage, wanted in (
        ("train", plan.trained),
        ("evaluate", plan.evaluated),
        ("sentences", plan.translated),
        ("trace", plan.traced),
        ("intervene", plan.traced),
        ("attribute", plan.attributed),
    ):
        write = getattr(builder, stage)
        stages[stage] = {key: write(*key) for key in keys} if wanted else {}
    singles = ("tokenizer", "tokenize", "count", "words", "pivots", "score", "mix")
    compare = builder.compare(keys) if plan.compared else None
    return ReportInputs(
        **{s: root / s for s in singles}, task=root / "task.yaml", compare=compare, **stages
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ReportInputs]:
    """A function that builds the run of a RunPlan with the given fields, once each."""
    made: dict[str, ReportInputs] = {}

    def build(**fields: object) -> ReportInputs:
        plan = RunPlan(**fields)  # type: ignore[arg-type]
        if repr(plan) not in made:
            made[repr(plan)] = build_run(tmp_path_factory.mktemp("run") / "run", plan)
        return made[repr(plan)]

    return build


class _Builder:
    def __init__(self, root: Path, plan: RunPlan) -> None:
        self.root, self.plan = root, plan
        self.rng = np.random.default_rng(7)
        words = {lang: list(WORDS.get(lang, WORDS["en"])) for lang in plan.languages}
        if plan.hostile:
            for lang in words:
                words[lang] = [f"{HOSTILE[i % len(HOSTILE)]}{lang}{i}" for i in range(10)]
        more = range(plan.concepts)
        self.words = {
            lang: [(w[i % 10] if i < 10 else f"{w[i % 10]}{i // 10}") for i in more]
            for lang, w in words.items()
        }
        self.pairs = list(itertools.permutations(plan.languages, 2))
        self.pair_freq = {
            (c, *pair): int(self.rng.poisson(np.exp(self.rng.normal(1.5, 1.4))))
            for c in more
            for pair in self.pairs
        }

    def group(self, concept: str) -> str:
        if not self.plan.groups:
            return ""
        return "seen" if concept < "c005" else "held-out"

    def concept(self, i: int) -> str:
        return f"c{i:03d}"

    def stage(self, name: str, settings: object, inputs: dict[str, str], out: Path | None = None):
        record = settings_dict(settings) if not isinstance(settings, dict) else settings
        links: dict[str, Input] = {k: StageInput(self.root / v, k) for k, v in inputs.items()}
        run = begin(name, out or self.root / name, {**record, "seed": 0}, links)
        assert run is not None
        return run

    def mining(self) -> None:
        plan, rng, root = self.plan, self.rng, self.root
        root.mkdir(parents=True, exist_ok=True)
        run = self.stage("tokenizer", TokenizerSettings(vocab_size=8000), {})
        write_json(run.out / "tokenizer.json", {})
        run.finish({"vocab_size": 8000, "fingerprint": "f"})
        frame = self._documents()
        run = self.stage("tokenize", TokenizeSettings(), {"tokenizer": "tokenizer"})
        by_language = {
            lang: {"documents": len(p), "tokens": int(p["n_tokens"].sum()),
                   "chars": int(p["n_tokens"].sum() * 4)}
            for lang, p in frame.groupby("lang")
        }  # fmt: skip
        run.finish({
            "records": len(frame) + 9, "documents": len(frame),
            "quarantined": {"broken JSON": 3, "invalid UTF-8": 1}, "dropped": {"duplicate text": 5},
            "tokens": int(frame["n_tokens"].sum()), "chars": int(frame["n_tokens"].sum() * 4),
            "by_language": by_language, "by_source": {},
        })  # fmt: skip
        run = self.stage("count", CountSettings(), {"tokenize": "tokenize"})
        run.finish({"documents": len(frame), "items": plan.items, "pairs": 1234,
                    "languages": list(plan.languages)})  # fmt: skip
        self._words()
        run = self.stage("pivots", PivotsSettings(min_gap=0.08), {"count": "count"})
        write_table(run.out / "pivots.parquet", pa.Table.from_pandas(self._pivots()))
        run.finish({"items": plan.items, "pivots": 0, "definition": "specificity"})
        run = self.stage("score", ScoreSettings(), {"pivots": "pivots", "tokenize": "tokenize"})
        half = len(frame) // 2
        for k, part in enumerate((frame[:half], frame[half:])):
            write_table(run.out / f"scores/{k:05d}.parquet",
                        pa.Table.from_pandas(part, preserve_index=False))  # fmt: skip
        run.finish({"documents": len(frame)})
        run = self.stage("mix", MixSettings(budget_tokens=100_000), {"score": "score"})
        write_json(run.out / "arms.json", self._mix(rng))
        run.finish({})
        self._task()

    def _documents(self) -> pd.DataFrame:
        plan, rng = self.plan, self.rng
        n = plan.documents
        lang = rng.choice(plan.languages, n, p=_shares(len(plan.languages)))
        level = {name: 0.06 + 0.03 * i for i, name in enumerate(plan.languages)}
        tokens = np.maximum(5, rng.lognormal(5.6, 1.0, n)).astype(int)
        share = np.clip(rng.gamma(4, [level[name] / 4 for name in lang]), 0, 0.9)
        pivots = np.minimum(tokens, (tokens * share).astype(int))
        ids = [f"{name}/doc{i}" for i, name in enumerate(lang)]
        source = rng.choice(SOURCES, n)
        if plan.hostile:
            ids = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(n)]
            source = np.array([HOSTILE[i % 3] for i in range(n)])
        return pd.DataFrame({
            "id": ids, "lang": lang, "source": source, "group": [None] * n,
            "n_tokens": tokens, "n_pivots": pivots, "proportion": pivots / tokens,
        })  # fmt: skip

    def _words(self) -> None:
        run = self.stage("words", WordsSettings(), {"tokenize": "tokenize"})
        rows = [
            {"concept": self.concept(i), "lang": lang, "word": word, "doc_freq": 20 + 3 * i}
            for lang, words in self.words.items()
            for i, word in enumerate(words)
        ]
        write_table(run.out / "words.parquet", pa.Table.from_pylist(rows))
        pairs = [
            {"concept": self.concept(i), "source_lang": a, "target_lang": b,
             "source": self.words[a][i], "target": self.words[b][i], "source_doc_freq": 20 + 3 * i,
             "target_doc_freq": 20 + 3 * i, "pair_doc_freq": self.pair_freq[(i, a, b)]}
            for i in range(self.plan.concepts)
            for a, b in self.pairs
        ]  # fmt: skip
        write_table(run.out / "pairs.parquet", pa.Table.from_pylist(pairs))
        run.finish({"documents": self.plan.documents})

    def _pivots(self) -> pd.DataFrame:
        plan, rng = self.plan, self.rng
        n = plan.items
        doc_freq = np.sort(rng.zipf(1.3, n).clip(1, 20_000))[::-1] + 5
        statistic = np.round(np.abs(rng.normal(0, 0.06, n)), 4)
        statistic[::29] = np.nan
        names = [f" word{i}" for i in range(n)]
        names[: len(ITEM_TEXTS)] = ITEM_TEXTS
        statistic[: len(ITEM_TEXTS)] = 0.3 - 0.01 * np.arange(len(ITEM_TEXTS))
        if plan.hostile:
            names[: len(HOSTILE)] = HOSTILE
        frame = pd.DataFrame({
            "item": np.arange(n, dtype=np.uint32), "id": np.arange(n, dtype=np.uint32),
            "text": names, "tokens": [[i] for i in range(n)],
            "doc_freq": doc_freq.astype(np.uint64),
            "lang": [None if i % 2 else plan.languages[0] for i in range(n)],
            "degree": rng.integers(0, 90, n),
        })  # fmt: skip
        for lang in plan.languages:
            frame[f"reach_{lang}"] = rng.integers(0, 40, n)
        for lang in plan.languages:
            frame[f"gap_{lang}"] = np.round(np.abs(rng.normal(0, 0.1, n)), 4)
        frame["statistic"] = statistic
        frame["is_pivot"] = (np.nan_to_num(statistic) >= 0.08) & plan.pivots
        for lang in plan.languages:
            near = self.words[lang]
            frame[f"neighbours_{lang}"] = [
                [near[(i + k) % len(near)] for k in range(3)] if i % 5 else [] for i in range(n)
            ]
        return frame

    def _mix(self, rng: np.random.Generator) -> dict:
        arms = {}
        shares = _shares(len(self.plan.languages))
        for arm in self.plan.arms:
            used = shares if arm == "original" else np.full(len(shares), 1 / len(shares))
            rich = {"pivot": 1.9, "low-pivot": 0.4}.get(arm, 1.0)
            arms[arm] = {
                "tokens": 100_000, "documents": 310,
                "languages": {
                    lang: {"tokens": int(100_000 * share), "documents": int(300 * share),
                           "mean_proportion": rich * (0.06 + 0.03 * i), "pool_share": 0.35,
                           "mean_document_proportion": rich * (0.05 + 0.03 * i),
                           "median_document_proportion": rich * (0.04 + 0.03 * i),
                           "length_q25": 120.0, "length_median": 210.0, "length_q75": 433.5,
                           "repeats": 7 * i, **self._distances(arm),
                           "sources": [{"source": name, "tokens": int(100_000 * share / (k + 2))}
                                       for k, name in enumerate(self._sources())]}
                    for i, (lang, share) in enumerate(zip(self.plan.languages, used, strict=True))
                },
            }  # fmt: skip
        overlap = {
            a: {b: 1.0 if a == b else round(float(rng.uniform(0.2, 0.45)), 3) for b in arms}
            for a in arms
        }
        return {"arms": arms, "overlap": overlap}

    def _sources(self) -> tuple[str, ...]:
        return HOSTILE[:3] if self.plan.hostile else SOURCES

    def _distances(self, arm: str) -> dict[str, float]:
        if arm == "pivot" or "pivot" not in self.plan.arms:
            return {}
        return {"source_distance": 0.213, "length_distance": 0.057}

    def _task(self) -> None:
        names = {"en": "English", "fr": "French", "zh": "Chinese", "ja": "Japanese"}
        header = {
            "format": 1, "name": "words-small", "version": 1, "license": "CC0-1.0",
            "languages": {lang: names.get(lang, lang) for lang in self.plan.languages},
            "instruction": "{source_language} to {target_language}\n",
            "example": "{source} {target}\n", "query": "{source}", "answer": " {target}",
            "concepts": "concepts.tsv",
        }  # fmt: skip
        write_json(self.root / "task.yaml", header)
        lines = ["\t".join(["id", "pos", "class", *self.plan.languages])]
        for i in range(self.plan.concepts):
            words = [self.words[lang][i] for lang in self.plan.languages]
            lines.append("\t".join([self.concept(i), "noun", "thing", *words]))
        write_text(self.root / "concepts.tsv", "\n".join(lines) + "\n")

    def _item_rows(self, arm: str, seed: int) -> list[dict]:
        rng = np.random.default_rng([len(arm), seed, 3])
        rows = []
        for i in range(self.plan.concepts):
            for a, b in self.pairs:
                n = self.pair_freq[(i, a, b)]
                same = self.words[a][i] == self.words[b][i]
                score = rng.normal(self.plan.effect.get(arm, 0.0) + 0.04 * np.log1p(n), 0.07)
                rows.append({
                    "concept": self.concept(i), "source_lang": a, "target_lang": b,
                    "source": self.words[a][i], "target": self.words[b][i], "identical": same,
                    "score": None if same else float(score), "n": n,
                    "correct": None if same else bool(score > 0.14),
                    "behaviour": str(rng.choice(self.plan.behaviours)) if n < 8 else
                    self.plan.behaviours[0],
                })  # fmt: skip
        return rows

    def train(self, arm: str, seed: int) -> Path:
        out = self.root / "train" / arm / str(seed)
        run = self.stage(
            "train", settings_dict(TrainSettings(duration="200step")), {"mix": "mix"}, out
        )
        rng = np.random.default_rng([len(arm), seed])
        lines = []
        for step in range(1, 201):
            loss = 8.5 * step**-0.28 + 0.2 * len(arm) / 9 + rng.normal(0, 0.04)
            lines.append({"kind": "train", "step": step, "tokens": step * 512, "loss": loss,
                          "lr": 1e-3, "grad_norm": 1.0})  # fmt: skip
            if step % 25 == 0:
                for i, lang in enumerate(self.plan.languages):
                    value = 8.5 * step**-0.28 + 0.3 * i + 0.05 * len(arm) / 9
                    lines.append({"kind": "validation", "step": step, "tokens": step * 512,
                                  "lang": lang, "loss": value})  # fmt: skip
        write_text(run.out / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines))
        run.finish({"parameters": 1_234_567})
        return out

    def evaluate(self, arm: str, seed: int) -> Path:
        out = self.root / "evaluate" / arm / str(seed)
        run = self.stage("evaluate", settings_dict(EvaluateSettings(draws=3)), {}, out)
        rows = [
            {**{k: row[k] for k in ("concept", "source_lang", "target_lang", "source", "target",
                                    "identical", "score", "correct")},
             "pos": "noun", "class": "thing",
             "group": self.group(row["concept"]),
             "n_distractors": 9, "n_draws": 5, "p_gold": 0.2, "loss": 1.6,
             "rank": None if row["identical"] else 1 + 2 * (not row["correct"])}
            for row in self._item_rows(arm, seed)
        ]  # fmt: skip
        write_table(run.out / "items.parquet", pa.Table.from_pylist(rows))
        write_json(run.out / "summary.json", {"n_items": len(rows)})
        run.finish({"items": len(rows)})
        return out

    def compare(self, keys: list[tuple[str, int]]) -> Path:
        run = self.stage("compare", CompareSettings(), {})
        rng = np.random.default_rng(5)
        arms = list(self.plan.arms)
        pairs = [("model", a, b) for b, a in itertools.combinations(arms, 2)]
        if len(self.plan.seeds) > 1:
            runs = [f"{arm}/{seed}" for arm, seed in keys]
            pairs += [("run", a, b) for b, a in itertools.combinations(runs, 2)]
        comparisons = [
            {"level": level, "model": a, "reference": b, "measure": measure, "mean": 0.2,
             "reference_mean": 0.2 - gap, "difference": gap, "low": gap - 0.01, "high": gap + 0.01,
             "p": 0.0123, "p_holm": 0.0456, "p_exact": False, "n_items": 118, "n_concepts": 10}
            for level, a, b in pairs
            for measure in ("score", "accuracy", "mrr")
            for gap in [float(rng.normal(0, 0.05))]
        ]  # fmt: skip
        means = [
            {"model": arm, "seed": seed, "source_lang": a, "target_lang": b, "mean": value,
             "low": value - 0.02, "high": value + 0.02, "n": 10}
            for arm, seed in keys
            for a, b in self.pairs
            for value in [float(rng.normal(0.05, 0.05))]
        ]  # fmt: skip
        steps = [
            {"series": arm, "seed": seed, "step": step, "model": f"{arm}@step-{step:06d}",
             "measure": "score", "mean": 1e-6 * step, "low": 0.0, "high": 2e-6 * step, "n": 118}
            for arm, seed in keys
            for step in (10, 50, 200)
        ]  # fmt: skip
        steps = steps if self.plan.series else []
        for name, rows, schema in (
            ("comparisons", comparisons, COMPARISON_SCHEMA),
            ("directions", means, DIRECTION_SCHEMA),
            ("series", steps, SERIES_SCHEMA),
        ):
            write_table(run.out / f"{name}.parquet", pa.Table.from_pylist(rows, schema=schema))
        run.finish({"models": len(keys)})
        return self.root / "compare"

    def sentences(self, arm: str, seed: int) -> Path:
        out = self.root / "sentences" / arm / str(seed)
        run = self.stage("sentences", settings_dict(SentencesSettings()), {}, out)
        bootstrap = Bootstrap(20, 0.95, 0)
        references = list(self.words[self.plan.languages[0]])
        found = summarise_chrf(
            {f"{a}-{b}": (references[::-1], references) for a, b in self.pairs}, bootstrap
        )
        shares = {"n_sentences": len(references), "truncated": 0.25, "empty": 0.125}
        write_json(run.out / "summary.json", {**found, **shares})
        run.finish({})
        return out

    def trace(self, arm: str, seed: int) -> Path:
        out = self.root / "trace" / arm / str(seed)
        run = self.stage("trace", settings_dict(TraceSettings()), {}, out)
        items, layers, maps = [], [], []
        langs = list(self.plan.languages)
        for row in self._item_rows(arm, seed):
            if row["identical"]:
                continue
            key = {k: row[k] for k in ("concept", "source_lang", "target_lang")}
            named = {**key, "source": row["source"], "target": row["target"],
                     "behaviour": row["behaviour"]}  # fmt: skip
            items.append({**named, "behaviour_winner": row["behaviour"],
                          "behaviour_any": row["behaviour"], "winning_layer": 3,
                          "winning_token": row["target"], "winning_prob": 0.4})  # fmt: skip
            first = not any(m["behaviour"] == row["behaviour"] for m in maps)
            for layer in range(1, self.plan.layers + 1):
                x = layer / self.plan.layers
                third = {lang: lang not in (row["source_lang"], row["target_lang"])
                         for lang in langs}  # fmt: skip
                layers.append({
                    **key, "layer": layer, "p_source": 0.2 * (1 - x), "p_target": 0.5 * x**3,
                    "p_pivot": 0.25 * np.exp(-20 * (x - 0.6) ** 2) * (row["behaviour"] == "pivot"),
                    "p_answer": 0.4 * x**3, "entropy": 3.0, "rank_target": 4,
                    **{f"p_word_{k}": 0.1 * x if third[k] else None for k in langs},
                    **{f"p_vocabulary_{k}": 0.2 * x for k in langs}, "top_word": "neither",
                    "top_tokens": [" " + row["target"], "b", "c"],
                    "top_ids": [1, 2, 3], "top_probs": [0.3, 0.2, 0.1],
                })  # fmt: skip
                maps += [
                    {**named, "position": place, "token": f" {row['source']}" if place else "\n",
                     "layer": layer, "top_token": f" {row['target']}", "top_prob": 0.9 * x,
                     "p_answer": 0.5 * x}
                    for place in range(-4, 1)
                    if first and row["behaviour"] != "none"
                ]  # fmt: skip
        table, layer_table = pa.Table.from_pylist(items), pa.Table.from_pylist(layers)
        write_table(run.out / "items.parquet", table)
        write_table(run.out / "layers.parquet", layer_table)
        maps_table = pa.Table.from_pylist(maps, schema=HEATMAP_SCHEMA)
        write_table(run.out / "heatmaps.parquet", maps_table)
        tuned = {"layers": [0, 1], "kl_logit": [3.0, 1.0], "kl_tuned": [0.5, 0.25]}
        summary = summarise_trace(table, layer_table, langs, (0.1, 0.5), Bootstrap(20, 0.95, 0))
        write_json(run.out / "summary.json", {**summary, "lens": "tuned", "tuned": tuned})
        run.finish({"items": len(items)})
        return out

    def intervene(self, arm: str, seed: int) -> Path:
        out = self.root / "intervene" / arm / str(seed)
        run = self.stage("intervene", settings_dict(InterveneSettings()), {}, out)
        ablation, patching = [], []
        for row in self._item_rows(arm, seed):
            if row["identical"] or row["behaviour"] == "none":
                continue
            key = {k: row[k] for k in ("concept", "source_lang", "target_lang", "behaviour")}
            drops = {"clean": 0.0, "pivots": 0.2, "random": 0.02, "other": 0.05}
            for condition, drop in drops.items():
                p = 0.3 - drop * (1 if row["behaviour"] == "pivot" else 0.1)
                ablation.append({**key, "condition": condition, "p_answer": p,
                                 "log_p_answer": float(np.log(p))})  # fmt: skip
            patching += [
                {**key, "layer": layer, "log_p_own": -1.0, "log_p_donor": -2.0 + layer}
                for layer in range(3)
            ]
        tables = [
            pa.Table.from_pylist(rows, schema=None if rows else schema)
            for rows, schema in ((ablation, ABLATION_SCHEMA), (patching, PATCHING_SCHEMA))
        ]
        write_table(run.out / "ablation.parquet", tables[0])
        write_table(run.out / "patching.parquet", tables[1])
        summary = summarise_interventions(*tables, Bootstrap(20, 0.95, 0))
        write_json(run.out / "summary.json", summary)
        run.finish({"items": len(patching)})
        return out

    def attribute(self, arm: str, seed: int) -> Path:
        out = self.root / "attribute" / arm / str(seed)
        run = self.stage("attribute", settings_dict(AttributeSettings()), {}, out)
        rows = [
            {**{k: row[k] for k in ("concept", "source_lang", "target_lang", "source", "target",
                                    "behaviour", "score", "correct")},
             "log_pair": float(np.log1p(row["n"])),
             "log_source": float(np.log1p(20 + 3 * int(row["concept"][1:]))),
             "log_target": float(np.log1p(20 + 3 * int(row["concept"][1:]))),
             "pivot_contribution": float(3.0 + len(row["source"]))}
            for row in self._item_rows(arm, seed)
            if not row["identical"]
        ]  # fmt: skip
        write_table(run.out / "items.parquet", pa.Table.from_pylist(rows))
        found = summarise_attribution(observations(rows), (1, 10), Bootstrap(20, 0.95, 0))
        auc = {"value": 0.625, "low": 0.5, "high": 0.75, "n": len(rows)}
        cut = {"rule": "any", "threshold": 0.1, "n": len(rows), "auc": auc}
        write_json(run.out / "summary.json", {**found, "thresholds": [cut]})
        run.finish({"items": len(rows)})
        return out


def _shares(n: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, n + 1)
    return weights / weights.sum()
