"""hf:// paths through the real client, against a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY

API, FILES = "/api/datasets/me/corpus", "/datasets/me/corpus/resolve/main/"
# The client reads the hub's address when it is imported, so that it needs a process of its own.
SCRIPT = """
import json, sys
from mining.documents import FileReader, list_documents
from mining.remote import file_stamp
from mining.settings import CorpusSettings
corpus = CorpusSettings(path=sys.argv[1])
found = {}
for name, path in list_documents(corpus).items():
    ids = [record.id for record in FileReader(path, name, corpus)]
    found[name] = [path, file_stamp(path), ids]
print(json.dumps(found))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """The dataset me/corpus, of the files below `root`."""

    root: Path

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == API:
            self.answer(200, json.dumps({"id": "me/corpus", "sha": "a" * 40}).encode())
        elif path.startswith(f"{API}/tree/main"):
            folder = self.root / path.removeprefix(f"{API}/tree/main").lstrip("/")
            found = folder.rglob("*") if "recursive=true" in self.path else folder.glob("*")
            self.answer(200, json.dumps([self.entry(p) for p in sorted(found)]).encode())
        elif path.startswith(FILES):
            data = (self.root / path.removeprefix(FILES)).read_bytes()
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            place = f"bytes {first}-{last}/{len(data)}"
            self.answer(206, data[first : last + 1], {"Content-Range": place})
        else:
            self.answer(404, b"{}")

    def entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.root).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "b" * 40, "size": 0, "path": name}
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub whose dataset's files are those in tmp_path/hub."""
    handler = type("Here", (Hub,), {"root": tmp_path / "hub"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_dataset_on_the_hub_is_read_by_its_path(
    tmp_path: Path, hub: str, write_jsonl: Callable[[Path, Iterable[dict[str, Any]]], Path]
) -> None:
    data = tmp_path / "hub" / "data"
    write_jsonl(data / "a.jsonl.gz", [{"id": f"j{k}", "text": "t"} for k in range(3)])
    pq.write_table(pa.table({"id": ["p0", "p1"], "text": ["a", "b"]}), data / "b.parquet")
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\n---\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "hf://datasets/me/corpus"],
        env={**os.environ, "HF_ENDPOINT": hub, "PYTHONPATH": str(REPOSITORY),
             "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {name: ids for name, (_, _, ids) in found.items()} == {
        "data/a.jsonl.gz": ["j0", "j1", "j2"],
        "data/b.parquet": ["p0", "p1"],
    }
    for name, (path, stamp, _) in found.items():
        content = (tmp_path / "hub" / name).read_bytes()
        assert path == f"hf://datasets/me/corpus/{name}"
        assert stamp == [len(content), hashlib.sha1(content).hexdigest()]
