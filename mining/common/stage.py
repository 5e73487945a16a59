"""What every stage's folder is: a lock, partial work that survives a kill, a manifest written last.

    run = begin("count", out, settings, inputs={"tokens": StageInput(tokens, "tokenize")})
    if run is None:
        return                      # done before, with the same settings and inputs
    ...                             # partial results under run.work, final files under run.out
    run.finish(counts={"documents": 10})

A folder without a manifest (`mining/common/manifest.py`) is unfinished and no reader accepts it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import resource
import secrets
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

from mining.common.errors import BusyError, InputError
from mining.common.files import (
    check_names,
    dump_json,
    is_temporary,
    read_json,
    remove_leftovers,
    remove_tree,
    sha256_file,
    write_json,
)
from mining.common.logs import log
from mining.common.manifest import (
    FORMAT_VERSION,
    HASH,
    MANIFEST,
    RUN,
    Manifest,
    code_version,
    is_file_entry,
    is_of_other_format,
    manifest_fault,
    mapping,
    missing_outputs,
    read_manifest,
    read_note,
    write_manifest,
)
from mining.common.secret_words import shown_command
from mining.common.slurm_jobs import end_jobs

WORK = ".work"
LOCK = ".lock"
IDENTITY = "identity.json"
HELD = "`pivots "


def path_setting(default: str | None = None) -> Any:
    """A settings field that holds a path: recorded by the content found there, not by its name."""
    return dataclasses.field(default=default, metadata={"recorded": False})


def engine_setting(default: int | str | None = None) -> Any:
    """A settings field that changes how the work is divided, but no result: not recorded."""
    return dataclasses.field(default=default, metadata={"recorded": False})


def settings_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as JSON values, without path and engine settings, also nested ones."""
    value: dict[str, Any] = json.loads(json.dumps(_recorded(settings), default=_recorded))
    return value


def _recorded(settings: Any) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(settings) if f.metadata.get("recorded", True)]
    return {name: getattr(settings, name) for name in names}


class Input(Protocol):
    """Something a stage reads: knows its identity now, and where it lies.

    What an identity may be is checked by `manifest.is_identity`.
    """

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        """JSON value that changes with the content; `recorded` is what the last run noted."""
        ...

    def location(self) -> Any:
        """JSON value for run.json: where the input lies and what the next check can be quick by."""
        ...


@dataclasses.dataclass(frozen=True)
class StageInput:
    """The finished folder of another stage, identified by the hash of its manifest."""

    path: Path
    stage: str

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        manifest = read_manifest(self.path, self.stage)
        # A file that is gone would else be work that nobody misses.
        if damaged := missing_outputs(self.path, manifest.outputs):
            raise InputError(
                f"{self.path}: {damaged[0]}; run `pivots {self.stage}` again, or bring it back"
            )
        return {"stage": self.stage, "manifest_sha256": sha256_file(self.path / MANIFEST)}

    def location(self) -> Any:
        return {"path": str(self.path.resolve())}


@dataclasses.dataclass(frozen=True)
class FilesInput:
    """Files that no stage of ours wrote, identified by their content.

    Their hashes are the dear part, so a file whose size and modification time are those of the last
    run keeps the hash noted then.
    """

    files: Mapping[str, Path]

    @classmethod
    def folder(cls, path: Path) -> FilesInput:
        """All files of a folder (or the one file that `path` is), by their relative names."""
        if path.is_file():
            return cls({path.name: path})
        if not path.is_dir():
            raise InputError(f"{path}: no such file or folder")
        found = sorted(p for p in path.rglob("*") if p.is_file())
        files = {p.relative_to(path).as_posix(): p for p in found}
        check_names(str(path), files)
        return cls(files)

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        known, stamps = mapping(mapping(recorded).get("files")), mapping(mapping(run).get("files"))
        result: dict[str, Any] = {}
        for name, path in sorted(self.files.items()):
            size, mtime = _stamp(path)
            if is_file_entry(known.get(name)) and stamps.get(name) == [size, mtime]:
                result[name] = known[name]
            else:
                result[name] = {"bytes": size, "sha256": sha256_file(path)}
        return {"files": result}

    def location(self) -> Any:
        return {
            "paths": {name: str(path.resolve()) for name, path in sorted(self.files.items())},
            "files": {name: _stamp(path) for name, path in sorted(self.files.items())},
        }


