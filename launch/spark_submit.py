"""A launch on Spark: the mining stages by spark-submit, the others on this machine.

The project travels as a zip file laid out like a wheel. Standalone clusters are what is tested; for
YARN and Kubernetes the same scripts are written, marked as untested, and not started.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import shlex
import zipfile
from importlib.util import find_spec
from pathlib import Path

from launch.local_chain import run_script, stage_scripts
from launch.scripts import ROOT, Site, stage_command
from launch.steps import TASK_STAGES, Step
from mining.common.errors import MissingDependencyError
from mining.common.manifest import code_version
from mining.spark_session import DEFAULTS, session_properties

PACKAGES = ("mining", "training", "eval", "launch")
DRIVER, ENVIRONMENT = "driver.py", "environment"
JAVA_OPTIONS = "spark.driver.extraJavaOptions"
UNTESTED = re.compile(r"yarn|k8s:")
UNTESTED_NOTES = [
    "# UNTESTED: written by the rules of spark-submit, but never run on YARN or Kubernetes. Input,",
    "# output and this folder must be on a file system that driver and workers share.",
]
# spark-submit starts this file. Code inside a zip file cannot be read as files, so it is unpacked,
# once: compiled kernels are cached beside it. The driver of a cluster starts somewhere else.
DRIVER_TEXT = '''\
"""What spark-submit starts: `pivots` from the project's archive. Written by `pivots launch`."""

import os
import sys
import tempfile
import zipfile

archive = next(path for path in sys.path if os.path.basename(path) == {archive!r})
folder = archive.removesuffix(".zip")
if not os.path.isdir(folder):
    aside = tempfile.mkdtemp(dir=os.path.dirname(archive))
    zipfile.ZipFile(archive).extractall(aside)
    os.rename(aside, folder)
sys.path.insert(0, folder)
if os.path.isdir({directory!r}):
    os.chdir({directory!r})

from launch.cli import main

sys.exit(main(sys.argv[1:]))
'''


def is_untested(site: Site) -> bool:
    """Whether the master is of a kind that nobody has tried."""
    return UNTESTED.match(site.profile.engine.spark.master or "") is not None


def spark_scripts(steps: list[Step], site: Site, archive: str) -> dict[str, str]:
    """File name -> content of all that a launch on Spark needs beside the project's `archive`."""
    notes = UNTESTED_NOTES if is_untested(site) else []
    driver = DRIVER_TEXT.format(archive=archive, directory=str(site.directory))
    return {
        **stage_scripts(steps, site, functools.partial(_stage_lines, archive=archive)),
        DRIVER: driver,
        "run.sh": run_script(steps, site, notes),
    }


def _stage_lines(step: Step, site: Site, archive: str) -> list[str]:
    if step.stage not in TASK_STAGES:
        return [f"exec {stage_command(step, site)}"]
    profile, submit = site.profile, site.profile.spark
    properties = session_properties(profile.engine)
    master = properties.pop("spark.master")
    python = submit.python or site.python
    archives = []
    if submit.archive is not None:
        python = submit.python or f"./{ENVIRONMENT}/bin/python"
        archives = ["--archives", f"{submit.archive}#{ENVIRONMENT}"]
    driver = site.python
    if submit.deploy_mode == "cluster":
        driver = python
        if properties.get(JAVA_OPTIONS) == DEFAULTS[JAVA_OPTIONS]:
            del properties[JAVA_OPTIONS]  # names a file that the driver's machine may not have
    properties |= {"spark.pyspark.python": python, "spark.pyspark.driver.python": driver}
    options = ["--master", master, "--deploy-mode", submit.deploy_mode]
    options += ["--name", f"pivots-{step.stage}", *archives]
    options += ["--py-files", str(site.folder / archive)]
    lines = [
        *(UNTESTED_NOTES if is_untested(site) else []),
        "# The project comes from its archive, as on the workers.",
        "unset PYTHONPATH",
        f"exec {shlex.join([_command(site), *options])} \\",
    ]
    lines += [f"  --conf {shlex.quote(f'{k}={v}')} \\" for k, v in sorted(properties.items())]
    arguments = [str(site.folder / DRIVER), step.stage, "--config", str(site.config), *site.flags]
    return [*lines, f"  {shlex.join(arguments)}"]


def _command(site: Site) -> str:
    if site.profile.spark.command is not None:
        return site.profile.spark.command
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "profile of kind spark: pyspark is not installed; pip install "
            "'semantic-pivots[spark]', or name your own in spark.command"
        )
    return str(Path(spec.origin).parent / "bin" / "spark-submit")


def pack_project() -> tuple[str, bytes]:
    """A name with its hash, and the project as a zip file with the layout of a wheel."""
    name = f"semantic_pivots-{code_version()}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: semantic-pivots\nVersion: {code_version()}\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _files():
            archive.writestr(_entry(path.relative_to(ROOT).as_posix()), path.read_bytes())
        archive.writestr(_entry(f"{name}/METADATA"), metadata)
    data = packed.getvalue()
    return f"project-{hashlib.sha256(data).hexdigest()[:12]}.zip", data


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980: no time of the file in it
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _files() -> list[Path]:
    return [
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
