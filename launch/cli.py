"""The command line: `pivots COMMAND ...`."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from launch.config import (
    DRY_RUN,
    LOUDNESS,
    STAGES,
    TOOLS,
    RunConfig,
    parse_config,
    save_config,
    shipped,
)
from mining.common.errors import PivotsError, SettingsError, shorten
from mining.common.lineage import lineage, verify_outputs
from mining.common.logs import FILE_ONLY, log, log_to_file, setup_logging
from mining.common.manifest import code_version
from mining.common.secret_words import mask_urls

# What a machine does, and no bug of ours: disks that are full, read-only or gone, missing rights,
# a network that fails.
MACHINE_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.ELOOP, errno.EISDIR, errno.ENOLCK, errno.EREMOTEIO, errno.ENOTCONN,
    errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH,
}  # fmt: skip
MACHINE_EXIT_CODE = 7
COMPARISON = "runs/comparison"
USAGE = """\
usage: pivots COMMAND [--config FILE] [--section.key VALUE ...]

Mine semantic pivots from a multilingual corpus, train on pivot-aware mixes, trace the models.

  pivots run [CONFIG]      the whole chain; what is done already is not done again
  pivots STAGE             one stage of it, with the same settings:
{stages}
{tools}
  pivots experiment world  the claim as a controlled experiment: arms and seeds of a generated
                           world, and a page with the answer; `experiment text`: of a corpus
  pivots compare RUN RUN   several runs side by side, with paired intervals: a page in --out
  pivots inspect WHAT      an item, two words, or a document's id: counts, neighbours, contexts,
                           and why it is a pivot or scores as it does
  pivots launch WHAT --on PROFILE
                           the chain or a stage on this machine, Slurm or Spark
  pivots status RUN        how far a run is: stages, tasks, logs, time left
  pivots lineage PATH      the chain of inputs that led to a stage's folder, by content hash
  pivots verify PATH       compare a stage's files with the hashes in its manifest

Every command takes --help, --print_config, --verbose and --quiet; OUT/run.log has the log of every
stage. A config without corpus.path runs on a generated world that needs no download:
{quickstart}