@dataclasses.dataclass(frozen=True)
class NamedInput:
    """Something named by a text that fixes its content, such as a hub id with a revision."""

    name: str

    def identity(self, recorded: Any, run: Mapping[str, Any] | None) -> Any:
        return {"name": self.name}

    def location(self) -> Any:
        return {"name": self.name}


@dataclasses.dataclass
class StageRun:
    """A stage at work. Final files go under `out`, partial ones under `work`.

    `id` is this piece of work's own: kept where an interrupted run is continued, and another one
    where the same is done again or elsewhere.
    """

    stage: str
    id: str
    out: Path
    work: Path
    settings: dict[str, Any]
    inputs: dict[str, Any]
    locations: dict[str, Any]
    started: float
    lock: IO[str]

    def record_hashes(self, name: str, hashes: Mapping[str, str]) -> None:
        """Note the content hashes of files that are hashed while they are read.

        A file that was not read is known by its size from here on.
        """
        files = self.inputs[name]["files"]
        for file, entry in files.items():
            if file in hashes:
                files[file] = {"bytes": entry["bytes"], "sha256": hashes[file]}
            elif "sha256" not in entry:
                files[file] = {"bytes": entry["bytes"]}

    def finish(
        self,
        counts: Mapping[str, Any],
        unhashed: Sequence[str] = (),
        noted: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Hash the outputs, write run.json and the manifest, and then remove the partial work.

        In this order, as hashing takes a while, and a kill meanwhile must leave what to go on from.
        Files named in `unhashed` (times, logs) stay in the folder but are not part of its content;
        a name with a final slash means all files below that folder. `noted` goes to run.json.
        """
        names = []
        for name in sorted(_files(self.out, (f"{WORK}/", *unhashed))):
            if is_temporary(name):  # of a worker that was killed alone
                (self.out / name).unlink(missing_ok=True)
            elif name not in (RUN, LOCK, *unhashed):
                names.append(name)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            hashes = pool.map(sha256_file, [self.out / name for name in names])
            outputs = {
                name: {"bytes": (self.out / name).stat().st_size, "sha256": digest}
                for name, digest in zip(names, hashes, strict=True)
            }
        manifest = Manifest(
            stage=self.stage,
            format_version=FORMAT_VERSION,
            code_version=code_version(),
            settings=self.settings,
            inputs=self.inputs,
            outputs=outputs,
            counts=dict(counts),
        )
        seconds = time.time() - self.started
        usage = max(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        )
        write_json(
            self.out / RUN,
            {
                "id": self.id,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
                "seconds": round(seconds, 3),
                "peak_rss_mib": usage // 1024,
                "host": platform.node(),
                "platform": platform.platform(),
                "python": platform.python_version(),
                "command": shown_command(["pivots", *sys.argv[1:]]),
                "inputs": self.locations,
                **(noted or {}),
            },
        )
        write_manifest(self.out, manifest)
        _discard(self.work)
        self.lock.close()
        log.info("%s: done in %.1f s -> %s", self.stage, seconds, self.out)
        return manifest


def begin(
    stage: str, out: Path, settings: Mapping[str, Any], inputs: Mapping[str, Input]
) -> StageRun | None:
    """Start or continue a stage in `out`; None where it is done with these settings and inputs.

    Partial work of an interrupted run is kept if it was made with the same settings, inputs and
    code version, and removed otherwise; what differs is logged. BusyError if another process holds
    the folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder that is empty or not there yet")
    out.mkdir(parents=True, exist_ok=True)
    if not _is_ours(out):
        raise InputError(f"{out}: holds files that no stage wrote; choose an empty folder")
    lock = hold(stage, out)
    end_jobs(out / WORK)
    old = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else None
    old_run = read_note(out / RUN)
    if old is not None and (fault := _not_to_replace(old, stage)):
        raise InputError(
            f"{out / MANIFEST}: not of a finished stage '{stage}' ({fault}); nothing was touched"
        )
    work = out / WORK
    noted = (old or {}, old_run)
    if old is None and (work / IDENTITY).is_file() and (work / RUN).is_file():
        noted = read_note(work / IDENTITY), read_note(work / RUN)
    recorded, places = (mapping(note.get("inputs")) for note in noted)
    identities = {
        name: item.identity(recorded.get(name), places.get(name)) for name, item in inputs.items()
    }
    expected = {
        "stage": stage,
        "format_version": FORMAT_VERSION,
        "code_version": code_version(),
        "settings": json.loads(json.dumps(settings)),
        "inputs": identities,
    }
    if old is not None:
        differences = describe_differences({key: old.get(key) for key in expected}, expected)
        damaged = [] if is_of_other_format(old) else missing_outputs(out, old["outputs"])
        _discard(work)  # a kill right after the manifest may have left it
        if not differences and not damaged:
            log.info("%s: already done in %s", stage, out)
            lock.close()
            return None
        for line in differences + damaged:
            log.info("%s: runs again, %s", stage, line)
        (out / MANIFEST).unlink()
    locations = {name: item.location() for name, item in inputs.items()}
    identity_path = work / IDENTITY
    if identity_path.is_file() and identity_path.read_bytes() == dump_json(expected).encode():
        log.info("%s: continues the interrupted run in %s", stage, out)
        remove_leftovers(out)
        run_id = noted[1].get("id")
    else:
        _discard(work)
        for path in out.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink()
        work.mkdir()
        run_id = None
    run_id = str(run_id or secrets.token_hex(8))
    write_json(work / RUN, {"id": run_id, "inputs": locations})
    write_json(identity_path, expected)
    return StageRun(
        stage=stage,
        id=run_id,
        out=out,
        work=work,
        settings=expected["settings"],
        inputs=identities,
        locations=locations,
        started=time.time(),
        lock=lock,
    )


def _is_ours(out: Path) -> bool:
    """Whether a folder is empty, or what lies in it was written by a stage and may be removed."""
    if (out / MANIFEST).is_file() or (out / WORK / RUN).is_file():
        return True
    lock = out / LOCK
    if lock.is_file() and lock.read_bytes()[: len(HELD)] == HELD.encode():
        return True
    # A lock that a kill left without its text lies alone.
    return {path.name for path in out.iterdir()} <= {LOCK}


def _not_to_replace(manifest: Any, stage: str) -> str | None:
    """Why a folder with this manifest is no earlier work of `stage`; None where it is."""
    fault = manifest_fault(manifest)
    if fault is not None and not (is_of_other_format(manifest) and HASH not in manifest):
        return fault
    found = manifest.get("stage")
    return None if found == stage else f"it is of stage '{found}'; choose another folder"


def describe_differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Lines that say which values of two nested dictionaries differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(set(old) | set(new)):
            name = f"{where}.{key}" if where else key
            if key not in old:
                lines.append(f"{name} is new: {_short(new[key])}")
            elif key not in new:
                lines.append(f"{name} is gone: {_short(old[key])}")
            else:
                lines.extend(describe_differences(old[key], new[key], name))
        return lines
    return [] if old == new else [f"{where} changed: {_short(old)} -> {_short(new)}"]


def _discard(work: Path) -> None:
    """Remove partial work; what a kill leaves of it is not taken for whole, having no identity."""
    (work / IDENTITY).unlink(missing_ok=True)
    remove_tree(work)


def _files(out: Path, apart: Sequence[str]) -> Iterator[str]:
    """The names of all files below a folder, without looking into the folders `apart` (NAME/).

    In those another program may be at work: what is gone by the time it is looked at is no error.
    """
    for folder, folders, names in os.walk(out):
        inner = Path(folder).relative_to(out)
        folders[:] = [name for name in folders if f"{(inner / name).as_posix()}/" not in apart]
        found = [inner / name for name in names]
        yield from (name.as_posix() for name in found if (out / name).is_file())


def hold(command: str, out: Path) -> IO[str]:
    """Lock a folder until the file that is given back is closed; BusyError says who holds it."""
    descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    handle = os.fdopen(descriptor, "r+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = handle.read().strip() or "another process"
        handle.close()
        raise BusyError(
            f"{out}: {holder} is writing this output; wait for it or choose another --out"
        ) from None
    # In this order, so that a kill never leaves it empty: by its text a folder is known as ours.
    handle.write(f"{HELD}{command}` (process {os.getpid()} on {platform.node()})")
    handle.truncate()
    handle.flush()
    _close_in_children(handle)
    return handle


def _close_in_children(handle: IO[str]) -> None:
    """Keep a lock out of forked processes: one that outlives a killed parent would hold it on."""
    reference = weakref.ref(handle)

    def close() -> None:
        if (held := reference()) is not None:
            held.close()

    os.register_at_fork(after_in_child=close)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
