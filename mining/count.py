"""The `count` stage: exact document frequencies and co-occurrence counts of items.

Two passes over the shards. The first counts the documents of each id and language and chooses the
items; the second indexes the documents of each item; then the pairs are counted from the index,
band of rows by band of rows (mining.pair_bands), and written as Parquet. Sums of whole numbers do
not depend on their order, so neither do the tables on shards, tasks or workers. Where the context
is a sequence, "document" means a piece of one; pairs in windows are counted by mining.window_pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mining.byte_sizes import format_bytes, parse_bytes
from mining.common.errors import InputError, SettingsError
from mining.common.files import read_json, write_json
from mining.common.logs import log
from mining.common.manifest import read_manifest, require_same
from mining.common.shards import common_info, list_shards, write_table
from mining.common.stage import FilesInput, Input, StageInput, begin, settings_dict
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.contexts import Source, read_contexts
from mining.count_cost import SAMPLE_TOKENS, Estimate, band_tasks, estimate
from mining.count_memory import MemoryPlan, plan_memory, plan_windows
from mining.engine_settings import EngineSettings
from mining.items import (
    RARE_WORDS,
    excluded_ids,
    read_item_list,
    read_vocabulary,
    token_columns,
    tokenizer_input,
    word_columns,
)
from mining.kernels.cooccurrence import NOT_AN_ITEM, add_document_frequencies, bands
from mining.pair_bands import index_documents, write_bands
from mining.peak_memory import peak_bytes, reset_peak
from mining.pieces import count_pieces, count_tokens, save_array
from mining.settings import CountSettings
from mining.tasks import run_tasks
from mining.window_cost import WindowEstimate, estimate_windows
from mining.window_pairs import Window, check_overflow, count_window_pairs, merge_window_pairs

MAX_MERGE_TASKS = 64  # of pairs in windows
# A run measures itself on this share of its tokens, where that is a sample worth the name.
SAMPLE_SHARE, MIN_SAMPLE_TOKENS = 50, 200_000


def run_count(
    settings: CountSettings, out: Path, tokens: Path, tokenizer: Path, engine: EngineSettings
) -> None:
    """Count the documents of items and the documents or windows of their pairs (METHOD section 4).

    Reads the shards of the `tokenize` stage; writes `items.parquet` and `pairs/*.parquet`. Raises
    MismatchError where tokenizer and shards do not belong together, and InputError where no
    document is left to count or an id is outside the vocabulary.
    """
    inputs: dict[str, Input] = {
        "tokens": StageInput(tokens, "tokenize"),
        "tokenizer": tokenizer_input(tokenizer),
    }
    if settings.vocabulary is not None:
        inputs["vocabulary"] = FilesInput.folder(Path(settings.vocabulary))
    # First, as `begin` clears the folder of a run with other settings: these may be impossible.
    given = _open(settings, tokens, tokenizer)
    memory = given.memory(settings)
    _check_job(memory, engine)
    run = begin("count", out, settings_dict(settings), inputs)
    if run is None:
        return
    shards, source, window = given.shards, given.source, given.window
    folder = shards[0].parent
    expected = None
    sample = min(SAMPLE_TOKENS, sum(count_tokens(shards)) // SAMPLE_SHARE)
    if sample >= MIN_SAMPLE_TOKENS:
        try:
            expected = given.estimate(settings, memory, engine, sample)
            log.info("count: expected to take %.3g s", expected.seconds)
        except (InputError, OSError, RuntimeError) as error:
            # Other documents may hold what the sample lacks; it has files of its own, and a fit.
            log.info("count: no estimate (%s)", error)
    started = time.perf_counter()
    reset_peak()
    n_tasks = max(1, min(settings.map_tasks or engine.worker_count(), count_pieces(shards)))

    frequencies = run.work / f"frequencies-{n_tasks}"
    task = functools.partial(_count_frequencies, source=source, folder=frequencies)
    run_tasks("count: document frequencies", task, n_tasks, frequencies / "tasks", engine, True)
    documents, doc_freq = _merge_frequencies(frequencies, n_tasks)
    if not documents:
        raise InputError(f"{folder}: no document to count (count.sources {settings.sources})")
    ids = choose_items(sum(doc_freq.values()), given.excluded, given.n_wanted)  # type: ignore[arg-type]
    if len(ids) < 2:
        raise InputError(f"{folder}: {len(ids)} items in the documents, at least 2 are needed")
    _write_items(out / "items.parquet", ids, doc_freq, given.tokenizer, given.vocabulary)

    item_of = np.full(source.n_ids, NOT_AN_ITEM, dtype=np.int32)
    item_of[ids] = np.arange(len(ids), dtype=np.int32)
    numbering = run.work / "item_of.npy"
    save_array(numbering, item_of)
    # Blocks of a run with another memory limit would not keep to this one's.
    partial = run.work / f"pairs-{n_tasks}-{memory.block_size}"
    mapped: dict[str, Any] = {
        "source": source, "item_of": numbering, "n_items": len(ids), "folder": partial
    }  # fmt: skip
    merged: dict[str, Any] = {
        "partial": partial, "n_parts": n_tasks, "n_items": len(ids), "out": out / "pairs"
    }  # fmt: skip
    if settings.context == "window":
        task = functools.partial(
            count_window_pairs, window=window, block_tokens=memory.block_size, **mapped
        )
        merge = functools.partial(merge_window_pairs, directed=window.directed, **merged)
        n_merge = min(MAX_MERGE_TASKS, len(bands(len(ids))))
    else:
        task = functools.partial(index_documents, block_postings=memory.block_size, **mapped)
        merge = functools.partial(write_bands, bands_at_a_time=memory.bands_at_a_time, **merged)
        n_merge = band_tasks(engine.worker_count(), len(bands(len(ids))))
    if engine.kind == "spark" and settings.context != "window":
        from mining.spark_count import count_pairs_on_spark

        count_pairs_on_spark(
            source, numbering, len(ids), n_tasks, memory, out / "pairs", run.work / "bands", engine
        )
    else:
        run_tasks("count: pairs", task, n_tasks, partial / "tasks", engine, True)
        run_tasks("count: bands", merge, n_merge, partial / f"merge-{n_merge}", engine, True)
    written = [out / "pairs" / f"{band:05d}.parquet" for band in range(len(bands(len(ids))))]
    for path in set((out / "pairs").glob("*.parquet")) - set(written):
        path.unlink()  # of a killed run with other settings, whose tasks outlived it
    n_pairs = sum(pq.read_metadata(path).num_rows for path in written)
    total = sum(documents.values())
    log.info("count: %d documents, %d items, %d pairs", total, len(ids), n_pairs)
    noted: dict[str, Any] = {"count_seconds": time.perf_counter() - started}
    noted["output_bytes"] = sum(path.stat().st_size for path in written)
    if engine.kind == "local":  # other engines' tasks are not in this process
        at_once = min(engine.worker_count(), max(n_tasks, n_merge))
        noted |= {"memory_bytes": peak_bytes(), "expected_memory_bytes": memory.bytes_of(at_once)}
    _log_costs(noted, expected)
    if expected is not None:
        noted["expected"] = _describe_estimate(expected)
    run.finish(
        {
            "documents": total,
            "documents_by_language": documents,
            "languages": sorted(documents),
            "items": len(ids),
            "pairs": n_pairs,
            "unit": settings.unit,
            "fingerprint": given.fingerprint,
            **_describe_context(settings, window),
            **({"vocabulary_absent": given.n_wanted - len(ids)} if settings.vocabulary else {}),
        },
        noted=noted,
    )


def estimate_count(
    settings: CountSettings, tokens: Path, tokenizer: Path, engine: EngineSettings
) -> Estimate | WindowEstimate:
    """What `run_count` is expected to take; measured in some seconds."""
    given = _open(settings, tokens, tokenizer)
    return given.estimate(settings, given.memory(settings), engine, SAMPLE_TOKENS)


def plan_count(
    settings: CountSettings, tokens: Path, tokenizer: Path, engine: EngineSettings
) -> str:
    """The estimate in words, with the memory of a task; writes nothing."""
    given = _open(settings, tokens, tokenizer)
    memory = given.memory(settings)
    _check_job(memory, engine)
    found = given.estimate(settings, memory, engine, SAMPLE_TOKENS)
    work, parts = found.work, found.core_seconds
    listed = ", ".join(f"{part} {seconds:.3g}" for part, seconds in parts.items())
    return "\n".join(
        [
            f"{work.documents:.3g} documents, {work.tokens:.4g} tokens, {work.pairs:.3g} pairs (by "
            "a sample)",
            f"time    {found.seconds:.3g} s with {found.workers} worker(s); core seconds: {listed}",
            f"memory  {format_bytes(memory.bytes)} a task, {found.workers} at a time",
            f"disk    {format_bytes(found.index_bytes)} while it runs",
            f"output  {format_bytes(found.output_bytes)}",
        ]
    )


def _check_job(memory: MemoryPlan, engine: EngineSettings) -> None:
    """Raise SettingsError where a Slurm job has less memory than a task may take."""
    slurm = engine.slurm
    if engine.kind != "slurm" or {"mem", "mem-per-cpu", "cpus-per-task", "exclusive"} & set(
        slurm.options
    ):
        return  # what a job has then is the site's to say
    has = slurm.cpus_per_task * slurm.mem_per_cpu_gb << 30
    if memory.bytes > has:
        wanted = -(-memory.bytes // (slurm.cpus_per_task << 30))
        raise SettingsError(
            f"engine.slurm.mem_per_cpu_gb: found {slurm.mem_per_cpu_gb}, so that a job has "
            f"{format_bytes(has)}, but a task of count may take {format_bytes(memory.bytes)}; set "
            f"it to {wanted}, or count.memory_limit to {has}"
        )


def _describe_estimate(found: Estimate | WindowEstimate) -> dict[str, float]:
    """An estimate's figures for run.json."""
    return {
        **dataclasses.asdict(found.work),
        **{f"seconds_{part}": value for part, value in found.core_seconds.items()},
        "seconds": found.seconds,
        "index_bytes": found.index_bytes,
        "output_bytes": found.output_bytes,
    }


