"""What is asked about an item: candidates, draws, keys; and the measures made of the answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.items import Item, select_items
from eval.measures import candidate_rows, choose, item_row
from eval.questions import Question, draw_examples, make_questions
from eval.settings import EvaluateSettings
from eval.surface import form_difficulty, scripts, share_script, similarity
from mining.common.task import Task, read_task
from mining.common.tokenizer import Tokenizer

SETTINGS = EvaluateSettings(draws=2, examples=3)
N = 24


@pytest.fixture
def task(word_task: Any, tmp_path: Path) -> Task:
    return read_task(word_task(tmp_path / "task", N, ("en", "fr")))


@pytest.fixture
def tokenizer(task: Task, word_level: Any) -> Tokenizer:
    texts = [task.prompt(a, b, list(task.concepts), "") for a, b in task.directions()]
    made: Tokenizer = word_level(texts)
    return made


def test_both_forms_hold_the_right_pair_first(task: Task, tokenizer: Tokenizer) -> None:
    items = select_items(task, "en", "fr", None)[:3]
    questions = make_questions(tokenizer, task, items, SETTINGS, 7)
    # Concept 0 is the same word in both languages and is not asked.
    assert [(q.item.concept.id, q.form) for q in questions] == [
        (concept, form) for concept in ("c1", "c2") for form in ("source", "target")
    ]
    for source, target in zip(questions[::2], questions[1::2], strict=True):
        item = source.item
        assert source.candidates == (item.source, *task.distractors("fr", "en", item.concept))
        assert target.candidates == (item.target, *task.distractors("en", "fr", item.concept))
        for draw in range(2):
            assert source.encoded[draw][0] == target.encoded[draw][0]
            examples = task.draw_examples("en", "fr", item.concept, 3, draw, 7)
            for k in range(10):
                asked = task.prompt("en", "fr", examples, source.candidates[k])
                full = tokenizer.encode(f"{asked} {item.target}")
                assert list(source.encoded[draw][k].ids) == full
                answer = f"{task.prompt('en', 'fr', examples, item.source)} {target.candidates[k]}"
                assert list(target.encoded[draw][k].ids) == tokenizer.encode(answer)


def test_shared_draws_are_one_set_for_a_direction(task: Task) -> None:
    shared = dataclasses.replace(SETTINGS, shared_draws=True)
    items = select_items(task, "en", "fr", None)
    for draw in range(2):
        drawn = {
            item.concept.id: [c.id for c in draw_examples(task, item, shared, draw, 7)]
            for item in items
        }
        assert all(concept not in examples for concept, examples in drawn.items())
        common = max(drawn.values(), key=list(drawn.values()).count)
        # Only the three examples themselves are given others.
        assert {c for c, examples in drawn.items() if examples != common} == set(common)
        again = [c.id for c in draw_examples(task, items[0], shared, draw, 7)]
        assert again == drawn[items[0].concept.id]
    first, second = (draw_examples(task, items[0], shared, draw, 7) for draw in (0, 1))
    assert first != second


def test_keys_change_with_all_that_is_asked(task: Task, tokenizer: Tokenizer) -> None:
    items = select_items(task, "en", "fr", None)[1:2]

    def key(seed: int = 7, **change: Any) -> str:
        settings = dataclasses.replace(SETTINGS, **change)
        return make_questions(tokenizer, task, items, settings, seed)[0].key()

    assert key() == key(bootstrap_samples=5, batch_tokens=3)
    different = [key(), key(seed=8), key(draws=1), key(examples=2), key(shared_draws=True)]
    assert len(set(different)) == len(different)
    question = make_questions(tokenizer, task, items, SETTINGS, 7)[0]
    (first, *others), *draws = question.encoded
    moved = dataclasses.replace(first, n_context=first.n_context - 1)
    other = dataclasses.replace(question, encoded=((moved, *others), *draws))
    assert other.key() != question.key()


def question_with(item: Item, form: Any, words: list[str], lengths: list[list[int]]) -> Question:
    from eval.prompts import Encoded

    encoded = tuple(tuple(Encoded((1,) * (4 + n), 4) for n in draw) for draw in lengths)
    return Question(item, form, tuple(words), encoded)


def test_measures_by_hand(task: Task) -> None:
    concept = dataclasses.replace(task.concepts[1], words={"en": "dog", "fr": "chien"})
    item = Item(concept, "en", "fr")
    log_probs = np.log([[0.4, 0.5, 0.01], [0.2, 0.1, 0.04]])
    source = question_with(item, "source", ["dog", "cat", "chin"], [[2, 2, 2], [1, 1, 1]])
    target = question_with(item, "target", ["chien", "ch", "chat"], [[2, 1, 1], [1, 1, 2]])
    row = item_row(item, [(source, log_probs), (target, log_probs)], {("c1", "en"): 4})
    # Token mean, over the draws: exp of the mean of log p / N.
    p = [np.exp((np.log(a) / 2 + np.log(b)) / 2) for a, b in ((0.4, 0.2), (0.5, 0.1), (0.01, 0.04))]
    assert row["p_gold"] == pytest.approx(p[0])
    assert row["loss"] == pytest.approx(-np.log(p[0]))
    assert row["score"] == pytest.approx(p[0] - (p[1] + p[2]) / 2)
    assert (row["rank"], row["correct"], row["n_distractors"], row["n_draws"]) == (1, True, 2, 2)
    total = [np.sqrt(0.08), np.sqrt(0.05), np.sqrt(0.0004)]
    assert row["score_sum"] == pytest.approx(total[0] - (total[1] + total[2]) / 2)
    per_byte = [x ** (1 / 5) for x in total]
    assert row["score_bytes"] == pytest.approx(per_byte[0] - (per_byte[1] + per_byte[2]) / 2)
    mean = [p[0], np.sqrt(0.05), np.exp((np.log(0.01) + np.log(0.04) / 2) / 2)]
    assert row["target_score"] == pytest.approx(mean[0] - (mean[1] + mean[2]) / 2)
    # "ch" has two bytes, so that each of them is unlikelier than the right answer's five.
    assert total[1] ** (1 / 2) < per_byte[0]
    assert (row["target_rank_bytes"], row["target_rank_sum"]) == (1, 1)
    # One of the two languages is not counted.
    assert row["doc_freq"] is None
    both = item_row(item, [], {("c1", "en"): 4, ("c1", "fr"): 3})
    assert both["doc_freq"] == 3
    assert both["n_draws"] == 0
    assert "score" not in both
    rows = list(candidate_rows(target, log_probs))
    assert [(r["position"], r["word"], r["n_bytes"], r["n_tokens"]) for r in rows] == [
        (0, "chien", 5, [2, 1]), (1, "ch", 2, [1, 1]), (2, "chat", 4, [1, 2])
    ]  # fmt: skip
    assert rows[2]["log_probs"] == pytest.approx(np.log([0.01, 0.04]))
    assert [r["n_bytes"] for r in candidate_rows(source, log_probs)] == [5, 5, 5]


def test_choices_count_ties_against_the_right_one() -> None:
    assert choose(np.log([0.5])) is None
    found = choose(np.log([0.5, 0.5, 0.1]))
    assert found is not None
    assert (found.rank, found.score) == (2, pytest.approx(0.2))
    # Far below what exp can hold, ranks still tell them apart.
    assert choose(np.array([-900.0, -1000.0])).rank == 1  # type: ignore[union-attr]


def test_scripts() -> None:
    assert scripts("ファイル") == {"KATAKANA"}
    assert scripts("スーパー") == {"KATAKANA"}
    assert scripts("食べる") == {"CJK", "HIRAGANA"}
    assert scripts("人々") == {"CJK"}
    assert scripts("d'été-3") == {"LATIN"}
    assert scripts("ＵＲＬ") == {"LATIN"}
    assert share_script("文件", "文書")
    assert share_script("café", "coffee")
    assert not share_script("文件", "ファイル")
    assert not share_script("word", "слово")
    assert not share_script("3", "3")


def test_letters_alone() -> None:
    assert similarity("table", "TABLE") == 1
    assert similarity("dog", "chat") == 0
    # ^t ta ab bl le e$ against ^t ta ab b$: three shared of six and four.
    assert similarity("table", "tab") == pytest.approx(2 * 3 / 10)
    assert form_difficulty(["table"], "table") is None
    assert form_difficulty(["table", "chair", "bench"], "table") == 0
    assert form_difficulty(["dog", "chat", "chats"], "chat") == 1
    assert form_difficulty(["dog", "cat", "cow"], "狗") == 0.5
