"""Starts a stage's processes by torchrun or `accelerate launch`, and ends as they ended.

    python -m launch.processes torchrun ...      # what torchrun takes
    python -m launch.processes accelerate ...    # what `accelerate launch` takes

Both end with code 1 whatever happened. This ends with the code of the process that failed, which
scripts can use (mining.common.errors), and names the log of one that left no error of its own.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

# What a process that is told to stop ends with; and those of a process that has no word of its own.
TOLD = (-signal.SIGTERM, 128 + signal.SIGTERM)
UNKNOWN = 1
ERROR = re.compile(r"^error: .*", re.MULTILINE)


class Failure(Protocol):
    """A process that failed, as torch.distributed has it: a negative code is a signal's number."""

    local_rank: int
    exitcode: int
    timestamp: int


def first_failure(failures: Iterable[Failure]) -> Failure:
    """The one that says why.

    Times are in whole seconds, within which the others break off or are told to stop.
    """

    def order(one: Failure) -> tuple[bool, bool, int]:
        return one.exitcode in TOLD, one.exitcode == UNKNOWN, one.timestamp

    return min(failures, key=order)


def describe(failure: Failure, logs: Path) -> str | None:
    """A line about a failure, for the log of the stage; None where the process has said it there.

    Only the output of the first process of a machine is shown; all write into `logs`.
    """
    found = logs.glob(f"*/attempt_0/{failure.local_rank}/stderr.log")
    log = max(found, key=lambda path: path.stat().st_mtime, default=None)
    errors = ERROR.findall(log.read_text("utf-8", "replace")) if log else []
    if errors:
        return str(errors[-1]) if failure.local_rank > 0 else None
    code = failure.exitcode
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    place = f"its log is {log}" if log else f"it left no log in {logs}"
    return f"error: process {failure.local_rank} ended {how}; {place}"


def main(argv: Sequence[str]) -> int:
    """Run the processes of a stage on this machine; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launcher, arguments = argv[0], list(argv[1:])
    try:
        _start(launcher, arguments)
    except ChildFailedError as error:
        failure = first_failure(error.failures.values())
        logs = Path(arguments[arguments.index("--log_dir") + 1])
        if (line := describe(failure, logs)) is not None:
            print(line, file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _start(launcher: str, arguments: list[str]) -> None:
    if launcher == "accelerate":
        from accelerate.commands.launch import launch_command, launch_command_parser

        launch_command(launch_command_parser().parse_args(arguments))
    else:
        from torch.distributed import run as torchrun

        untyped: Any = torchrun
        untyped.run(untyped.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
