"""What the repository says about itself is true and consistent."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_pinned() -> None:
    pins = {
        re.split(r"[=]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in wanted:
        name = re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")
        assert name == "semantic-pivots" or name in pins, f"{name} is not in constraints.txt"


def test_package_list_is_complete() -> None:
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("mining", "training", "eval", "launch")
        for path in (ROOT / top).rglob("__init__.py")
    }
    configs = {path.parent for path in (ROOT / "configs").rglob("*") if path.is_file()}
    found |= {path.relative_to(ROOT).as_posix().replace("/", ".") for path in configs}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_readme_names_files_and_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:configs|docs|launch|eval|mining|training)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_a_wheel_brings_the_profiles(tmp_path: Path) -> None:
    """Installed elsewhere than in the repository, `--on slurm` finds what is shipped."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("mining", "training", "eval", "launch", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    shutil.rmtree(source)
    elsewhere.mkdir()
    (elsewhere / "my.yaml").write_text("out: runs/mine\n")
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "launch", "my.yaml", "--on", "slurm", "--dry_run"],
        cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(installed) in (elsewhere / "runs/mine/launch/03-tokenize.sh").read_text()
    kept = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.*")}
    assert {path.relative_to(installed) for path in (installed / "configs").rglob("*.*")} == kept
