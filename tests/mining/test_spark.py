"""The Spark engine: the bytes of the local one, also where workers or the driver are killed."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.bench.self_joins import spark_self_join
from launch.bench.spark_cluster import standalone_cluster
from launch.cli import main
from mining import spark_count, spark_worker
from mining.common.errors import InputError, MissingDependencyError, SettingsError, TaskError
from mining.count import run_count
from mining.engine_settings import EngineSettings, SparkSettings
from mining.kernels.cooccurrence import bands, index_block, pair_counts
from mining.settings import CountSettings
from mining.spark import Site, open_site
from mining.spark_count import CHUNKS, add_packed, pack
from mining.spark_session import MARK, check_java, session_properties, spark_session
from mining.tasks import missing_tasks, run_tasks
from tests.conftest import REPOSITORY, folder_bytes
from tests.mining.test_count import make_shards, make_tokenizer, output_bytes, random_documents

ONE = EngineSettings(workers=1)
# Two threads; a task that fails is tried four times, as on a cluster.
LOCAL = EngineSettings(kind="spark", spark=SparkSettings(master="local[2, 4]"))
CONFIG = REPOSITORY / "configs" / "smoke" / "quickstart.yaml"
MAP_TASKS = 16


def on(master: str) -> EngineSettings:
    conf = {"spark.executor.memory": "512m"}
    return EngineSettings(kind="spark", spark=SparkSettings(master=master, conf=conf))


@pytest.fixture(scope="module")
def stop_spark() -> Iterator[None]:
    yield
    from pyspark.sql import SparkSession

    if (session := SparkSession.getActiveSession()) is not None:
        session.stop()


pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("stop_spark")]


class Corpus:
    """Token shards in as many pieces as there are map tasks, and the local engine's counts."""

    def __init__(self, root: Path) -> None:
        self.tokenizer = make_tokenizer(root / "tokenizer", 6000)
        documents = random_documents(4000, 6000, 0.2)
        self.tokens = make_shards(root / "tokenize", documents, self.tokenizer, MAP_TASKS)
        self.settings = CountSettings(top_items=5000, map_tasks=MAP_TASKS)
        self.count(root / "local", ONE)
        self.expected = output_bytes(root / "local")

    def count(self, out: Path, engine: EngineSettings) -> None:
        run_count(self.settings, out, self.tokens, self.tokenizer, engine)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
def test_a_cluster_loses_a_driver_and_then_a_worker(corpus: Corpus, tmp_path: Path) -> None:
    """SIGKILL to both in turn, while pairs are counted: the bytes of an unbroken run."""
    with standalone_cluster() as cluster:
        kill_driver(corpus, tmp_path / "driver", cluster.master)
        engine = on(cluster.master)
        corpus.count(tmp_path / "driver", engine)
        assert output_bytes(tmp_path / "driver") == corpus.expected

        tracker = spark_session(engine).sparkContext.statusTracker()
        seen: list[Any] = []

        def kill() -> None:
            stage = wait_for_stage(tracker, tmp_path / "worker")
            cluster.kill_worker(0)
            seen.extend([stage, (tmp_path / "worker" / "manifest.json").exists()])

        killer = threading.Thread(target=kill)
        killer.start()
        corpus.count(tmp_path / "worker", engine)
        killer.join()
        at_kill, finished = seen
        assert 1 <= at_kill.numCompletedTasks < at_kill.numTasks == MAP_TASKS
        assert not finished
        after = tracker.getStageInfo(at_kill.stageId)
        # Either the task that it was at, or one that it had done and not handed on.
        assert after.numFailedTasks or after.currentAttemptId > at_kill.currentAttemptId
        assert cluster.workers[0].returncode == -signal.SIGKILL
        assert cluster.workers[1].poll() is None
        assert output_bytes(tmp_path / "worker") == corpus.expected


def wait_for_stage(tracker: Any, out: Path) -> Any:
    """The stage that counts pairs, as soon as the first of its tasks is done."""
    limit = time.monotonic() + 300
    before: set[int] = set()
    while time.monotonic() < limit:
        stages = [tracker.getStageInfo(number) for number in tracker.getActiveStageIds()]
        if not (out / ".work" / "bands").is_dir():
            before.update(stage.stageId for stage in stages if stage is not None)
        for stage in stages:
            if stage is not None and stage.stageId not in before and stage.numCompletedTasks:
                return stage
        time.sleep(0.005)
    raise AssertionError("no task of the pairs finished")


