"""No code from data: what could run somebody else's, and each place where it is needed."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mining", "training", "eval", "launch")
# Calls by their last two names (or last one), and the modules in which each is justified.
FORBIDDEN: dict[str, dict[str, str]] = {
    # Between processes of one run, through its own work folder or Spark's own channel.
    "pickle.loads": {
        "mining/slurm.py": "errors of our own jobs, in a folder emptied before they start",
        "mining/spark.py": "errors of our own tasks, from our executors",
        "mining/spark_worker.py": "our own driver's code, on its executors",
        "mining/workers.py": "an exception of this process, to see whether it can be sent",
    },
    "pickle.load": {},
    "dill.load": {},
    "dill.loads": {},
    "joblib.load": {},
    "marshal.loads": {},
    "shelve.open": {},
    "torch.load": {},
    "pd.read_pickle": {},
    "yaml.load": {},
    "yaml.load_all": {},
    "yaml.full_load": {},
    "yaml.unsafe_load": {},
    # Instead: mining.common.yaml_files.read_yaml, which knows bombs.
    "yaml.safe_load": {"launch/bench/training.py": "the repository's own configurations"},
    "eval": {},
    "exec": {},
    "compile": {},
    "__import__": {},
    "os.system": {},
    "os.popen": {},
    "tempfile.mktemp": {},
    "shutil.unpack_archive": {},
    # Its members may lead out of the folder.
    "extractall": {"mining/spark_worker.py": "the archive that our own driver packed"},
    # Names in the folder that all users share; what is made there is made by mkdtemp or
    # TemporaryDirectory, whose folders are open to their owner only.
    "tempfile.gettempdir": {},
    "tempfile.gettempprefix": {},
    "tempfile.mkstemp": {},
    "tempfile.NamedTemporaryFile": {},
    "tempfile.TemporaryFile": {},
    "ET.parse": {},
    "minidom.parse": {},
}


@functools.cache
def calls() -> list[tuple[str, ast.Call]]:
    """Every call of the packages, with its file."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            found += [(name, node) for node in calls_of(path.read_text("utf-8"))]
    return found


class Aliases(ast.NodeTransformer):
    """Puts what a name was imported as in the place of the name."""

    def __init__(self, tree: ast.AST) -> None:
        self.names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.names |= {one.asname: one.name for one in node.names if one.asname}
            elif isinstance(node, ast.ImportFrom):
                for one in node.names:
                    self.names[one.asname or one.name] = f"{node.module}.{one.name}"

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.names:
            return node
        return ast.copy_location(ast.parse(self.names[node.id], mode="eval").body, node)


def calls_of(text: str) -> list[ast.Call]:
    """The calls of a file; `f()` after `from pickle import loads as f` is one of `pickle.loads`."""
    tree = ast.parse(text)
    aliases = Aliases(tree)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in found:
        node.func = aliases.visit(node.func)
    return found


# As the lists above call them.
SHORT = {"numpy": "np", "pandas": "pd", "parquet": "pq", "ElementTree": "ET"}


def name_of(function: ast.expr) -> tuple[str, str]:
    """A called function as `a.b` and `b`."""
    if isinstance(function, ast.Attribute):
        last = function.attr
        before = function.value
        first = before.id if isinstance(before, ast.Name) else getattr(before, "attr", "")
        return f"{SHORT.get(first, first)}.{last}", last
    return (function.id, function.id) if isinstance(function, ast.Name) else ("", "")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import pickle\npickle.loads(x)", "pickle.loads"),
        ("import pickle as p\np.loads(x)", "pickle.loads"),
        ("from pickle import loads\nloads(x)", "pickle.loads"),
        ("from torch import load as read\nread(x)", "torch.load"),
        ("import numpy\nnumpy.load(x)", "np.load"),
        ("from pyarrow import parquet\nparquet.read_table(x)", "pq.read_table"),
        ("import pyarrow.parquet as q\nq.read_table(x)", "pq.read_table"),
        ("from os import system as run\nrun(x)", "os.system"),
    ],
)
def test_a_function_is_found_under_any_name(text: str, name: str) -> None:
    assert [name_of(call.func)[0] for call in calls_of(text)] == [name]


def test_what_runs_code_from_data_is_called_only_where_it_is_justified() -> None:
    found: dict[str, set[str]] = {name: set() for name in FORBIDDEN}
    for file, node in calls():
        whole, last = name_of(node.func)
        # `model.eval()` and `re.compile()` are other functions.
        bare = last if isinstance(node.func, ast.Name) or last == "extractall" else ""
        for name in {whole, bare} & set(FORBIDDEN):
            found[name].add(file)
    assert {name: set(places) for name, places in FORBIDDEN.items()} == found


def test_no_file_lies_at_a_fixed_place_that_others_can_write_to() -> None:
    """Another user could put something there first, and would be followed."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    shared = re.search(r"(?<![\w.])/(tmp|var/tmp|dev/shm)\b", node.value)
                    assert not shared, (path, node.lineno)


@pytest.mark.parametrize(
    ("keyword", "allowed"),
    [("shell", ()), ("trust_remote_code", (False,)), ("allow_pickle", (False,)),
     ("weights_only", (True,)), ("verify", (True,))],
)  # fmt: skip
def test_arguments_that_open_a_door_are_never_set(keyword: str, allowed: tuple[bool, ...]) -> None:
    for file, node in calls():
        for given in node.keywords:
            if given.arg == keyword:
                assert isinstance(given.value, ast.Constant), (file, given.value.lineno)
                assert given.value.value in allowed, (file, given.value.lineno)


def test_every_array_and_checkpoint_is_loaded_without_code() -> None:
    """np.load says allow_pickle=False, from_pretrained trust_remote_code=False."""
    needed = {
        "np.load": "allow_pickle",
        "AutoModelForCausalLM.from_pretrained": "trust_remote_code",
    }
    seen = 0
    for file, node in calls():
        if keyword := needed.get(name_of(node.func)[0]):
            seen += 1
            assert keyword in {given.arg for given in node.keywords}, (file, node.lineno)
    assert seen >= 10


def test_tables_are_read_where_their_checksums_are() -> None:
    """A damaged table is named (mining.common.shards.read_columns, open_table)."""
    readers = {"pq.read_table", "pq.ParquetFile", "pd.read_parquet"}
    found = {file for file, node in calls() if name_of(node.func)[0] in readers}
    assert found == {
        "mining/common/shards.py",
        "mining/row_files.py",  # other people's files, with the same checks
        "eval/loss_store.py",  # files that are named by their hash
        "launch/bench/count_stage.py",
    }
