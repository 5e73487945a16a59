"""Data flows right, imports go left: mining.common < mining < training < eval < launch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("mining.common", "mining", "training", "eval", "launch")
MODULES = sorted(
    path
    for name in ("mining", "training", "eval", "launch")
    for path in (ROOT / name).rglob("*.py")
)


def layer(module: str) -> int | None:
    """Index of a module's layer; None for modules of others."""
    if module == "mining.common" or module.startswith("mining.common."):
        return 0
    top = module.split(".")[0]
    return LAYERS.index(top) if top in LAYERS else None


def imported(path: Path) -> list[str]:
    """All modules that a file imports, wherever in the file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_left(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = layer(module)
    assert own is not None
    for name in imported(path):
        other = layer(name)
        assert other is None or other <= own, f"{module} imports {name}, which stands to its right"
        assert name != "eval", f"{module}: `import eval` hides the builtin"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_stay_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 500, f"{path.name} has {len(lines)} lines; split it by subject"
    if path.name == "__init__.py":
        assert not lines, f"{path} must stay empty"


def test_settings_and_command_line_are_light() -> None:
    """`--help` must answer within a second: no engine is imported for it."""
    heavy = ("torch", "transformers", "numba", "pyspark", "matplotlib", "datatrove", "pandas")
    code = f"import sys, launch.cli, launch.config; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
