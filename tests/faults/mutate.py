"""Good records and files, and what accidents and attackers make of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable

import zstandard

WORDS = ("the", "cat", "sat", "chien", "maison", "東京", "写真", "猫", "été", "a\u0301", "🎈", "x")
Change = Callable[[random.Random, bytes], bytes]


def good_record(draw: random.Random, number: int) -> bytes:
    """One line of JSON without its end, as a corpus has them."""
    record = {
        "id": f"d{number}",
        "text": " ".join(draw.choices(WORDS, k=draw.randrange(1, 30))) + f" {number}",
        "lang": draw.choice(("en", "fr", "ja")),
        "source": draw.choice(("web", "books")),
    }
    if draw.random() < 0.1:
        del record["lang"]
    return json.dumps(record, ensure_ascii=draw.random() < 0.3).encode()


def _flip(draw: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        if out:
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _double(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start : start + draw.randrange(40)] + data[start:]


def _drop(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.randrange(1, 9) :]


def _noise(draw: random.Random, data: bytes) -> bytes:
    return draw.randbytes(draw.randrange(60))


SPLINTERS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\r", b"\n",
    b"\x85", b"\xe2\x80\xa8", b'"', b"{", b"}}", b"[[[[", b"\\", b",", b"1e999", b"NaN", b"null",
    b"/*", b"\x1a",
    "é".encode("latin-1"), "日本".encode("shift_jis"), "text".encode("utf-16"),
)  # fmt: skip


def _splinter(draw: random.Random, data: bytes) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice(SPLINTERS) + data[place:]


VALUES = (
    None, True, 5, -1, 1.5, 1 << 70, "", " ", "\0", "../../x", "/etc/passwd", "a" * 5000, [], {},
    ["x"], {"text": "x"}, "en\n", "x/y",
)  # fmt: skip


def _value(draw: random.Random, data: bytes) -> bytes:
    record = json.loads(data)
    name = draw.choice(("id", "text", "lang", "source", "metadata"))
    if draw.random() < 0.2:
        record.pop(name, None)
    else:
        record[name] = draw.choice(VALUES)
    return json.dumps(record).encode()


def _deep(draw: random.Random, data: bytes) -> bytes:
    depth = draw.choice((50, 1023, 1025, 4000))
    return b'{"id": "deep", "text": ' + b"[" * depth + b"]" * depth + b"}"


def _again(draw: random.Random, data: bytes) -> bytes:
    return good_record(draw, draw.randrange(20))


RECORD_CHANGES: tuple[Change, ...] = (
    _flip, _cut, _double, _drop, _noise, _splinter, _splinter, _value, _value, _deep, _again,
)  # fmt: skip
BYTE_CHANGES: tuple[Change, ...] = (_flip, _cut, _double, _drop, _splinter)


def bad_record(draw: random.Random, number: int) -> bytes:
    """A good record after one accident; it may still be a good one, or be two."""
    return draw.choice(RECORD_CHANGES)(draw, good_record(draw, number))


def bad_bytes(draw: random.Random, data: bytes) -> bytes:
    """A file's bytes after one to three accidents."""
    for _ in range(draw.randrange(1, 4)):
        data = draw.choice(BYTE_CHANGES)(draw, data)
    return data


def packed(data: bytes, suffix: str, members: int = 1) -> bytes:
    """`data` in the compression of a suffix, as some members one after another."""
    step = max(1, -(-len(data) // members))
    parts = [data[start : start + step] for start in range(0, len(data), step)] or [b""]
    if suffix.endswith(".gz"):
        return b"".join(gzip.compress(part, 1, mtime=0) for part in parts)
    if suffix.endswith(".zst"):
        return b"".join(zstandard.compress(part, 1) for part in parts)
    return data
