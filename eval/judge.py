"""A model behind an OpenAI-compatible endpoint picks the answer of each item out of its choices.

As METHOD section 1 has it: an item whose right word the model does not pick is taken for ambiguous.
Every answer is kept in a folder, one file for each request, under a hash of the whole request
(model, messages, sampling); the endpoint's address and key are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.build_settings import JudgeSettings
from eval.http_replies import MAX_REPLY_BYTES, NoReplyError, Reply, post
from mining.common.errors import InputError
from mining.common.files import dump_json, read_json, write_json
from mining.common.logs import log, progress
from mining.common.seeds import hash64
from mining.common.task import Concept, Task

MAX_PAUSE_SECONDS = 60.0
MAX_SHOWN_CHARS = 300
# Statuses after which another attempt may succeed.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Question:
    """One item as a question: the choices in their order, one of which is right."""

    concept: str
    source_lang: str
    target_lang: str
    prompt: str
    choices: tuple[str, ...]
    right: str


@dataclass(frozen=True)
class Verdict:
    """What the model said to a question; `picked` is None where that is none of the choices."""

    question: Question
    answer: str
    picked: str | None

    @property
    def right(self) -> bool:
        """Whether the model picked the right word."""
        return self.picked == self.question.right


def questions(task: Task) -> Iterator[Question]:
    """A question for each concept and direction that has wrong choices."""
    for source, target in task.directions():
        for concept in task.concepts:
            word, right = concept.words[source], concept.words[target]
            wrong = task.distractors(source, target, concept)
            if not wrong or word.casefold() == right.casefold():
                continue
            choices = sorted(
                [right, *wrong],
                key=lambda choice: hash64("choice", source, target, concept.id, choice),
            )
            listed = "\n".join(f"{i}. {choice}" for i, choice in enumerate(choices, start=1))
            prompt = (
                f"Which of these {task.languages[target]} words is the translation of the "
                f'{task.languages[source]} word "{word}"?\n\n{listed}\n\n'
                "Answer with the word only."
            )
            yield Question(concept.id, source, target, prompt, tuple(choices), right)


def pick(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names: by the word, by its number, or by both; else None."""
    first = answer.strip().splitlines()[0].strip() if answer.strip() else ""
    said = first.strip(" .\"'“”«»「」`*").casefold()
    for number, choice in enumerate(choices, start=1):
        word = choice.casefold()
        if said in (word, str(number), f"{number}. {word}", f"{number} {word}"):
            return choice
    return None


def ask(task: Task, settings: JudgeSettings, cache: Path) -> list[Verdict]:
    """Ask every question of a task; answers that the cache holds are not asked again.

    Raises InputError where the endpoint refuses, does not answer, or answers in another form.
    """
    asked = list(questions(task))
    judge = _Endpoint(settings, cache)
    with (
        ThreadPoolExecutor(settings.workers) as pool,
        progress("judge", len(asked), "items") as ticker,
    ):
        futures = [pool.submit(judge.answer, question.prompt) for question in asked]
        verdicts = []
        try:
            for question, future in zip(asked, futures, strict=True):
                answer = future.result()
                verdicts.append(Verdict(question, answer, pick(answer, question.choices)))
                ticker.advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    unread = [verdict.answer for verdict in verdicts if verdict.picked is None]
    if unread:
        log.warning(
            "judge: %d of %d answers name none of the choices, the first is %r; if that is no "
            "answer at all, look at build_task.judge.model and max_tokens",
            len(unread), len(verdicts), unread[0][:MAX_SHOWN_CHARS],
        )  # fmt: skip
    return verdicts


def failing_concepts(
    concepts: Iterable[Concept], verdicts: Iterable[Verdict], max_failed_share: float
) -> dict[str, tuple[int, int]]:
    """Concept id -> (questions failed, asked), of those that failed in too large a share."""
    counts = {concept.id: [0, 0] for concept in concepts}
    for verdict in verdicts:
        counts[verdict.question.concept][0] += not verdict.right
        counts[verdict.question.concept][1] += 1
    return {
        name: (failed, n) for name, (failed, n) in counts.items() if failed > max_failed_share * n
    }


class _Endpoint:
    def __init__(self, settings: JudgeSettings, cache: Path) -> None:
        assert settings.url is not None
        self.settings = settings
        self.url = settings.url.rstrip("/") + "/chat/completions"
        self.cache = cache
        # A key read from a file often ends with a line feed, which no header may hold.
        self.key = os.environ.get(settings.key_variable, "").strip()
        if not all("!" <= char <= "~" for char in self.key):
            raise InputError(
                f"the environment variable {settings.key_variable} (build_task.judge.key_variable) "
                "holds white space or other characters that no key has"
            )

    def answer(self, prompt: str) -> str:
        request = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.settings.max_tokens,
        }
        digest = hashlib.sha256(dump_json(request).encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        if path.is_file():
            kept = read_json(path)
            known = isinstance(kept, dict) and kept.get("request") == request
            if not known or not isinstance(kept.get("answer"), str):
                raise InputError(f"{path}: is not the answer to its request; remove the file")
            return str(kept["answer"])
        answer = self._content(self._post(request))
        write_json(path, {"request": request, "answer": answer})
        return answer

    def _post(self, request: dict[str, Any]) -> Any:
        body = json.dumps(request).encode()
        pause = self.settings.retry_seconds
        for attempt in range(self.settings.retries + 1):
            asked = None
            try:
                reply = post(self.url, body, self.key, self.settings.timeout_seconds)
            except NoReplyError as error:
                trouble = str(error)
            else:
                if reply.status < 300:
                    return self._parsed(reply)
                said = reply.location or reply.text.decode("utf-8", "replace")[:MAX_SHOWN_CHARS]
                trouble = f"status {reply.status}: {said}"
                if reply.status not in PASSING:
                    raise InputError(f"{self.url}: {trouble}{self._hint(reply.status)}")
                asked = reply.retry_after
            if attempt < self.settings.retries:
                wait = float(asked) if asked and asked.isdecimal() else pause
                log.info("judge: %s; again in %.1f s", trouble, min(wait, MAX_PAUSE_SECONDS))
                time.sleep(min(wait, MAX_PAUSE_SECONDS))
                pause *= 2
        attempts = self.settings.retries + 1
        raise InputError(
            f"{self.url}: no answer after {attempts} attempts ({trouble}); check "
            "build_task.judge.url, then run again: the answers so far are kept"
        )

    def _parsed(self, reply: Reply) -> Any:
        if len(reply.text) > MAX_REPLY_BYTES:
            raise InputError(f"{self.url}: the reply is over {MAX_REPLY_BYTES} bytes")
        try:
            return json.loads(reply.text)
        except (ValueError, RecursionError) as error:  # no JSON, or not even UTF-8
            raise InputError(f"{self.url}: the reply is no JSON ({error})") from None

    def _hint(self, status: int) -> str:
        if 300 <= status < 400:
            return ". That is a redirection; set build_task.judge.url to where it leads"
        if status not in (401, 403):
            return ""
        state = "is not set" if not self.key else "is refused"
        return f". The key in the environment variable {self.settings.key_variable} {state}"

    def _content(self, reply: Any) -> str:
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            shown = json.dumps(reply, ensure_ascii=False)[:MAX_SHOWN_CHARS]
            raise InputError(f"{self.url}: not a chat completion: {shown}") from None
        # JSON can spell halves of characters, which no file takes.
        return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