def _log_costs(noted: dict[str, Any], expected: Estimate | WindowEstimate | None) -> None:
    """Say what the run took, and beside it what was expected."""
    lines = [f"{noted['count_seconds']:.3g} s"]
    if expected is not None:
        lines[0] += f" ({expected.seconds:.3g} expected)"
    if "memory_bytes" in noted:
        most = format_bytes(noted["expected_memory_bytes"])
        lines.append(f"{format_bytes(noted['memory_bytes'])} of memory (at most {most} expected)")
    lines.append(f"{format_bytes(noted['output_bytes'])} of pairs")
    if expected is not None:
        lines[-1] += f" ({format_bytes(expected.output_bytes)} expected)"
    log.info("count: took %s", ", ".join(lines))


@dataclass(frozen=True)
class _Given:
    """What a run reads; `excluded` bool [n_ids] are ids that never are items."""

    tokenizer: Tokenizer
    fingerprint: str
    vocabulary: list[str]
    shards: list[Path]
    source: Source
    window: Window
    excluded: npt.NDArray[np.bool_]
    n_wanted: int
    n_languages: int

    def memory(self, settings: CountSettings) -> MemoryPlan:
        """How the work is divided to stay below the limit, if there is one."""
        limit = None if settings.memory_limit is None else parse_bytes(settings.memory_limit)
        most = max(2, min(self.n_wanted, int(np.count_nonzero(~self.excluded))))
        sizes = limit, most, self.source.n_ids, self.shards, self.n_languages
        if settings.context == "window":
            return plan_windows(*sizes, self.window.width, self.window.directed)
        return plan_memory(*sizes)

    def estimate(
        self, settings: CountSettings, memory: MemoryPlan, engine: EngineSettings, sample: int
    ) -> Estimate | WindowEstimate:
        """What the run is expected to take, from a sample of so many tokens."""
        workers = min(engine.worker_count(), count_pieces(self.shards))
        of = self.source, self.excluded, self.n_wanted
        if settings.context == "window":
            return estimate_windows(*of, self.window, workers, sample, memory.block_size)
        return estimate(*of, workers, sample, memory.bands_at_a_time)