def kill_driver(corpus: Corpus, out: Path, master: str) -> None:
    """Count under spark-submit, which says what the master is; SIGKILL once pairs are counted."""
    import pyspark

    script = out.with_suffix(".py")
    script.write_text(
        "from pathlib import Path\n"
        "from mining.count import run_count\n"
        "from mining.engine_settings import EngineSettings\n"
        "from mining.settings import CountSettings\n"
        f"paths = [Path(p) for p in {[str(out), str(corpus.tokens), str(corpus.tokenizer)]!r}]\n"
        f"settings = CountSettings(top_items=5000, map_tasks={MAP_TASKS})\n"
        "run_count(settings, *paths, EngineSettings(kind='spark'))\n"
    )
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    options = ["--master", master, "--conf", "spark.executor.memory=512m"]
    for name in ("host", "bindAddress"):
        options += ["--conf", f"spark.driver.{name}=127.0.0.1"]
    python = {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [str(submit), *options, str(script)], stdout=log, stderr=log, start_new_session=True,
            env=os.environ | python,
        )  # fmt: skip
    limit = time.monotonic() + 300
    while not list((out / ".work" / "bands" / "completions").glob("*")):
        assert process.poll() is None, out.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < limit
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(list((out / "pairs").glob("[0-9]*"))) < len(bands(5000))


@pytest.mark.slow
def test_every_stage_gives_the_bytes_of_the_local_engine(tmp_path: Path) -> None:
    spark = ["--engine.kind", "spark", "--engine.spark.master", "local[2, 4]"]
    counts = [
        ["--count.unit", unit, *context]
        for unit in ("token", "word")
        for context in (
            ["--count.context", "document"],
            ["--count.context", "sequence", "--count.sequence_length", "7"],
            ["--count.context", "window", "--count.window", "3"],
        )
    ]
    common = ["--config", str(CONFIG), "--world.pool_documents", "900"]
    common += ["--tokenize.near_duplicates", "true", "--pivots.stability", "true"]
    for name, engine in (("local", ["--engine.workers", "1"]), ("spark", spark)):
        out = tmp_path / name
        if name == "spark":
            for stage in ("world", "tokenizer"):
                shutil.copytree(tmp_path / "local" / stage, out / stage)
        common_here = [*common, "--out", str(out), *engine]
        first = ("world", "tokenizer") if name == "local" else ()
        for stage in (*first, "tokenize", "words"):
            assert main([stage, *common_here]) == 0
        for number, count in enumerate(counts):
            assert main(["count", *common_here, *count]) == 0
            (out / "count").rename(out / f"count-{number}")
        for stage in ("count", "pivots", "score"):
            assert main([stage, *common_here]) == 0
    local, spark_made = (folder_bytes(tmp_path / name) for name in ("local", "spark"))
    assert local.keys() == spark_made.keys()
    for path, data in local.items():
        assert spark_made[path] == data, path
    assert len([path for path in local if path.startswith("count-0/pairs/")]) == 1


def log_attempts(folder: Path, error: Exception | None) -> Any:
    """A task, shipped as code, that notes each attempt; the third raises `error`."""

    def task(rank: int, world: int) -> None:
        with (folder / f"{rank}-of-{world}").open("a") as handle:
            handle.write(f"{os.environ.get('NUMBA_NUM_THREADS')}\n")
        if rank == 2 and error is not None:
            raise error

    return task


def attempts(folder: Path) -> dict[str, int]:
    return {path.name: path.read_text().count("\n") for path in folder.glob("*-of-*")}


def test_errors_of_users_are_not_tried_again(tmp_path: Path) -> None:
    """A PivotsError comes as itself, at once; the markers of what was done stay for a rerun."""
    error = SettingsError("windows do not fit", CountSettings, "window")
    with pytest.raises(SettingsError, match=r"^windows do not fit$") as raised:
        run_tasks("test", log_attempts(tmp_path, error), 5, tmp_path / "tasks", LOCAL)
    assert (raised.value.exit_code, raised.value.key) == (2, "window")
    assert raised.value.settings_type is CountSettings
    assert attempts(tmp_path)["2-of-5"] == 1
    markers = {path.name for path in (tmp_path / "tasks" / "completions").iterdir()}
    assert "00002" not in markers
    run_tasks("test", log_attempts(tmp_path, None), 5, tmp_path / "tasks", LOCAL)
    found = attempts(tmp_path)
    assert found == {f"{k}-of-5": 2 if k == 2 else 1 for k in range(5)}
    assert (tmp_path / "1-of-5").read_text() == "1\n"  # one thread a task
    assert len(list((tmp_path / "tasks" / "completions").iterdir())) == 5


