"""The judge: reading answers, retries and errors over real HTTP; a real model server is below."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eval.build_settings import BuildTaskSettings, JudgeSettings, LexiconSource
from eval.build_task import run_build_task
from eval.judge import Verdict, ask, failing_concepts, pick, questions
from mining.common.errors import InputError
from mining.common.manifest import read_manifest
from mining.common.task import Task, read_task
from tests.conftest import REPOSITORY

CHOICES = ("Hund", "Katze", "Kuh")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Katze", "Katze"),
        ("  katze.\n", "Katze"),
        ("2", "Katze"),
        ("2.", "Katze"),
        ("2. Katze", "Katze"),
        ('"Katze"', "Katze"),
        ("**Katze**", "Katze"),
        ("Katze\nbecause it is", "Katze"),
        ("3. Katze", None),
        ("Maus", None),
        ("Hund or Katze", None),
        ("", None),
        ("4", None),
    ],
)
def test_pick(answer: str, expected: str | None) -> None:
    assert pick(answer, CHOICES) == expected


@pytest.fixture
def task(tmp_path: Path, word_task: Callable[..., Path]) -> Task:
    return read_task(word_task(tmp_path / "task", 12, ("en", "fr")))


def test_questions_hold_the_right_word_among_ten(task: Task) -> None:
    asked = list(questions(task))
    # Concept 0 is the same word in both languages.
    assert {(q.source_lang, q.target_lang, q.concept) for q in asked} == {
        (a, b, f"c{i}") for a, b in (("en", "fr"), ("fr", "en")) for i in range(1, 12)
    }
    assert all(len(set(q.choices)) == 10 and q.right in q.choices for q in asked)
    # The place of the right word tells nothing.
    assert len({q.choices.index(q.right) for q in asked}) > 3


def test_failing_concepts_are_counted_by_direction(task: Task) -> None:
    verdicts = [
        Verdict(q, "", q.right if q.source_lang == "en" or q.concept == "c1" else None)
        for q in questions(task)
    ]
    failing = failing_concepts(task.concepts, verdicts, 0.25)
    assert failing == {f"c{i}": (1, 2) for i in range(2, 12)}
    assert failing_concepts(task.concepts, verdicts, 0.5) == {}


CUT = b"a reply that breaks off"


class _Server(ThreadingHTTPServer):
    """Answers with what `script` says, one entry a request; then with the right form."""

    script: list[tuple[int, bytes]]
    seen: list[tuple[str, dict[str, str], Any]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        good = json.dumps({"choices": [{"message": {"content": "1"}}]}).encode()
        status, reply = self.server.script.pop(0) if self.server.script else (200, good)
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply) + 9 * (reply == CUT)))
        if 300 <= status < 400:
            self.send_header("Location", reply.decode())
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.script, server.seen = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judge_settings(port: int, **more: Any) -> JudgeSettings:
    url = f"http://127.0.0.1:{port}/v1/"
    return JudgeSettings(url=url, model="m", retry_seconds=0.01, **more)


def test_passing_troubles_are_tried_again_and_answers_kept(
    endpoint: _Server, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key")
    endpoint.script = [(503, b"busy"), (429, b"slow down"), (503, CUT), (200, CUT)]
    settings = judge_settings(endpoint.server_port, key_variable="MY_KEY", workers=1)
    verdicts = ask(task, settings, tmp_path / "cache")
    n = len(list(questions(task)))
    assert len(verdicts) == n
    assert all(v.picked == v.question.choices[0] for v in verdicts)
    assert len(endpoint.seen) == n + 4
    path, headers, body = endpoint.seen[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert body["model"] == "m"
    assert body["messages"][0]["content"] == verdicts[-1].question.prompt
    assert "secret-key" not in "".join(p.read_text() for p in (tmp_path / "cache").rglob("*.json"))

    # The same questions from the cache; another model asks anew.
    assert ask(task, settings, tmp_path / "cache") == verdicts
    assert len(endpoint.seen) == n + 4
    other = JudgeSettings(url=settings.url, model="other")
    ask(task, other, tmp_path / "cache")
    assert len(endpoint.seen) == 2 * n + 4


@pytest.mark.parametrize(
    ("status", "reply", "message"),
    [
        (401, b"who are you", "status 401: who are you. The key in the environment variable"),
        (400, b"no such model", "status 400: no such model"),
        (200, b"<html>", "the reply is no JSON"),
        (200, b"\xff\xfe", "the reply is no JSON"),
        (200, b'{"choices": []}', "not a chat completion"),
        (200, b"[" * 100_000, "the reply is no JSON"),
        (200, b" " * (17 << 20), "the reply is over"),
    ],
)
def test_refusals_are_errors_at_once(
    endpoint: _Server, task: Task, tmp_path: Path, status: int, reply: bytes, message: str
) -> None:
    endpoint.script = [(status, reply)] * 3
    with pytest.raises(InputError, match=message):
        ask(task, judge_settings(endpoint.server_port, workers=1), tmp_path)
    assert len(endpoint.seen) <= 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    endpoint: _Server, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = judge_settings(endpoint.server_port, key_variable="MY_KEY", workers=1)
    # What a file ends with is no part of the key; a server that repeats it does not tell us more.
    monkeypatch.setenv("MY_KEY", "secret-key\n")
    endpoint.script = [(401, b"no such key: secret-key")] * 3
    with pytest.raises(InputError, match=r"no such key: \.\.\.\. The key .* is refused"):
        ask(task, settings, tmp_path)
    assert endpoint.seen[0][1]["Authorization"] == "Bearer secret-key"
    # http.client would show a key that no header can hold in its own error.
    for key in ("secret\nkey", "sécret"):
        monkeypatch.setenv("MY_KEY", key)
        with pytest.raises(InputError, match="variable MY_KEY") as error:
            ask(task, settings, tmp_path)
        assert key not in str(error.value)


KEY = "sk/pl4nted+Key=="
SPELLED = (
    "Bearer sk/pl4nted+Key==",
    "sk%2Fpl4nted%2bKey%3D%3d",
    "sk\\/pl4nted\\u002bKey\\u003D=",
)


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("status", [302, 400, 503, 200])
def test_an_echoed_key_is_shown_and_written_nowhere(
    endpoint: _Server, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, status: int, spelled: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level("INFO")
    said = f'{{"error": {{"message": "no such key: {spelled}"}}}}'
    if status == 302:
        said = f"https://login.example/?from={spelled}"
    endpoint.script = [(status, said.encode())] * 99
    settings = judge_settings(
        endpoint.server_port, key_variable="MY_KEY", workers=1, retries=int(status == 503)
    )
    with pytest.raises(InputError, match=r"\.\.\.") as error:
        ask(task, settings, tmp_path)
    assert "pl4nted" not in str(error.value) + caplog.text


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_key_in_an_answer_is_kept_nowhere(
    endpoint: _Server, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, spelled: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("MY_KEY", KEY)
    said = f'{{"choices": [{{"message": {{"content": "you sent {spelled}"}}}}]}}'
    endpoint.script = [(200, said.encode())] * 99
    settings = judge_settings(endpoint.server_port, key_variable="MY_KEY", workers=1)
    verdicts = ask(task, settings, tmp_path / "cache")
    assert {verdict.answer.removesuffix("...")[:8] for verdict in verdicts} == {"you sent"}
    kept = [path.read_text() for path in (tmp_path / "cache").rglob("*.json")]
    assert kept
    assert "pl4nted" not in "".join(kept) + caplog.text + repr(verdicts)


def test_a_line_that_is_no_status_shows_no_key(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with raw_server(lambda connection: connection.sendall(f"Bearer {KEY}\r\n".encode())) as port:
        settings = judge_settings(port, key_variable="MY_KEY", workers=1, retries=0)
        with pytest.raises(InputError, match=r"\(Bearer \.\.\.") as error:
            ask(task, settings, tmp_path)
    assert "pl4nted" not in str(error.value)


def test_a_short_key_for_servers_that_want_any_changes_no_answer(
    endpoint: _Server, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "1")
    settings = judge_settings(endpoint.server_port, key_variable="MY_KEY")
    assert {verdict.answer for verdict in ask(task, settings, tmp_path)} == {"1"}


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf4240\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\n",
    ],
    ids=["status", "headers", "body", "chunk", "error"],
)
def test_a_reply_that_drips_ends_in_time(task: Task, tmp_path: Path, beginning: bytes) -> None:
    """Each byte begins the socket's own time limit anew."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(beginning)
        while True:
            connection.sendall(b"1")
            time.sleep(0.1)

    with raw_server(drip) as port:
        settings = judge_settings(port, timeout_seconds=0.5, workers=1, retries=1)
        start = time.monotonic()
        with pytest.raises(
            InputError, match=r"no answer after 2 attempts \((timed out|status 503)"
        ):
            ask(task, settings, tmp_path)
        assert time.monotonic() - start < 10


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that says what it likes; yields its port."""

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            answer(connection)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirections_are_not_followed(
    endpoint: _Server, task: Task, tmp_path: Path, status: int
) -> None:
    other = f"http://localhost:{endpoint.server_port}/other"
    endpoint.script = [(status, other.encode())] * 3
    with pytest.raises(InputError, match=r"/other\. That is a redirection; set build_task"):
        ask(task, judge_settings(endpoint.server_port, workers=1), tmp_path)
    assert {path for path, _, _ in endpoint.seen} == {"/v1/chat/completions"}


def test_an_answer_may_hold_any_characters(endpoint: _Server, task: Task, tmp_path: Path) -> None:
    """JSON can spell half a character; a name of a file in it is but text."""
    said = b'{"choices": [{"message": {"content": "\\ud800 ../../x <script>"}}]}'
    endpoint.script = [(200, said)]
    verdicts = ask(task, judge_settings(endpoint.server_port, workers=1), tmp_path / "cache")
    assert verdicts[0].answer == "? ../../x <script>"
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "task"}


def test_answers_that_are_none_are_told(
    endpoint: _Server, task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that thinks first may have no words left for the answer."""
    empty = json.dumps({"choices": [{"message": {"content": None}}]}).encode()
    endpoint.script = [(200, empty)] * 3
    ask(task, judge_settings(endpoint.server_port), tmp_path)
    assert "3 of 22 answers name none of the choices, the first is ''" in caplog.text


