"""Writes the folders of the stages that belong to a model: training to attribution."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from eval.ablation import ABLATION_SCHEMA
from eval.attribute import observations
from eval.attribute import summarise as summarise_attribution
from eval.chrf import summarise_chrf
from eval.compare import COMPARISON_SCHEMA, DIRECTION_SCHEMA, SERIES_SCHEMA
from eval.intervene_settings import InterveneSettings
from eval.intervene_summary import summarise as summarise_interventions
from eval.patching import PATCHING_SCHEMA
from eval.sentence_settings import SentencesSettings
from eval.settings import AttributeSettings, CompareSettings, EvaluateSettings, TraceSettings
from eval.stats import Bootstrap
from eval.trace_rows import HEATMAP_SCHEMA
from eval.trace_summary import summarise as summarise_trace
from mining.common.files import write_json, write_text
from mining.common.shards import write_table
from mining.common.stage import settings_dict
from tests.eval.report.run_plan import Folders
from training.settings import TrainSettings


class ModelStages(Folders):
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