def test_bugs_are_tried_again_and_shown_without_java(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as raised:
        run_tasks("test", log_attempts(tmp_path, TypeError("a bug")), 3, tmp_path / "t", LOCAL)
    assert str(raised.value).startswith("test: a task failed on Spark\nTraceback")
    assert str(raised.value).endswith("TypeError: a bug")
    assert "java" not in str(raised.value)
    assert attempts(tmp_path)["2-of-3"] == 4


def test_a_run_begun_by_one_engine_is_finished_by_the_other(tmp_path: Path) -> None:
    error = InputError("half-way")
    for first, second in ((ONE, LOCAL), (LOCAL, ONE)):
        folder = tmp_path / first.kind
        folder.mkdir()
        with pytest.raises(InputError, match="half-way"):
            run_tasks("test", log_attempts(folder, error), 3, folder / "tasks", first)
        run_tasks("test", log_attempts(folder, None), 3, folder / "tasks", second)
        assert attempts(folder) == {"0-of-3": 1, "1-of-3": 1, "2-of-3": 2}


def test_errors_of_a_count(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 60)
    bad = make_shards(tmp_path / "bad", [("en", "web", [99])], tokenizer, 1)
    with pytest.raises(InputError, match="id 99"):
        run_count(CountSettings(), tmp_path / "out", bad, tokenizer, LOCAL)


def test_relative_paths_start_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python workers of Spark start elsewhere, and stay when the next command comes."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        run_tasks("test", log_attempts(Path(), None), 2, Path("tasks"), LOCAL)
        assert attempts(tmp_path / name) == {"0-of-2": 1, "1-of-2": 1}


def test_the_self_join_counts_like_the_kernel(stop_spark: None) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.permutation(12)[: rng.integers(0, 9)] for _ in range(40)]
    items = np.concatenate(documents).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])]).astype(np.int64)
    expected = pair_counts([index_block(items, offsets, 12)], 0, 12, 12)
    found = spark_self_join(items, offsets, spark_session(LOCAL))
    assert np.array_equal(np.stack(found[:2]), np.stack(np.nonzero(expected)))
    assert np.array_equal(found.n, expected[found.i, found.j])


def test_one_session_a_process(stop_spark: None) -> None:
    session = spark_session(LOCAL)
    assert spark_session(LOCAL).sparkContext is session.sparkContext
    assert session.sparkContext.getConf().get("spark.ui.enabled") == "false"
    assert LOCAL.worker_count() == 2
    risky = SparkSettings(master="local[1]", conf={"spark.speculation": "true"})
    with pytest.raises(SettingsError, match="speculation"):
        spark_session(EngineSettings(kind="spark", spark=risky))


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 300), min_size=1, max_size=40),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_packed_counts_add_up(values: list[int], chunk_cells: int, times: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_count, "CHUNK_CELLS", chunk_cells)
        counts = np.array([values, values[::-1]], dtype=np.uint32)
        total = np.zeros(counts.shape, dtype=np.uint64)
        for _ in range(times):
            for start, chunk in pack(counts):
                add_packed(start, chunk, total)
    assert np.array_equal(total, counts.astype(np.uint64) * np.uint64(times))