Exit codes: 0 done; 1 failed; 2 a wrong setting or command line; 3 an input is missing or of the
wrong kind; 4 another process is writing there; 5 an optional package is missing; 6 a task on
another machine failed, or a training diverged; 7 trouble of the machine (a full or read-only disk,
missing rights); 130 interrupted; 143 ended by SIGTERM. After 4, 6, 7, 130 and 143 the same command
goes on from there.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see mining.common.errors for their meaning)."""
    try:
        return _main(argv)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `pivots --help | head`: nobody wants the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError:
            pass  # Python tells of it when it ends


def _main(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    flags = [argument for argument in given if argument in LOUDNESS]
    arguments = [argument for argument in given if argument not in LOUDNESS]
    setup_logging(verbose="--verbose" in flags, quiet="--quiet" in flags)
    if arguments[:1] == ["launch"]:
        arguments += flags  # for the stages
    # Bars of libraries would break up our own lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return _dispatch(arguments[0] if arguments else "help", arguments[1:])
    except PivotsError as error:
        print(f"error: {shorten(mask_urls(str(error)))}", file=sys.stderr)
        log.error("%s", error, extra=FILE_ONLY)
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
            return 128 + signal.SIGPIPE
        network = isinstance(error, TimeoutError | ConnectionError)
        if not network and _machine_errno(error) not in MACHINE_TROUBLE:
            raise
        log.debug("the place of it", exc_info=True)
        text = shorten(mask_urls(str(error))) or type(error).__name__
        print(
            f"error: {text}. Nothing half-written counts; once that is "
            "put right, the same command goes on from here (--verbose shows where it happened)",
            file=sys.stderr,
        )
        return MACHINE_EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _nobody_reads(stream: IO[str]) -> bool:
    """Whether a stream is a pipe whose other end was closed, as by `head`."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _machine_errno(error: Exception) -> int | None:
    """The system's number of an error; libraries in Rust have it in their text only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _usage() -> str:
    width = max(map(len, STAGES))
    lines = [f"    {name:<{width}}  {text}" for name, (text, _) in STAGES.items()]
    tools = [f"  pivots {name:<17} {text}" for name, (text, _) in TOOLS.items()]
    return USAGE.format(
        stages="\n".join(lines), tools="\n".join(tools), quickstart=shipped("quickstart.yaml")
    )


def _dispatch(command: str, arguments: list[str]) -> int:
    if command in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if command == "--version":
        print(f"semantic-pivots {code_version()}")
        return 0
    if command in ("lineage", "verify"):
        return _check_folder(command, arguments)
    if command == "inspect":
        from launch.inspect import inspect

        return inspect(arguments)
    if command == "launch":
        from launch.launching import launch

        return launch(arguments)
    if command == "status":
        from launch.status import status

        return status(arguments)
    if command == "experiment":
        from launch.experiment import experiment

        return experiment(arguments)
    if command == "run":
        if arguments and not arguments[0].startswith("-"):
            arguments = ["--config", *arguments]
        config = parse_config(arguments, command)
        if config.corpus.path is None and not any(a.startswith("--config") for a in arguments):
            # The defaults are for somebody's corpus; a world wants others, and fails at the mix.
            raise SettingsError(
                f"run: found no documents; give a config ({shipped('quickstart.yaml')} generates "
                "them) or --corpus.path FOLDER"
            )
        return _run(config)
    if command == "compare" and arguments and not arguments[0].startswith("-"):
        return _compare_runs(arguments)
    if command == "count" and DRY_RUN in arguments:
        return _plan_count(parse_config(arguments, command))
    if command in STAGES:
        return _stage(command, parse_config(arguments, command))
    if command == "dashboard":
        from launch.dashboard import dashboard

        print(f"dashboard: {dashboard(parse_config(arguments, command))}")
        return 0
    if command == "export-lm-eval":
        return _export_lm_eval(arguments)
    if command == "build-task":
        return _build_task(parse_config(arguments, command))
    if command == "sample":
        return _sample(parse_config(arguments, command))
    beside = ("experiment", "inspect", "launch", "status", "lineage", "verify")
    known = ", ".join(("run", *STAGES, *TOOLS, *beside))
    raise PivotsError(f"no command '{command}'; there are {known}. See `pivots --help`")


def _compare_runs(arguments: list[str]) -> int:
    n_runs = next((k for k, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    runs, options = arguments[:n_runs], arguments[n_runs:]
    if n_runs < 2 and not any(option in ("-h", "--help") for option in options):
        raise SettingsError(
            f"compare: found one run, {runs[0]}, expected two or more: pivots compare RUN RUN ... "
            "[--out FOLDER]; the models of one run are compared by `pivots compare --config FILE`"
        )
    # After the options: a run's own config would lead the comparison into the run's folder.
    named = any(option.split("=")[0] == "--out" for option in options)
    config = parse_config([*options, *(() if named else ("--out", COMPARISON))], "compare")
    from eval.compare_runs import run_compare_runs

    page = run_compare_runs(
        config.compare, config.report.candidate, Path(config.out), [Path(run) for run in runs],
        config.seed,
    )  # fmt: skip
    print(f"comparison: {page.resolve()}")
    return 0


def _export_lm_eval(arguments: list[str]) -> int:
    folder = arguments[0] if arguments and not arguments[0].startswith("-") else None
    config = parse_config(arguments[1:] if folder else arguments, "export-lm-eval")
    if folder is None:
        raise SettingsError(
            "export-lm-eval: found no folder; pivots export-lm-eval DIR [--task ...]"
        )
    from eval.export_lm_eval import run_export
    from launch.pipeline import Plan

    plan, evaluate = Plan(config), config.evaluate
    words = plan.folder("words") if evaluate.min_doc_freq is not None else None
    run_export(config.export_lm_eval, evaluate, Path(folder), plan.task, words, config.seed)
    print(f"{folder}: see its README.md for the command")
    return 0


def _check_folder(command: str, arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: pivots {command} PATH   (PATH: the folder of a finished stage)")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    folder = Path(arguments[0])
    if command == "lineage":
        print("\n".join(lineage(folder)))
    else:
        verify_outputs(folder)
        print(f"{folder}: every file is as its manifest says")
    return 0


def _log_to_run(config: RunConfig) -> None:
    """Write the log lines to the run's folder too, from the first of a launcher's processes."""
    if os.environ.get("RANK", "0") == "0":
        log_to_file(Path(config.out) / "run.log")


def _run(config: RunConfig) -> int:
    from launch.pipeline import Plan, refuse_inner_output
    from launch.watch import Watch

    refuse_inner_output(config)
    _log_to_run(config)
    plan, watch = Plan(config), Watch(config)
    jobs = plan.jobs()
    save_config(config, Path(config.out) / "config.yaml")
    for number, job in enumerate(jobs, start=1):
        log.info("[%d/%d] %s", number, len(jobs), job.name)
        job.run()
        watch.stage(job)
    watch.close()
    print(f"report: {(plan.folder('report') / 'report.html').resolve()}")
    return 0


def _build_task(config: RunConfig) -> int:
    from eval.build_task import run_build_task
    from launch.pipeline import Plan

    plan, root = Plan(config), Path(config.out)
    mined = {stage: plan.folder(stage) for stage in ("count", "words")}
    cache = Path(config.build_task.judge.cache or root / "judge-cache")
    run_build_task(config.build_task, root / "build-task", mined, cache)
    print(f"task: {(root / 'build-task' / 'task.yaml').resolve()}")
    return 0


def _sample(config: RunConfig) -> int:
    from eval.sample import run_sample
    from launch.pipeline import Plan

    plan = Plan(config)
    for model in plan.models(snapshots=False):
        text = run_sample(
            config.sample, plan.root / "sample" / model.label / str(model.seed), model.source,
            model.revision, plan.folder("mix"), config.seed,
            {"arm": model.label, "seed": model.seed},
        )  # fmt: skip
        print(f"##### {model.label}/{model.seed}\n\n{text}")
    return 0


def _plan_count(config: RunConfig) -> int:
    from launch.pipeline import Plan
    from mining.count import plan_count

    plan = Plan(config)
    tokens, tokenizer = plan.folder("tokenize"), plan.folder("tokenizer")
    print(plan_count(config.count, tokens, tokenizer, config.engine))
    return 0


def _stage(stage: str, config: RunConfig) -> int:
    from launch.pipeline import Plan, refuse_inner_output, select_jobs
    from launch.watch import Watch

    refuse_inner_output(config)
    _log_to_run(config)
    plan, watch = Plan(config), Watch(config)
    jobs = select_jobs(plan, stage)
    is_series = any(model.series is not None for model in plan.models())
    # Of several processes of a launcher the first one draws.
    if stage == "evaluate" and is_series and os.environ.get("RANK", "0") == "0":
        jobs += select_jobs(plan, "compare")
    for job in jobs:
        job.run()
        watch.stage(job)
    watch.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
