"""Writes the folders of the stages up to the mix, and the task."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from mining.common.files import write_json, write_text
from mining.common.shards import write_table
from mining.mix_settings import MixSettings
from mining.settings import (
    CountSettings,
    PivotsSettings,
    ScoreSettings,
    TokenizerSettings,
    TokenizeSettings,
    WordsSettings,
)
from tests.eval.report.run_plan import HOSTILE, ITEM_TEXTS, SOURCES, Folders


class CorpusStages(Folders):
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


def _shares(n: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, n + 1)
    return weights / weights.sum()
