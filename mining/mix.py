"""The `mix` stage: documents for each arm at one budget (METHOD section 4, step 4).

The validation split comes first and is the same for all arms. The arms share the budget, its
division between languages (but for `original`), the fill-up documents and the order of documents.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mining.common.errors import InputError, MismatchError, SettingsError
from mining.common.files import atomic_path, write_json
from mining.common.logs import log, progress
from mining.common.seeds import hash64
from mining.common.shards import common_info, list_shards, read_shard, write_table
from mining.common.stage import Input, StageInput, begin, require_same, settings_dict
from mining.common.token_file import ScatteredTokenFile
from mining.common.tokenizer import Tokenizer, load_tokenizer
from mining.kernels.proportion import count_pivots
from mining.kernels.select import fill_budget
from mining.planted import Planted, read_planted
from mining.settings import MixSettings

# The arms that know what a world planted.
PLANTED_ARMS = ("oracle", "broken-pivot")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Selection:
    """Documents of one token file, in its order.

    `rows` int64 [n] index the table of documents, `sizes` int64 [n] are the tokens taken of each,
    with the end-of-text token; `always` bool [n] marks those beside the budget.
    """

    rows: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    always: npt.NDArray[np.bool_]


def run_mix(
    settings: MixSettings,
    out: Path,
    tokens: Path,
    score: Path,
    tokenizer: Path,
    seed: int,
    world: Path | None = None,
) -> None:
    """Write one folder an arm, the validation files and the comparison of the arms to `out`.

    The arms oracle and broken-pivot need the folder of the `world`; SettingsError without.
    """
    inputs: dict[str, Input] = {
        "tokens": StageInput(tokens, "tokenize"),
        "score": StageInput(score, "score"),
        "tokenizer": StageInput(tokenizer, "tokenizer"),
    }
    knowing = [arm for arm in settings.arms if arm in PLANTED_ARMS]
    if knowing:
        if world is None:
            raise SettingsError(
                f"mix.arms: found {', '.join(knowing)}, which know what a generated world planted; "
                "a corpus has no such arm"
            )
        inputs["world"] = StageInput(world, "world")
    run = begin("mix", out, {**settings_dict(settings), "seed": seed}, inputs)
    if run is None:
        return
    shards = list_shards(tokens / "tokens")
    loaded = load_tokenizer(tokenizer)
    require_same(
        "the tokenizer's fingerprint",
        {str(tokens): common_info(shards).fingerprint, str(tokenizer): loaded.fingerprint},
    )
    documents = read_documents(shards, score)
    planted: Planted | None = None
    if knowing and world is not None:
        planted = read_planted(world, loaded)
        documents["planted"] = proportions(shards, [planted.mask(loaded.vocab_size)])[0]
    selections = select_documents(documents, settings, seed)
    broken = planted.broken(loaded.vocab_size, seed) if planted is not None else {}
    _write_token_files(out, shards, documents, selections, loaded, broken)
    for name, chosen in selections.items():
        folder = out / name.split("/", 1)[0]
        if not name.startswith("validation/"):
            write_table(folder / "documents.parquet", _chosen_table(documents, chosen))
    _write_validation_table(out, documents, selections)
    report = describe_arms(documents, selections, settings, seed)
    write_json(out / "arms.json", report)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            with atomic_path(out / "tokenizer" / name) as temporary:
                shutil.copyfile(tokenizer / name, temporary)
    run.finish({**report, "fingerprint": loaded.fingerprint, "vocab_size": loaded.vocab_size})


def read_documents(shards: Sequence[Path], score: Path) -> pd.DataFrame:
    """One row a document, in the order of the shards: what mixes are chosen by.

    Columns: shard, row, id, lang, source, group, n_tokens, proportion. MismatchError where the
    scores are not those of the shards' documents.
    """
    frames = []
    for k, shard in enumerate(shards):
        path = score / "scores" / shard.name
        if not path.is_file():
            raise InputError(f"{path}: the scores of {shard} are missing")
        left = pq.read_table(shard, columns=["id", "lang", "source", "group", "tokens"])
        right = pq.read_table(path, columns=["id", "proportion"])
        if not left["id"].equals(right["id"]):
            raise MismatchError(f"{path}: its documents are not those of {shard}")
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in left["tokens"].chunks]
        frames.append(
            left.drop_columns(["tokens"])
            .to_pandas()
            .assign(
                n_tokens=np.concatenate(lengths) if lengths else np.zeros(0, np.int64),
                proportion=right["proportion"].to_numpy(),
                shard=k,
                row=np.arange(len(left)),
            )
        )
    documents: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return documents


def proportions(
    shards: Sequence[Path], masks: Sequence[npt.NDArray[np.bool_]]
) -> list[npt.NDArray[np.float64]]:
    """Each document's share of tokens in each set of ids (bool [vocabulary]), shards in order.

    A float64 [n_documents] a set.
    """
    found: list[list[npt.NDArray[np.float64]]] = [[] for _ in masks]
    for shard in shards:
        for batch in read_shard(shard):
            n_tokens = np.maximum(np.diff(batch.offsets), 1)
            for values, mask in zip(found, masks, strict=True):
                values.append(count_pivots(batch.tokens, batch.offsets, mask) / n_tokens)
    return [np.concatenate(values) for values in found]


def select_documents(
    documents: pd.DataFrame, settings: MixSettings, seed: int
) -> dict[str, Selection]:
    """The documents of every arm and, under `validation/<lang>`, of validation.

    Everything depends on the documents' ids and groups and the seed, not on their order.
    """
    ids: list[str] = documents["id"].tolist()
    sizes = _sizes(documents, settings)
    lang = documents["lang"].to_numpy()
    always = documents["source"].isin(settings.always_sources).to_numpy()
    in_validation, pool = _split(documents, settings, seed)
    if not pool.any():
        raise InputError(
            f"mix: none of {len(documents)} documents may be drawn: they are in the validation "
            "split, of always_sources, or shorter than min_document_tokens"
        )
    if unknown := sorted(set(settings.always_sources) - set(documents["source"])):
        raise SettingsError(f"mix.always_sources: no document has the source {', '.join(unknown)}")
    place = _hashes(seed, "order", ids)

    selections: dict[str, Selection] = {}
    for arm in settings.arms:
        picked = _select_arm(arm, documents, lang, sizes, pool, settings, seed)
        extra = np.flatnonzero(always)
        rows = np.concatenate([picked[0], extra])
        taken = np.concatenate([picked[1], sizes[extra]])
        order = _order(documents, rows, place[rows])
        selections[arm] = Selection(rows[order], taken[order], always[rows[order]])
    held = in_validation & ~always
    for code in sorted(set(lang[held])):
        rows = np.flatnonzero(held & (lang == code))
        rows = rows[_order(documents, rows, place[rows])]
        rows, taken = fill_budget(rows, sizes, settings.max_validation_tokens)
        rows, taken = rows[taken > 1], taken[taken > 1]
        selections[f"validation/{code}"] = Selection(rows, taken, np.zeros(len(rows), bool))
    return selections


def _split(
    documents: pd.DataFrame, settings: MixSettings, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which documents are in the validation split, and which may be drawn (both bool [n])."""
    groups = documents["group"].fillna(documents["id"]).tolist()
    border = int(settings.validation_share * 2.0**64)
    in_validation = np.fromiter(
        (hash64(seed, "validation", group) < border for group in groups), bool, len(groups)
    )
    always = documents["source"].isin(settings.always_sources).to_numpy()
    long_enough = documents["n_tokens"].to_numpy() >= settings.min_document_tokens
    return in_validation, ~in_validation & ~always & long_enough