def _open(settings: CountSettings, tokens: Path, tokenizer: Path) -> _Given:
    n_languages = len(read_manifest(tokens, "tokenize").counts.get("by_lang", ())) or 1
    loaded = load_tokenizer(tokenizer)
    folder = tokens / ("words" if settings.unit == "word" else "tokens")
    if settings.unit == "word":
        vocabulary = read_vocabulary(folder)
        excluded = excluded_ids([RARE_WORDS], len(vocabulary))
        shards = list_shards(folder)
    else:
        vocabulary = []
        excluded = excluded_ids(sorted(loaded.special_ids), loaded.vocab_size)
        shards = list_shards(folder)
        found = common_info(shards).fingerprint
        require_same("tokenizer", {str(folder): found, str(tokenizer): loaded.fingerprint})
    fingerprint = common_info(shards).fingerprint
    length = settings.sequence_length if settings.context == "sequence" else None
    source = Source(tuple(shards), settings.sources, len(excluded), length)
    window = Window(settings.window, settings.directed, settings.weights)
    if settings.context == "window":
        check_overflow(window, shards)
    n_wanted = settings.top_items
    if settings.vocabulary is not None:
        listed = read_item_list(Path(settings.vocabulary), vocabulary, excluded)
        excluded, n_wanted = ~listed, int(listed.sum())
    return _Given(
        loaded, fingerprint, vocabulary, shards, source, window, excluded, n_wanted, n_languages
    )


