"""chrF and chrF++ by sacrebleu: of a sentence, of a corpus, with intervals over sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF

from eval.stats import Bootstrap, Floats, mean_over_columns, weighted_means

CHRF_PP_WORD_ORDER = 2

Texts = Sequence[str]
Directions = Mapping[str, tuple[Texts, Texts]]


def make_metrics() -> dict[str, Any]:
    """sacrebleu's metrics with its own defaults: `chrf`, and `chrf_pp` with words of order 2."""
    return {"chrf": CHRF(), "chrf_pp": CHRF(word_order=CHRF_PP_WORD_ORDER)}


def sentence_scores(hypotheses: Texts, references: Texts) -> dict[str, list[float]]:
    """Each sentence's chrF and chrF++, 0 to 100; `chrf` is sacrebleu's sentence_chrf."""
    return {
        name: [
            metric.sentence_score(hypothesis, [reference]).score
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        ]
        for name, metric in make_metrics().items()
    }


def summarise_chrf(directions: Directions, bootstrap: Bootstrap) -> dict[str, Any]:
    """Scores with intervals: the mean over the directions, each direction, and the signatures.

    `directions` maps a name to (hypotheses, references) of the same sentences in the same order.
    `sentence_chrf` is the mean of the sentences' chrF (METHOD section 1), `corpus_chrf` and
    `corpus_chrf_pp` add up the n-grams of all sentences first. Sentences are drawn with all their
    directions, since their translations are not independent.
    """
    names = list(directions)
    n = len(directions[names[0]][0])
    sentences = [f"{i:09d}" for i in range(n)]
    summary: dict[str, Any] = {"directions": {name: {"n": n} for name in names}, "signatures": {}}
    columns = []
    for hypotheses, references in directions.values():
        columns.append(sentence_scores(hypotheses, references)["chrf"])
    values = np.array(columns).T

    def means(weights: Floats) -> Floats:
        return weighted_means(values, weights)

    measures = {"sentence_chrf": means}
    for name, metric in make_metrics().items():
        counts = []
        for hypotheses, references in directions.values():
            # sacrebleu's bootstrap adds up the same counts, but with a fixed level and own draws.
            found = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
            counts.append(np.array(found, dtype=np.float64))

        def corpus(weights: Floats, metric: Any = metric, counts: Any = counts) -> Floats:
            scores = [[metric._compute_f_score(row) for row in (weights @ c).tolist()]
                      for c in counts]  # fmt: skip
            return np.array(scores).T

        measures[f"corpus_{name}"] = corpus
        summary["signatures"][name] = str(metric.get_signature())
    for measure, statistic in measures.items():

        def with_mean(weights: Floats, statistic: Any = statistic) -> Floats:
            each = statistic(weights)
            return np.column_stack([mean_over_columns(each), each])

        overall, *each = bootstrap.intervals(with_mean, sentences)
        summary[measure] = overall.record()
        for name, interval in zip(names, each, strict=True):
            summary["directions"][name][measure] = interval.record()
    return summary
