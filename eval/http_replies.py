"""Whole replies to HTTP requests: in bounded time and size, and without the key that was sent."""

from __future__ import annotations

import functools
import http.client
import io
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mining.common.secret_words import HIDDEN, MIN_SECRET

MAX_ERROR_BYTES = 1 << 16
MAX_REPLY_BYTES = 16 << 20


@dataclass(frozen=True)
class Reply:
    """What came back; `text` is cut where its bytes are more than are read."""

    status: int
    text: bytes
    location: str | None
    retry_after: str | None


class NoReplyError(Exception):
    """Nothing came back, or not all of it."""


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a moment: its own time limit begins anew with each byte."""

    def __init__(self, raw: Any, sock: socket.socket, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out before the reply ended")
        self._sock.settimeout(left)
        found: int | None = self._raw.readinto(buffer)
        return found

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock, deadline))


def _connection(kind: Callable[..., Any], host: str, timeout: float, **more: Any) -> Any:
    made = kind(host, timeout=timeout, **more)
    made.response_class = functools.partial(_Response, deadline=time.monotonic() + timeout)
    return made


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind: Any = functools.partial(_connection, http.client.HTTPConnection)
        return self.do_open(kind, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind: Any = functools.partial(_connection, http.client.HTTPSConnection)
        return self.do_open(kind, req)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: urllib would send the key on to wherever it leads."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects, _Http, _Https)


def post(url: str, body: bytes, key: str, timeout_seconds: float) -> Reply:
    """Send JSON, with a key unless that is empty; the key is nowhere in what this gives or raises.

    Raises NoReplyError where no whole reply came within the time.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    without_key = _hider(key)
    message = urllib.request.Request(url, body, headers, method="POST")
    try:
        try:
            with _OPENER.open(message, timeout=timeout_seconds) as reply:
                text = reply.read(MAX_REPLY_BYTES + 1)
                if reply.length and len(text) <= MAX_REPLY_BYTES:  # a part of the reply is no reply
                    raise http.client.IncompleteRead(text, reply.length)
                return Reply(reply.status, without_key(text), None, None)
        except urllib.error.HTTPError as error:
            with error:
                fields = (error.headers.get(name) for name in ("Location", "Retry-After"))
                location, retry_after = (
                    None if field is None else without_key(field.encode()).decode()
                    for field in fields
                )
                return Reply(error.code, without_key(_body(error)), location, retry_after)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        trouble = str(getattr(error, "reason", None) or error or type(error).__name__)
        raise NoReplyError(without_key(trouble.encode("utf-8", "replace")).decode()) from None


def _hider(key: str) -> Callable[[bytes], bytes]:
    """Takes a key out of bytes, also as JSON or a URL spells it, in which letters may be codes."""
    if len(key) < MIN_SECRET:  # "x", for servers that want any; not to be taken out of answers
        return lambda text: text
    spelled = "".join(
        rf"(?:\\?{re.escape(char)}|%(?i:{ord(char):02x})|\\u(?i:{ord(char):04x}))" for char in key
    )
    return functools.partial(re.compile(spelled.encode()).sub, HIDDEN.encode())


def _body(error: urllib.error.HTTPError) -> bytes:
    """The beginning of what came with an error; nothing where the connection breaks off."""
    try:
        return error.read(MAX_ERROR_BYTES)
    except (http.client.HTTPException, OSError):
        return b""