def _describe_context(settings: CountSettings, window: Window) -> dict[str, Any]:
    """What a later stage has to know of the counts; window sums are to be divided by `divisor`."""
    found: dict[str, Any] = {"context": settings.context}
    if settings.context == "sequence":
        found["sequence_length"] = settings.sequence_length
    if settings.context == "window":
        found["window"], found["directed"] = window.width, window.directed
        found["weights"], found["divisor"] = window.weighting, int(window.weights()[0])
    return found


def choose_items(
    doc_freq: npt.NDArray[np.uint64], excluded: npt.NDArray[np.bool_], top_items: int
) -> npt.NDArray[np.int64]:
    """The ids of the top items: highest document frequency first, ties by id, none of frequency 0.

    `doc_freq` uint64 [n_ids], `excluded` bool [n_ids]; returns int64 [at most top_items].
    """
    allowed = np.where(excluded, np.uint64(0), doc_freq)
    order = np.argsort(-allowed.astype(np.int64), kind="stable")[:top_items]
    return order[allowed[order] > 0]


def _count_frequencies(rank: int, world: int, source: Source, folder: Path) -> None:
    """Map task of the first pass: documents per language, and per language and id."""
    documents: dict[str, int] = {}
    counts: dict[str, npt.NDArray[np.uint64]] = {}
    for piece, kept in read_contexts(source, rank, world):
        groups = np.where(kept, piece.lang, np.int64(-1))
        found = np.zeros((len(piece.languages), source.n_ids), dtype=np.uint64)
        add_document_frequencies(piece.tokens, piece.offsets, groups, found)
        for code, lang in enumerate(piece.languages):
            n_documents = int(np.count_nonzero(groups == code))
            if n_documents:
                documents[lang] = documents.get(lang, 0) + n_documents
                counts[lang] = counts.get(lang, np.uint64(0)) + found[code]
    for number, lang in enumerate(sorted(documents)):
        save_array(folder / f"{rank:05d}-{number:03d}.npy", counts[lang])
    write_json(folder / f"{rank:05d}.json", [[lang, documents[lang]] for lang in sorted(documents)])


def _merge_frequencies(
    folder: Path, n_tasks: int
) -> tuple[dict[str, int], dict[str, npt.NDArray[np.uint64]]]:
    """Add up the tasks' figures: documents by language, and by language the frequency of ids."""
    documents: dict[str, int] = {}
    counts: dict[str, npt.NDArray[np.uint64]] = {}
    for rank in range(n_tasks):
        listed = read_json(folder / f"{rank:05d}.json")
        for number, (lang, n_documents) in enumerate(listed):
            documents[lang] = documents.get(lang, 0) + n_documents
            part = np.load(folder / f"{rank:05d}-{number:03d}.npy", allow_pickle=False)
            counts[lang] = counts.get(lang, np.uint64(0)) + part
    return dict(sorted(documents.items())), dict(sorted(counts.items()))


def _write_items(
    path: Path,
    ids: npt.NDArray[np.int64],
    doc_freq: dict[str, npt.NDArray[np.uint64]],
    tokenizer: Tokenizer,
    vocabulary: list[str],
) -> None:
    listed = [int(item) for item in ids]
    if vocabulary:
        named = word_columns(tokenizer, vocabulary, listed)
    else:
        named = token_columns(tokenizer, listed)
    columns = {
        "item": pa.array(np.arange(len(ids), dtype=np.uint32)),
        "id": pa.array(ids.astype(np.uint32)),
        **named,
        "doc_freq": pa.array(np.sum([counts[ids] for counts in doc_freq.values()], axis=0)),
        **{f"doc_freq_{lang}": pa.array(counts[ids]) for lang, counts in doc_freq.items()},
    }
    write_table(path, pa.table(columns))