def test_silence_is_an_error_after_the_last_attempt(task: Task, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no answer after 2 attempts.*the answers so far are kept"
    ):
        ask(task, judge_settings(free_port(), retries=1, workers=1), tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@contextlib.contextmanager
def served(model: Path, log: Path) -> Iterator[int]:
    """`transformers serve` on a model folder; yields its port, and ends it."""
    port = free_port()
    code = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", str(model), *options],
            stdout=handle, stderr=handle,
        )  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            time.sleep(0.2)
        else:
            raise AssertionError(f"the server does not start: {log.read_text()[-3000:]}")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_real_model_server(
    tmp_path: Path, byte_bpe: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    """A random model's answers are nonsense; they are asked, kept and acted on like any other."""
    tokenizer = byte_bpe(["hello world"], 280)
    model = tmp_path / "byte-bpe"
    net = tiny_model("llama", tokenizer.vocab_size)
    net.save_pretrained(model)
    config = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    text = json.dumps({**config, "chat_template": CHAT_TEMPLATE})
    (model / "tokenizer_config.json").write_text(text, "utf-8")

    source = LexiconSource(str(REPOSITORY / "tests" / "data" / "german.tsv"))
    cache = tmp_path / "cache"

    def build(out: Path, url: str, max_failed_share: float) -> pd.DataFrame:
        judge = JudgeSettings(
            url=url, model=str(model), max_tokens=3, retries=0, max_failed_share=max_failed_share
        )
        languages = {"en": "English", "de": "German"}
        settings = BuildTaskSettings((source,), languages, judge=judge)
        run_build_task(settings, out, {}, cache)
        return pd.read_csv(out / "judge.tsv", sep="\t", keep_default_na=False, quoting=3)

    with served(model, tmp_path / "log") as port:
        url = f"http://127.0.0.1:{port}/v1"
        asked = build(tmp_path / "first", url, 1.0)
        log = (tmp_path / "log").read_text()
    assert len(asked) == 100
    assert log.count('"POST /v1/chat/completions HTTP/1.1" 200') == 100
    counts = read_manifest(tmp_path / "first").counts
    assert counts["judged"] == 100
    assert counts["concepts"] == 50
    assert counts["judged_right"] == (asked["picked"] == asked["right"]).sum()
    assert len(list(cache.rglob("*.json"))) == 100

    # The server is gone: another run with the same questions asks nobody. A stricter limit drops
    # what the model missed, which is everything here.
    again = build(tmp_path / "second", url, 1.0)
    pd.testing.assert_frame_equal(again, asked)
    with pytest.raises(InputError, match=r"no concept is left.*judge: \d+.*missed in"):
        build(tmp_path / "third", url, 0.0)
