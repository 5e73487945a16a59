"""Where the mining stages' tasks run: settings that change no result and stand in no manifest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal

from mining.common.errors import SettingsError, check_setting

# Spark's own default of what it hides (spark.redaction.regex, "Configuration" of its manual), and
# the keys of Azure's stores.
SPARK_SECRET = re.compile(r"secret|password|token|access[.]?key|account[.]key", re.IGNORECASE)
OWN_OPTIONS = {"array", "dependency", "error", "export", "nodes", "output"}  # set by the engine


@dataclass(frozen=True)
class SlurmSettings:
    """How tasks are submitted to Slurm, as an array of one job each.

    Attributes:
        partition: partition to submit to; null takes the cluster's default.
        time: wall-clock limit of a task, as sbatch writes it (4:00:00).
        cpus_per_task: cores of a task.
        mem_per_cpu_gb: memory of each core, in GB.
        options: further sbatch options, name -> value ({"account": "nlp", "exclusive": ""}).
        setup: shell command that each task runs first (module load ...); the tasks' Python is the
            one that runs this command.
    """

    partition: str | None = None
    time: str = "4:00:00"
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    options: dict[str, str] = field(default_factory=dict)
    setup: str | None = None

    def __post_init__(self) -> None:
        check_setting(self, "time", bool(self.time), "a time limit such as 4:00:00")
        check_setting(self, "cpus_per_task", self.cpus_per_task >= 1, "at least 1")
        check_setting(self, "mem_per_cpu_gb", self.mem_per_cpu_gb >= 1, "at least 1")
        check_setting(
            self, "options", not OWN_OPTIONS & set(self.options), f"none of {sorted(OWN_OPTIONS)}"
        )


@dataclass(frozen=True)
class SparkSettings:
    """The Spark session that tasks run in.

    Attributes:
        master: local[4], spark://host:7077, yarn; null takes spark-submit's, and this machine
            where that did not start us.
        conf: Spark properties, name -> value ({"spark.executor.memory": "8g"}); none that holds a
            secret, as settings are written down: those Spark reads from its spark-defaults.conf.
    """

    master: str | None = None
    conf: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if secret := next(filter(SPARK_SECRET.search, self.conf), None):
            raise SettingsError(  # without the value
                f"conf: found {secret}, expected no secret, as settings are written down; Spark "
                "takes it from its own conf/spark-defaults.conf (SPARK_CONF_DIR)",
                type(self),
                "conf",
            )


@dataclass(frozen=True)
class EngineSettings:
    """Where tasks run. Changes nothing in any result.

    Attributes:
        kind: local (processes of this machine), slurm (job arrays) or spark. Input and output lie
            on a file system that all machines share.
        workers: tasks at work at the same time; null means one a core of this machine, for Spark
            one a core of its executors.
        slurm: read where kind is slurm.
        spark: read where kind is spark.
    """

    kind: Literal["local", "slurm", "spark"] = "local"
    workers: int | None = None
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    spark: SparkSettings = field(default_factory=SparkSettings)

    def __post_init__(self) -> None:
        check_setting(
            self, "workers", self.workers is None or self.workers >= 1, "at least 1, or null"
        )

    def worker_count(self) -> int:
        """The number of tasks to run at the same time."""
        if self.workers is None and self.kind == "spark":
            from mining.spark_session import parallelism

            return parallelism(self)
        return self.workers or len(os.sched_getaffinity(0))
