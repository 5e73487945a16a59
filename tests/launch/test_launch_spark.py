"""`pivots launch --on` a real standalone Spark cluster: a master and two workers on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.bench.spark_cluster import standalone_cluster
from launch.cli import main
from tests.conftest import REPOSITORY, folder_bytes
from tests.launch.test_launch import files_with, planted, write_profile

SMOKE = str(REPOSITORY / "configs" / "smoke" / "quickstart.yaml")


@pytest.mark.slow
@pytest.mark.spark
def test_spark_submit_on_a_standalone_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project comes out of its archive; the tables are those of this machine."""
    monkeypatch.chdir(tmp_path)
    secrets = planted(monkeypatch)
    common = ["--config", SMOKE, "--out", "run", "--world.pool_documents", "900"]
    for stage in ("world", "tokenizer", "tokenize", "count"):
        assert main([stage, *common, "--engine.workers", "1"]) == 0
    Path("run/count").rename("local-count")
    with standalone_cluster() as cluster:
        conf = {"spark.executor.memory": "512m"}
        engine = {"kind": "spark", "spark": {"master": cluster.master, "conf": conf}}
        profile = write_profile(tmp_path / "p.yaml", kind="spark", engine=engine)
        monkeypatch.delenv("PYTHONPATH", raising=False)
        assert main(["launch", "count", *common, "--on", profile]) == 0
    assert folder_bytes(Path("run/count")) == folder_bytes(Path("local-count"))
    (archive,) = Path("run/launch").glob("project-*.zip")
    # Kernels are compiled beside the code that runs.
    assert list(archive.with_suffix("").glob("mining/kernels/__pycache__/*.nbi"))
    assert files_with(tmp_path, secrets) == []
