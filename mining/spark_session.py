"""The one Spark session of a process, started when the first stage needs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mining.common.errors import MissingDependencyError, SettingsError
from mining.engine_settings import EngineSettings

APP_NAME = "pivots"
NEEDED_JAVA = 17
VECTOR_MODULE = "jdk.incubator.vector"
# Where this stands among a session's properties, it was started here, with these settings.
MARK = "spark.pivots.settings"
LOGGING = Path(__file__).with_name("spark-log4j2.properties")
# Ours only where nobody says otherwise.
DEFAULTS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={LOGGING.as_uri()}",
}
# On one machine Spark gives a job up with its first failed task; here, as on a cluster, a worker
# that is killed (where memory runs short, say) is made up for.
LOCAL_MASTER = re.compile(r"^local(?:\[([^,\]]+)\])?$")
TASK_FAILURES = 4
LOOPBACK = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
# Rows that go to Python at once. Ours hold up to some MiB each, Spark's default is 10,000 rows.
BATCH_ROWS = ("spark.sql.execution.arrow.maxRecordsPerBatch", "16")


def spark_session(engine: EngineSettings) -> Any:
    """The session with an engine's settings; a running one that we did not start is taken as it is.

    Raises MissingDependencyError where pyspark or a fitting Java is missing.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise MissingDependencyError(
            "engine.kind spark: pyspark is not installed; pip install 'semantic-pivots[spark]'"
        ) from None

    properties = session_properties(engine)
    mark = json.dumps(properties, sort_keys=True)
    session = SparkSession.getActiveSession()
    if session is not None and session.sparkContext.getConf().get(MARK, mark) != mark:
        session.stop()
        session = None
    if session is None:
        session = _start(properties, mark)
    if session.sparkContext.getConf().get("spark.speculation", "false") == "true":
        raise SettingsError(
            "spark.speculation: found true, expected false; a task's second copy would write the "
            "same files at the same time"
        )
    session.conf.set(*BATCH_ROWS)
    return session


def parallelism(engine: EngineSettings) -> int:
    """How many tasks the session's executors can run at the same time."""
    session = spark_session(engine)
    session.range(1).count()  # on a cluster the executors come with the first job
    return int(session.sparkContext.defaultParallelism)


def session_properties(engine: EngineSettings) -> dict[str, str]:
    """The Spark properties of an engine's session, name -> value."""
    settings = engine.spark
    found: dict[str, str] = {}
    master = settings.master
    if master is None and not _submitted():
        master = f"local[{engine.workers or '*'}]"
    if master is not None:
        if local := LOCAL_MASTER.match(master):
            master = f"local[{local[1] or 1}, {TASK_FAILURES}]"
        found |= DEFAULTS | {"spark.master": master}
        if re.match(r"local\b|spark://(127\.0\.0\.1|localhost):", master):
            found |= LOOPBACK
        if master.startswith("spark:") and engine.workers is not None:
            found["spark.cores.max"] = str(engine.workers)
    return found | settings.conf


def _submitted() -> bool:
    """Whether spark-submit started this process, and with it the JVM."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _start(properties: dict[str, str], mark: str) -> Any:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    if not _submitted():
        check_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = SparkConf().setAppName(APP_NAME).setAll(list(properties.items())).set(MARK, mark)
    return SparkSession.builder.config(conf=conf).getOrCreate()


def check_java() -> None:
    """Raise MissingDependencyError where Spark would find no Java that it can run on."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    wanted = (
        f"Spark needs a full Java {NEEDED_JAVA} or newer: install one (Debian: "
        f"openjdk-{NEEDED_JAVA}-jre-headless) and set JAVA_HOME if it is not the first in PATH"
    )
    if java is None or not Path(java).is_file():
        raise MissingDependencyError(f"{java or 'java'}: not found. {wanted}")
    done = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False)
    version = re.search(r"^java\.base@(\d+)", done.stdout, re.MULTILINE)
    if version is None or int(version[1]) < NEEDED_JAVA:
        found = f"Java {version[1]}" if version else "an older Java"
        raise MissingDependencyError(f"{java}: {found}. {wanted}")
    if VECTOR_MODULE not in done.stdout:
        raise MissingDependencyError(f"{java}: lacks the module {VECTOR_MODULE}. {wanted}")