def test_no_band_is_written_of_fewer_tasks(tmp_path: Path) -> None:
    """Where a task failed every band hears of it, and the error goes on to the driver."""
    site = open_site(tmp_path / "bands")
    counts = np.arange(4, dtype=np.uint32).reshape(2, 2)

    def work(fails: bool) -> Iterator[pa.RecordBatch]:
        for start, chunk in pack(counts):
            row = {"place": 0, "start": start, "counts": chunk}
            yield pa.RecordBatch.from_pylist([row], schema=CHUNKS)
        if fails:
            raise InputError("gone")

    add = functools.partial(
        spark_count._add_up, n_items=2, n_tasks=2, wanted=(0,), out=tmp_path / "pairs", site=site
    )
    good = list(site.attempt(0, work(False), CHUNKS, 3))
    failed = list(site.attempt(1, work(True), CHUNKS, 3))
    assert failed[-1].column("place").to_pylist() == [0, 1, 2]
    errors = [e for batch in add(iter(good + failed)) for e in batch.column("error").to_pylist()]
    assert len(errors) == 3
    # The others stop now, and say so too; the one that failed is tried again.
    stopped = list(site.attempt(0, work(False), CHUNKS, 3))
    assert [batch.column("error").to_pylist() for batch in stopped] == [[b"", b"", b""]]
    assert len(list(site.attempt(1, work(False), CHUNKS, 3))) == len(good)
    with pytest.raises(RuntimeError, match="1 chunks came of 2 tasks"):
        list(add(iter(good)))
    assert not (tmp_path / "pairs").exists()
    assert not list(add(iter(good + good)))
    assert (tmp_path / "pairs" / "00000.parquet").exists()
    assert missing_tasks(site.folder, 2) == (1,)


def test_a_folder_that_executors_do_not_see(tmp_path: Path) -> None:
    site = Site(tmp_path / "gone", tmp_path)
    (row,) = site.attempt(0, iter(()), CHUNKS)
    with pytest.raises(InputError, match="file system that all machines share"):
        raise spark_worker.pickle.loads(row.column("error")[0].as_py())


def test_executors_without_the_code_unpack_it(tmp_path: Path) -> None:
    """In a process of its own; a machine with other code under the same path does so, too."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(spark_worker)
    digest, archive = spark_worker.pack_code(REPOSITORY)
    (tmp_path / "old" / "mining").mkdir(parents=True)
    (tmp_path / "old" / "mining" / "__init__.py").write_text("")

    def where(batches: Iterator[Any]) -> Iterator[Any]:
        from mining.kernels import lift

        yield lift.__file__

    for number, root in enumerate((tmp_path / "old", tmp_path / "none", REPOSITORY)):
        run = spark_worker.shipped(cloudpickle.dumps(where), str(root), digest, archive)
        (tmp_path / "run.pickle").write_bytes(cloudpickle.dumps(run))
        local = tmp_path / f"local-{number // 2}"
        local.mkdir(exist_ok=True)
        code = "import pickle; print(*pickle.load(open('run.pickle', 'rb'))(iter(())))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"SPARK_LOCAL_DIRS": f"{local},/nowhere", "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        home = REPOSITORY if root == REPOSITORY else local / f"pivots-{digest}"
        assert done.stdout.strip() == str(home / "mining" / "kernels" / "lift.py")


def test_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)

    def master(workers: int | None = None, given: str | None = None) -> str:
        settings = EngineSettings("spark", workers, spark=SparkSettings(master=given))
        return session_properties(settings)["spark.master"]

    # With Spark's number of tries on a cluster, which it does not take on one machine by itself.
    assert master() == "local[*, 4]"
    assert master(3) == "local[3, 4]"
    assert master(given="local[2]") == "local[2, 4]"
    assert master(given="local[2, 1]") == "local[2, 1]"
    assert master(given="local") == "local[1, 4]"
    given = SparkSettings("spark://head:7077", {"spark.ui.enabled": "true"})
    found = session_properties(EngineSettings("spark", 3, spark=given))
    assert (found["spark.cores.max"], found["spark.ui.enabled"]) == ("3", "true")
    assert "spark.driver.host" not in found
    assert session_properties(on("spark://127.0.0.1:1"))["spark.driver.host"] == "127.0.0.1"
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert session_properties(EngineSettings("spark")) == {}
    assert MARK not in found


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        (None, "not found"),
        ("Unrecognized option: --list-modules", "an older Java"),
        ("java.base@11.0.2", "Java 11"),
        ("java.base@17.0.1", "lacks the module jdk.incubator.vector"),
    ],
)
def test_java_that_spark_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: str | None, reason: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    if modules is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\necho {modules}\n")
        (tmp_path / "bin" / "java").chmod(0o755)
    with pytest.raises(MissingDependencyError, match=f"{reason}.*Java 17 or newer"):
        check_java()


def test_without_pyspark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(MissingDependencyError, match=r"semantic-pivots\[spark\]"):
        spark_session(LOCAL)
