"""The summary of an evaluation: its schema, its means, its intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from eval.answer_arrays import item_measures, read_answers
from eval.evaluate_summary import UNDEFINED, summarise
from eval.resampling import ABSENT, Items, choice_values, draw_patterns, resampled_means
from eval.stats import Bootstrap

BOOTSTRAP = Bootstrap(40, 0.9, 5)


def plain_samples(
    items: pa.Table, candidates: pa.Table, form: str, norm: str, bootstrap: Bootstrap, part: Any
) -> list[tuple[float, float, float]]:
    """MEASURES of every sample over the items of `part`, item by item and draw by draw.

    What an item has in a sample is moved so that its mean over the samples is its own value.
    """
    answers: dict[Any, list[dict[str, Any]]] = {}
    for row in candidates.to_pylist():
        if row["form"] == form:
            key = (row["concept"], row["source_lang"], row["target_lang"])
            answers.setdefault(key, []).append(row)
    rows = [row for row in items.to_pylist() if row["score"] is not None]
    names = sorted({row["concept"] for row in rows})
    n_draws = len(next(iter(answers.values()))[0]["log_probs"])
    shares = {}
    for a, b in sorted({(row["source_lang"], row["target_lang"]) for row in rows}):
        patterns, which = draw_patterns(bootstrap, n_draws, f"{a}-{b}")
        shares[(a, b)] = patterns[which]

    def values(row: Any, share: Any) -> np.ndarray:
        means = []
        for choice in answers[(row["concept"], row["source_lang"], row["target_lang"])]:
            total = 0.0
            for k in range(n_draws):
                unit = {
                    "tokens": choice["n_tokens"][k],
                    "bytes": choice["n_bytes"],
                    "sum": 1,
                }[norm]
                total += share[k] * choice["log_probs"][k] / unit
            means.append(total)
        rank = 1 + sum(m >= means[0] for m in means[1:])
        score = math.exp(means[0]) - sum(map(math.exp, means[1:])) / (len(means) - 1)
        return np.array([score, float(rank == 1), 1 / rank])

    samples = []
    found = {}
    for number, row in enumerate(rows):
        direction = (row["source_lang"], row["target_lang"])
        sampled = np.array([values(row, share) for share in shares[direction]])
        plain = values(row, [1 / n_draws] * n_draws)
        found[number] = sampled - sampled.mean(axis=0) + plain
    for s, weights in enumerate(np.concatenate(list(bootstrap.weights(names)))):
        by_direction: dict[Any, list[tuple[float, Any]]] = {}
        for number, row in enumerate(rows):
            direction = (row["source_lang"], row["target_lang"])
            weight = weights[names.index(row["concept"])]
            if part(row) and weight:
                by_direction.setdefault(direction, []).append((weight, found[number][s]))
        means_of = [
            [sum(w * v[m] for w, v in pairs) / sum(w for w, _ in pairs) for m in range(3)]
            for pairs in by_direction.values()
        ]
        means_of = [
            [min(max(v, low), 1) for v, low in zip(means, (-1, 0, 0), strict=True)]
            for means in means_of
        ]
        samples.append(tuple(float(np.mean(column)) for column in zip(*means_of, strict=True)))
    return samples


@pytest.mark.parametrize(("form", "norm"), [("source", "tokens"), ("target", "bytes")])
def test_intervals_equal_a_plain_loop(evaluation_tables, form: str, norm: str) -> None:
    items, candidates = evaluation_tables(12, n_draws=3)
    summary = summarise(items, candidates, BOOTSTRAP, (2, 5))
    for place, part in (
        (summary["all"], lambda row: True),
        (summary["by"]["pos"]["verb"], lambda row: row["pos"] == "verb"),
        (summary["by"]["direction"]["fr-zh"],
         lambda row: (row["source_lang"], row["target_lang"]) == ("fr", "zh")),
        (summary["by"]["frequency"]["2-4"], lambda row: 2 <= row["doc_freq"] < 5),
    ):  # fmt: skip
        samples = plain_samples(items, candidates, form, norm, BOOTSTRAP, part)
        for m, measure in enumerate(("score", "accuracy", "mrr")):
            low, high = np.quantile([s[m] for s in samples], [0.05, 0.95])
            record = place[form][norm][measure]
            assert (record["low"], record["high"]) == pytest.approx((low, high), rel=1e-9), measure


def test_means_are_the_items_own(evaluation_tables) -> None:
    items, candidates = evaluation_tables(12)
    summary = summarise(items, candidates, BOOTSTRAP, ())
    frame = items.to_pandas().dropna(subset=["score"])
    for norm, column in (("tokens", "score"), ("bytes", "score_bytes"), ("sum", "score_sum")):
        mean = frame.groupby(["source_lang", "target_lang"])[column].mean().mean()
        assert summary["all"]["source"][norm]["score"]["mean"] == pytest.approx(mean)
        verbs = frame[frame["pos"] == "verb"]
        mean = verbs.groupby(["source_lang", "target_lang"])[f"target_{column}"].mean().mean()
        found = summary["by"]["pos"]["verb"]["target"][norm]["score"]
        assert found["mean"] == pytest.approx(mean)
        assert found["n"] == len(verbs) == summary["by"]["pos"]["verb"]["n"]
    ranks = frame.groupby(["source_lang", "target_lang"])["rank"]
    assert summary["mrr"]["mean"] == pytest.approx(ranks.apply(lambda r: (1 / r).mean()).mean())
    assert summary["score"] == summary["all"]["source"]["tokens"]["score"]
    assert summary["target_accuracy"] == summary["all"]["target"]["tokens"]["accuracy"]
    direction = summary["directions"]["fr-en"]
    assert direction["mrr"] == summary["by"]["direction"]["fr-en"]["source"]["tokens"]["mrr"]
    assert direction["n"] == 12
    assert (
        summary["groups"]["g0"]["score"]
        == summary["by"]["group"]["g0"]["source"]["tokens"]["score"]
    )
    assert summary["groups"]["g0"]["directions"]["en-fr"]["n"] == 5


def test_parts_and_shares(evaluation_tables) -> None:
    items, candidates = evaluation_tables(12)
    summary = summarise(items, candidates, BOOTSTRAP, (1, 4, 5))
    assert summary["n_items"] == 71
    assert summary["n_identical"] == 1
    assert summary["identical"]["en-fr"] == {"n": 12, "identical": 1, "share": 1 / 12}
    assert summary["identical"]["fr-en"]["share"] == 0
    # Concept 0 is identical in one direction only, 1 in none.
    assert {k: v["n"] for k, v in summary["by"]["frequency"].items()} == {
        "0": 5, "1-3": 18, "4": 6, "5+": 42
    }  # fmt: skip
    for dimension in ("direction", "pos", "class", "group", "frequency", "form_difficulty"):
        assert sum(part["n"] for part in summary["by"][dimension].values()) == 71, dimension
    assert {k: v["n"] for k, v in summary["by"]["shared_script"].items()} == {"no": 48, "yes": 23}
    frame = items.to_pandas().dropna(subset=["score"])
    hard = frame[frame["form_difficulty"] > 2 / 3]
    assert summary["by"]["form_difficulty"]["high"]["n"] == len(hard)
    assert summary["form_difficulty"]["mean"] == pytest.approx(frame["form_difficulty"].mean())


def test_items_that_letters_say_nothing_about_are_in_the_middle(evaluation_tables) -> None:
    """As most are where scripts differ; the few that copying letters gets right stand apart."""
    items, candidates = evaluation_tables(12)
    scored = items.filter(pc.invert(items["identical"]))
    difficulty = pa.array([0.0, 1.0] + [0.5] * (scored.num_rows - 2))
    place = items.schema.get_field_index("form_difficulty")
    ties = scored.set_column(place, "form_difficulty", difficulty)
    found = summarise(ties, candidates, BOOTSTRAP, ())["by"]["form_difficulty"]
    assert {name: part["n"] for name, part in found.items()} == {"low": 1, "high": 1, "middle": 69}


def test_many_items_with_noisy_draws_keep_their_mean_inside_the_interval() -> None:
    """Fewer different draws make every sample worse: with many items by more than its width."""
    rng = np.random.default_rng(0)
    n, n_wrong = 4000, 9
    names = [f"{i:04d}" for i in range(n)]
    items = Items(names, np.arange(n), ["a-b"], np.zeros(n, dtype=np.int64), np.ones((n, 1)))
    logs = rng.normal(-3, 1, (1 + n_wrong, 1, n)) + rng.normal(0, 1, (1 + n_wrong, 5, n))
    logs[0] += 1
    wrong = np.full(n, float(n_wrong))
    plain = choice_values(logs, wrong, np.full((1, 5), 0.2))[:, 0].mean(axis=1)
    samples = resampled_means(items, logs, wrong, Bootstrap(200, 0.95, 0))[:, :, 0, 0]
    for value, (low, high) in zip(plain, np.quantile(samples, [0.3, 0.7], axis=1).T, strict=True):
        assert low < value < high


def test_one_draw_reduces_to_the_bootstrap_over_concepts(evaluation_tables) -> None:
    items, candidates = evaluation_tables(15, n_draws=1, langs=("en", "fr"))
    frame = items.to_pandas().dropna(subset=["score"])
    summary = summarise(items, candidates, BOOTSTRAP, ())
    names = sorted(frame["concept"].unique())
    samples = []
    for weights in np.concatenate(list(BOOTSTRAP.weights(names))):
        w = frame["concept"].map(dict(zip(names, weights, strict=True)))
        means = [
            np.average(part["score"], weights=w[part.index])
            for _, part in frame.groupby(["source_lang", "target_lang"])
        ]
        samples.append(np.mean(means))
    found = summary["score"]
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(samples, [0.05, 0.95]))


def test_a_tie_counts_against_the_right_answer() -> None:
    ties = np.array([[[-1.0], [-2.0]], [[-1.0], [-2.0]], [[ABSENT], [ABSENT]]])
    shares = np.array([[0.5, 0.5], [1 / 3, 2 / 3]])
    score, accuracy, mrr = choice_values(ties, np.ones(1), shares)
    assert score.tolist() == [[0.0], [0.0]]
    assert accuracy.tolist() == [[0.0], [0.0]]
    assert mrr.tolist() == [[0.5], [0.5]]


def test_work_in_pieces_gives_the_same_numbers(
    evaluation_tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, candidates = evaluation_tables(8)
    whole = summarise(items, candidates, BOOTSTRAP, (2, 5))
    monkeypatch.setattr("eval.stats.CHUNK_VALUES", 50)
    monkeypatch.setattr("eval.resampling.CHUNK_VALUES", 100)
    pieces = summarise(items, candidates, BOOTSTRAP, (2, 5))
    for form, norm in (("source", "tokens"), ("target", "sum")):
        for measure, record in whole["all"][form][norm].items():
            assert pieces["all"][form][norm][measure] == pytest.approx(record, rel=1e-9)


def test_nothing_scored_is_said_and_breaks_nothing(evaluation_tables) -> None:
    items, candidates = evaluation_tables(3, n_draws=1)
    nothing = items.set_column(
        items.schema.get_field_index("score"), "score", pa.nulls(items.num_rows, pa.float64())
    )
    summary = summarise(nothing, candidates, BOOTSTRAP, ())
    assert summary["score"] == summary["mrr"] == UNDEFINED
    assert summary["n_items"] == summary["all"]["n"] == 0
    assert summary["directions"] == summary["groups"] == {}


def test_only_the_source_form(evaluation_tables) -> None:
    summary = summarise(*evaluation_tables(4, forms=("source",)), BOOTSTRAP, ())
    assert "target" not in summary["all"]
    assert "target_score" not in summary


def one_direction(values: Any) -> tuple[Items, np.ndarray]:
    """Items of one direction from log p [n, n_draws] ; the wrong one has P = 0."""
    n, n_draws = values.shape
    names = [f"{i:04d}" for i in range(n)]
    zeros = np.zeros(n, dtype=np.int64)
    items = Items(names, np.arange(n), ["a-b"], zeros, np.ones((n, 1)))
    logs = np.full((2, n_draws, n), -50.0)
    logs[0] = values.T
    return items, logs


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_intervals_cover_the_truth(shared: bool) -> None:
    """Repeated experiments: about 90% of the 90% intervals hold the true mean Score.

    With draws that all items share the bootstrap over concepts alone misses it far too often.
    """
    rng = np.random.default_rng(1)
    n, n_draws, spread, noise = 60, 8, 0.3, 0.3
    # E exp(item + mean of draws), of a log-normal variable.
    truth = math.exp(-1 + spread**2 / 2 + noise**2 / n_draws / 2)
    hits, naive, repeats = 0, 0, 400
    for repeat in range(repeats):
        size = (1, n_draws) if shared else (n, n_draws)
        draws = rng.normal(0, noise, size)
        values = -1 + rng.normal(0, spread, (n, 1)) + draws
        items, logs = one_direction(values)
        bootstrap = Bootstrap(300, 0.9, repeat)
        for flat in (False, True):
            used = np.broadcast_to(logs.mean(axis=1, keepdims=True), (2, 1, n)) if flat else logs
            samples = resampled_means(items, np.ascontiguousarray(used), np.ones(n), bootstrap)
            low, high = np.quantile(samples[0, :, 0, 0], [0.05, 0.95])
            if flat:
                naive += low <= truth <= high
            else:
                hits += low <= truth <= high
    assert 0.84 <= hits / repeats <= 0.97
    if shared:
        assert naive / repeats < 0.7


def test_answers_follow_the_items_order(evaluation_tables) -> None:
    items, candidates = evaluation_tables(5, langs=("en", "fr"))
    scored = items.filter(pc.is_valid(items["score"]))
    rng = np.random.default_rng(0)
    shuffled = scored.take(rng.permutation(scored.num_rows))
    answers = read_answers(shuffled, candidates, "source")
    assert answers is not None
    for norm in ("tokens", "bytes", "sum"):
        uniform = np.full((1, 3), 1 / 3)
        found = choice_values(answers.log_likelihoods[norm], answers.n_wrong, uniform)[:, 0]
        expected = item_measures(shuffled, "source", norm)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert sorted(answers.n_wrong.tolist()) == [2, 2] + [9] * 7