def _sizes(documents: pd.DataFrame, settings: MixSettings) -> npt.NDArray[np.int64]:
    """Tokens that each document takes of a budget, with its end-of-text token: int64 [n]."""
    sizes: npt.NDArray[np.int64] = documents["n_tokens"].to_numpy(np.int64) + 1
    if settings.max_document_tokens is None:
        return sizes
    return np.minimum(sizes, settings.max_document_tokens)


def language_budgets(settings: MixSettings, languages: Sequence[str]) -> dict[str, int]:
    """Tokens of the budget for each language; the same in every arm but `original`."""
    budget = settings.budget_tokens
    shares = settings.languages
    if not shares:
        even = {lang: budget // len(languages) for lang in languages}
        even[languages[0]] += budget - sum(even.values())
        return even
    budgets = {lang: round(share * budget) for lang, share in shares.items()}
    left = budget - sum(budgets.values())
    fill = settings.fill_language
    if left <= len(shares):  # what rounding leaves over, or took too much
        budgets[next(iter(shares))] += left
    elif fill is not None and fill not in shares:
        budgets[fill] = left
    else:
        raise SettingsError(
            f"mix.languages: the shares leave {left} tokens of the budget over, and "
            "mix.fill_language names no further language to fill them up with"
        )
    return budgets


def _select_arm(
    arm: str,
    documents: pd.DataFrame,
    lang: npt.NDArray[Any],
    sizes: npt.NDArray[np.int64],
    pool: npt.NDArray[np.bool_],
    settings: MixSettings,
    seed: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and tokens taken of them, by language, in the order in which they were taken."""
    present = sorted(set(lang[pool]))
    if arm == "original":
        rows = np.flatnonzero(pool)
        _check_pool("the whole corpus", settings.budget_tokens, sizes[rows].sum(), settings)
        return fill_budget(_preference("original", documents, rows, seed), sizes,
                           settings.budget_tokens)  # fmt: skip
    taken = []
    for code, budget in language_budgets(settings, present).items():
        rows = np.flatnonzero(pool & (lang == code))
        _check_pool(code, budget, sizes[rows].sum(), settings)
        filler = code == settings.fill_language and code not in settings.languages
        rule = "random" if filler and settings.languages else arm
        taken.append(fill_budget(_preference(rule, documents, rows, seed), sizes, budget))
    return (np.concatenate([t[0] for t in taken]), np.concatenate([t[1] for t in taken]))


def _check_pool(what: str, budget: int, available: int, settings: MixSettings) -> None:
    most = int(settings.max_pool_share * available)
    if budget > most:
        raise SettingsError(
            f"mix.budget_tokens: {what} needs {budget} tokens, but may give only {most} "
            f"(mix.max_pool_share {settings.max_pool_share} of {available} in the pool); lower the "
            "budget or the language's share"
        )


def _preference(
    rule: str, documents: pd.DataFrame, rows: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.int64]:
    """`rows` in the order in which an arm takes them; ties by a hash of the id, then the id."""
    ids = documents["id"].to_numpy()[rows]
    # A draw of its own for each arm: many documents tie, at 0 above all, and arms that broke their
    # ties alike would hold the same ones.
    rule = "pivot" if rule == "broken-pivot" else rule
    hashes = _hashes(seed, rule, ids.tolist())
    keys = {"pivot": -1.0, "low-pivot": 1.0, "oracle": -1.0}
    column = "planted" if rule == "oracle" else "proportion"
    proportion = documents[column].to_numpy()[rows] * keys.get(rule, 0.0)
    return rows[np.lexsort((ids.astype(str), hashes, proportion))]


def _order(
    documents: pd.DataFrame, rows: npt.NDArray[np.int64], place: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    return np.lexsort((documents["id"].to_numpy()[rows].astype(str), place))


def _hashes(seed: int, name: str, ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter((hash64(seed, "mix", name, i) for i in ids), np.uint64, len(ids))


def _write_token_files(
    out: Path,
    shards: Sequence[Path],
    documents: pd.DataFrame,
    selections: dict[str, Selection],
    tokenizer: Tokenizer,
    broken: Mapping[str, npt.NDArray[np.uint32]],
) -> None:
    """Write all token files in one pass over the shards.

    `broken`: language -> the ids that stand in the broken-pivot arm, of documents it chose itself.
    """
    files = []
    places: list[dict[int, int]] = []
    changed: list[frozenset[int]] = []
    for name, chosen in selections.items():
        path = out / (f"{name}.ds" if name.startswith("validation/") else f"{name}/tokens.ds")
        files.append(ScatteredTokenFile(path, chosen.sizes, tokenizer.vocab_size, tokenizer.eos_id))
        places.append({int(row): position for position, row in enumerate(chosen.rows)})
        own = chosen.rows[~chosen.always] if name == "broken-pivot" else chosen.rows[:0]
        changed.append(frozenset(own.tolist()))
    row = 0
    with progress("mix: writing", len(shards), "shards") as ticker:
        for shard in shards:
            for batch in read_shard(shard):
                for d in range(len(batch)):
                    for file, place, breaks in zip(files, places, changed, strict=True):
                        if (position := place.get(row)) is not None:
                            ids = batch.tokens[batch.offsets[d] : batch.offsets[d + 1]]
                            file.put(position, broken[batch.lang[d]][ids] if row in breaks else ids)
                    row += 1
            ticker.advance()
    assert row == len(documents)
    for file in files:
        file.close()


def _chosen_table(documents: pd.DataFrame, chosen: Selection) -> pa.Table:
    frame = documents.iloc[chosen.rows]
    return pa.table(
        {
            "position": pa.array(range(len(frame)), pa.int64()),
            "id": pa.array(frame["id"].tolist(), pa.string()),
            "lang": pa.array(frame["lang"].tolist(), pa.string()),
            "source": pa.array(frame["source"].tolist(), pa.string()),
            "n_tokens": pa.array(chosen.sizes, pa.int64()),
            "proportion": pa.array(frame["proportion"].to_numpy(), pa.float64()),
            "always": pa.array(chosen.always),
        }
    )


def _write_validation_table(
    out: Path, documents: pd.DataFrame, selections: dict[str, Selection]
) -> None:
    tables = [
        _chosen_table(documents, chosen)
        for name, chosen in selections.items()
        if name.startswith("validation/")
    ]
    if not tables:
        raise InputError(
            "mix: no document fell into the validation split; raise mix.validation_share"
        )
    write_table(out / "validation" / "documents.parquet", pa.concat_tables(tables))


def describe_arms(
    documents: pd.DataFrame, selections: dict[str, Selection], settings: MixSettings, seed: int
) -> dict[str, Any]:
    """Tokens, documents, proportions and pool shares of the arms, and how far they overlap.

    `overlap[a][b]` is the share of a's tokens (without those that stand in every arm) whose
    document is in b too. A `pool_share` is of what may be drawn, as `max_pool_share` is.
    """
    lang = documents["lang"].to_numpy()
    proportion = documents["proportion"].to_numpy()
    pool = _split(documents, settings, seed)[1]
    pool_sizes = np.where(pool, _sizes(documents, settings), 0)
    pool_tokens = pd.Series(pool_sizes).groupby(lang).sum().to_dict()
    arms: dict[str, Any] = {}
    for arm in settings.arms:
        chosen = selections[arm]
        drawn = ~chosen.always
        by_lang = {}
        for code in sorted(set(lang[chosen.rows[drawn]])):
            here = drawn & (lang[chosen.rows] == code)
            sizes = chosen.sizes[here]
            by_lang[code] = {
                "tokens": int(sizes.sum()),
                "documents": int(here.sum()),
                "mean_proportion": float(np.average(proportion[chosen.rows[here]], weights=sizes)),
                "pool_share": float(sizes.sum() / pool_tokens[code]),
            }
        arms[arm] = {
            "tokens": int(chosen.sizes.sum()),
            "budget_tokens": int(chosen.sizes[drawn].sum()),
            "always_tokens": int(chosen.sizes[~drawn].sum()),
            "documents": len(chosen.rows),
            "languages": by_lang,
        }
        if "planted" in documents:
            share = documents["planted"].to_numpy()[chosen.rows[drawn]]
            arms[arm]["planted_share"] = float(np.average(share, weights=chosen.sizes[drawn]))
        log.info("mix: %s has %d tokens in %d documents", arm, chosen.sizes.sum(), len(chosen.rows))
    overlap: dict[str, dict[str, float]] = {}
    for a in settings.arms:
        drawn = ~selections[a].always
        rows, sizes = selections[a].rows[drawn], selections[a].sizes[drawn]
        overlap[a] = {
            b: float(sizes[np.isin(rows, selections[b].rows)].sum() / sizes.sum())
            for b in settings.arms
        }
    return {"arms": arms, "overlap": overlap}
