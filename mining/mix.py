"""The `mix` stage: documents for each arm at one budget (METHOD section 4, step 4).

Which documents is decided in one process from what the scores say (mining.mix_select); reading
their tokens and putting each at its place are tasks, one a shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mining.common.errors import InputError, SettingsError
from mining.common.files import atomic_path, write_json
from mining.common.manifest import read_manifest, require_same
from mining.common.shards import common_info, list_shards, open_table, write_table
from mining.common.stage import Input, StageInput, StageRun, begin, settings_dict
from mining.common.token_file import ScatteredTokenFile
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.engine_settings import EngineSettings
from mining.inputs import CorpusInput
from mining.mix_compare import describe_arms, write_arms
from mining.mix_documents import Documents, read_documents
from mining.mix_export import export_text
from mining.mix_select import Selection, make_pool
from mining.mix_settings import PLANTED_ARMS, MixSettings
from mining.pieces import save_array
from mining.planted import read_planted, select_with_planted, shares_in, write_broken
from mining.settings import CorpusSettings
from mining.tasks import run_tasks

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BATCH_ROWS = 1024


def run_mix(
    settings: MixSettings,
    out: Path,
    corpus: CorpusSettings,
    tokens: Path,
    score: Path,
    tokenizer: Path,
    engine: EngineSettings,
    seed: int,
    world: Path | None = None,
) -> None:
    """Write one folder an arm, the validation files and the comparison of the arms to `out`.

    The corpus is read only for `export`, which writes the documents' text; the `world` only for the
    arms that know what it planted. SettingsError where there is none for them.
    """
    inputs: dict[str, Input] = {
        **({"documents": CorpusInput(corpus)} if settings.export else {}),
        "tokens": StageInput(tokens, "tokenize"),
        "score": StageInput(score, "score"),
        "tokenizer": StageInput(tokenizer, "tokenizer"),
    }
    if knowing := [arm for arm in settings.arms if arm in PLANTED_ARMS]:
        if world is None:
            raise SettingsError(
                f"mix.arms: found {', '.join(knowing)}, which know what a generated world planted; "
                "a corpus has no such arm"
            )
        inputs["world"] = StageInput(world, "world")
    exported = {"corpus": settings_dict(corpus)} if settings.export else {}
    run = begin("mix", out, {**settings_dict(settings), **exported, "seed": seed}, inputs)
    if run is None:
        return
    shards = list_shards(tokens / "tokens")
    loaded = load_tokenizer(tokenizer)
    require_same(
        "the tokenizer's fingerprint",
        {str(tokens): common_info(shards).fingerprint, str(tokenizer): loaded.fingerprint},
    )
    documents = read_documents(shards, score, read_manifest(score, "score").counts["unit"])
    pool = make_pool(documents, settings, seed)
    planted = read_planted(world, loaded) if knowing and world is not None else None
    share = None if planted is None else shares_in(shards, [planted.mask(loaded.vocab_size)])[0]
    selections = select_with_planted(pool, share)
    report = describe_arms(pool, selections, share)
    write_json(out / "arms.json", report)
    write_arms(out, report)
    _write_tables(out, documents, selections)
    written = {name: one for name, one in selections.items() if name != "broken-pivot"}
    _write_token_files(run, shards, documents, written, loaded, engine)
    if planted is not None and "broken-pivot" in selections:
        chosen = selections["broken-pivot"]
        langs = [documents.languages[code] for code in documents.lang[chosen.rows].tolist()]
        write_broken(out, planted, langs, chosen.always, loaded, seed)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            with atomic_path(out / "tokenizer" / name) as temporary:
                shutil.copyfile(tokenizer / name, temporary)
    if settings.export:
        arms: dict[str, Selection] = {arm: selections[arm] for arm in settings.arms}
        hashes = export_text(
            settings.export, run, corpus, tokens, tokenizer, documents, arms, engine
        )
        run.record_hashes("documents", hashes)
    run.finish({**report, "fingerprint": loaded.fingerprint, "vocab_size": loaded.vocab_size})


def _write_tables(out: Path, documents: Documents, selections: Mapping[str, Selection]) -> None:
    """Write which documents stand in each arm, and in validation."""
    held = []
    for name, chosen in selections.items():
        table = _chosen_table(documents, chosen)
        if name.startswith("validation/"):
            held.append(table)
        else:
            write_table(out / name / "documents.parquet", table)
    if not held:
        raise InputError(
            "mix: no document fell into the validation split; raise mix.validation_share"
        )
    write_table(out / "validation" / "documents.parquet", pa.concat_tables(held))


def _chosen_table(documents: Documents, chosen: Selection) -> pa.Table:
    found = documents.table(chosen.rows)
    return pa.table(
        {
            "position": pa.array(np.arange(len(found)), pa.int64()),
            "id": found["id"],
            "lang": found["lang"],
            "source": found["source"],
            "n_tokens": chosen.sizes,
            "proportion": found["proportion"],
            "always": chosen.always,
            "repeat": chosen.repeats,
        }
    )


@dataclass(frozen=True)
class Places:
    """Where one token file's documents go, in the order of the shards; arrays int64 [n].

    `rows` number the documents over all shards, `starts` are places in the file and `sizes` numbers
    of tokens with end-of-text.
    """

    path: Path
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def _write_token_files(
    run: StageRun,
    shards: Sequence[Path],
    documents: Documents,
    selections: Mapping[str, Selection],
    tokenizer: Tokenizer,
    engine: EngineSettings,
) -> None:
    """Write all token files in one pass over the shards, a task each."""
    folder = run.work / "files"
    finals = {}
    for k, (name, chosen) in enumerate(selections.items()):
        path = run.out / (f"{name}.ds" if name.startswith("validation/") else f"{name}/tokens.ds")
        finals[folder / f"{k}.ds"] = path, chosen.sizes
        by_row = np.argsort(chosen.rows, kind="stable")
        starts = np.cumsum(chosen.sizes) - chosen.sizes
        for what, array in (("rows", chosen.rows), ("starts", starts), ("sizes", chosen.sizes)):
            save_array(folder / f"{k}-{what}.npy", array[by_row])
        if not path.is_file():  # else an interrupted run came to the end of this file
            ScatteredTokenFile.create(
                folder / f"{k}.ds", int(chosen.sizes.sum()), tokenizer.vocab_size
            )
    task = partial(
        place_documents,
        shards=shards,
        starts=documents.starts,
        folder=folder,
        n_files=len(selections),
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
    )
    run_tasks("mix", task, len(shards), run.work / "tasks", engine)
    for written, (path, sizes) in finals.items():
        if written.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            ScatteredTokenFile.finish(written, path, sizes)


def place_documents(
    rank: int,
    world_size: int,
    shards: Sequence[Path],
    starts: npt.NDArray[np.int64],
    folder: Path,
    n_files: int,
    vocab_size: int,
    eos_id: int,
) -> None:
    """Put the documents of the shards rank, rank + world_size, ... at their places in all files.

    `starts` int64 [n_shards + 1] is the number of each shard's first document.
    """
    places = [_load_places(folder, k) for k in range(n_files)]
    with ExitStack() as stack:
        files = []
        for place in places:
            file = ScatteredTokenFile(place.path, vocab_size, eos_id)
            stack.callback(file.close)
            files.append(file)
        for k in range(rank, len(shards), world_size):
            row = int(starts[k])
            for offsets, tokens in _token_lists(shards[k]):
                for file, place in zip(files, places, strict=True):
                    first, last = np.searchsorted(place.rows, [row, row + len(offsets) - 1])
                    here = slice(first, last)
                    own = place.rows[here] - row
                    borders = np.stack([offsets[own], offsets[own + 1]], axis=1)
                    file.put(place.starts[here], place.sizes[here], tokens, borders)
                row += len(offsets) - 1
            assert row == starts[k + 1]


def _load_places(folder: Path, k: int) -> Places:
    arrays = [
        np.load(folder / f"{k}-{what}.npy", mmap_mode="r", allow_pickle=False)
        for what in ("rows", "starts", "sizes")
    ]
    return Places(folder / f"{k}.ds", *arrays)


def _token_lists(shard: Path) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]]:
    """Offsets int64 [n + 1] and tokens uint32 of a shard's documents, some at a time."""
    with open_table(shard) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=["tokens"]):
            lists: Any = batch.column("tokens")
            offsets = lists.offsets.to_numpy().astype(np.int64)
            yield offsets - offsets[0], lists.values.to_numpy()[offsets[0] : offsets[-1]]
