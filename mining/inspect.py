"""What is known of one item, one pair of words or one document, and why it scores as it does.

Everything comes from finished stage folders; nothing is written. Contexts are decoded from the
token shards, so they can be shown also where the corpus had no text.
"""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mining.common.errors import InputError
from mining.common.manifest import MANIFEST, Manifest, read_manifest
from mining.common.shards import read_columns
from mining.inspect_documents import Documents
from mining.kernels.assoc import npmi, npmi_array
from mining.kernels.match import fold

Facts = dict[str, Any]
LISTED = 15


@dataclass(frozen=True)
class Folders:
    """The finished stages that are looked into; `words` and `score` may be missing."""

    tokenizer: Path
    tokenize: Path
    count: Path
    pivots: Path
    words: Path
    score: Path


class Inspector:
    """Looks things up in the folders of a run."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.counts = read_manifest(folders.count, "count").counts
        self.chosen: Manifest = read_manifest(folders.pivots, "pivots")
        self.languages: list[str] = self.counts["languages"]
        self.by_count = self.chosen.settings.get("statistic") == "count"

    @cached_property
    def items(self) -> pa.Table:
        """The rows of pivots.parquet with the items' letters and frequencies by language."""
        table = read_columns(self.folders.pivots / "pivots.parquet")
        counted = read_columns(self.folders.count / "items.parquet")
        names = ["has_letter", *(f"doc_freq_{lang}" for lang in self.languages)]
        for name in names:
            table = table.append_column(name, counted.column(name))
        return table

    @cached_property
    def texts(self) -> list[str]:
        """The items' texts without the spaces around them."""
        return [str(text).strip() for text in self.items.column("text").to_pylist()]

    @cached_property
    def documents(self) -> Documents:
        """The documents that were counted."""
        ids = self.items.column("id").to_pylist()
        return Documents(
            self.folders.tokenize,
            self.folders.tokenizer,
            self.counts["unit"],
            {id_: item for item, id_ in enumerate(ids)},
            {text: item for item, text in enumerate(self.texts)},
        )

    def find_items(self, name: str) -> list[int]:
        """The items of this text, the most frequent first; else those that differ in case only."""
        wanted = name.strip()
        exact = [item for item, text in enumerate(self.texts) if text == wanted]
        if exact:
            return exact
        folded = fold(wanted, False)
        return [item for item, text in enumerate(self.texts) if fold(text, False) == folded]

    def near(self, name: str) -> list[str]:
        """Items that are written like `name`."""
        return difflib.get_close_matches(name.strip(), dict.fromkeys(self.texts), n=5)

    # Items

    def item(self, name: str, contexts: int) -> Facts | None:
        """All about an item; None where there is none of this name."""
        found = self.find_items(name)
        if not found:
            return None
        item = found[0]
        row = self.items.slice(item, 1).to_pylist()[0]
        links = self.links(item)
        return {
            "kind": "item",
            "item": item,
            "text": row["text"],
            "id": row["id"],
            "unit": self.counts["unit"],
            "also": [str(self.items.column("text")[k]) for k in found[1:]],
            "doc_freq": row["doc_freq"],
            "documents": self.counts["documents"],
            "doc_freq_by_language": {la: row[f"doc_freq_{la}"] for la in self.languages},
            "lang": row["lang"],
            "definition": self.chosen.settings["definition"],
            "statistic": row["statistic"],
            "is_pivot": row["is_pivot"],
            "rules": self.rules(row),
            "degree": row["degree"],
            "reach": {la: row[f"reach_{la}"] for la in self.languages},
            "gap": {la: row[f"gap_{la}"] for la in self.languages},
            "neighbours": self.neighbours(links),
            "contexts": self.documents.contexts(item, row["id"], self.languages, contexts),
        }

    def rules(self, row: Facts) -> list[Facts]:
        """What the definition asks of a pivot, what the item has, and whether that is enough."""
        settings = self.chosen.settings
        definition = settings["definition"]
        threshold = self.chosen.counts["threshold"]
        share = max(row[f"doc_freq_{la}"] for la in self.languages) / max(1, row["doc_freq"])
        found = [("documents", row["doc_freq"], f"at least {settings['min_doc_freq']}",
                  row["doc_freq"] >= settings["min_doc_freq"])]  # fmt: skip
        if settings["require_letters"]:
            has = row["has_letter"]
            found.append(("holds a letter", "yes" if has else "no", "yes", has))
        if definition != "degree":
            found.append((
                "largest share of one language", share, f"below {settings['language_share']:g}",
                row["lang"] is None,
            ))  # fmt: skip
        if row["excluded"]:
            found.append(("in the list of exclusions", "yes", "no", False))
        names = {
            "degree": "edges",
            "breadth": "edges to the language with the second most",
            "specificity": "second-largest gap over the languages",
        }
        passes = row["statistic"] >= threshold
        found.append((names[definition], row["statistic"], f"at least {threshold:g}", passes))
        keys = ("rule", "found", "needed", "passes")
        return [dict(zip(keys, rule, strict=True)) for rule in found]

    def links(self, item: int) -> pa.Table:
        """The items that meet this one: columns other, n, strength (NPMI or documents)."""
        i, j = ds.field("i"), ds.field("j")
        pairs = ds.dataset(self.folders.count / "pairs", format="parquet").to_table(
            filter=(i == item) | (j == item)
        )
        first = pairs.column("i").to_numpy().astype(np.int64)
        second = pairs.column("j").to_numpy().astype(np.int64)
        other = np.where(first == item, second, first)
        n = pairs.column("n").to_numpy().astype(np.float64)
        return pa.table({"other": other, "n": n, "strength": self._strength(item, other, n)})

    def _strength(
        self, item: int, other: npt.NDArray[np.int64], n: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        if self.by_count:
            return n
        doc_freq = self.items.column("doc_freq").to_numpy().astype(np.float64)
        own = np.full(len(other), doc_freq[item])
        return npmi_array(n.copy(), own, doc_freq[other], float(self.counts["documents"]))

    def neighbours(self, links: pa.Table) -> dict[str, list[Facts]]:
        """The strongest links to the items of each language, and ("") to those of none."""
        lang = self.items.column("lang").take(links.column("other"))
        found = {}
        for code in [*self.languages, None]:
            mask = pc.is_null(lang) if code is None else pc.fill_null(pc.equal(lang, code), False)
            best = links.filter(mask).sort_by([("strength", "descending"), ("other", "ascending")])
            found[code or ""] = [
                {
                    "text": self.texts[row["other"]],
                    "piece": self.items.column("text")[row["other"]].as_py(),
                    "strength": row["strength"],
                    "n": int(row["n"]),
                }
                for row in best.slice(0, 10).to_pylist()
            ]
        return found

    # Pairs

    def pair(self, first: str, second: str) -> Facts | None:
        """All about two words or items; None where neither the words nor the counts know both."""
        tables = self._pair_tables(first, second)
        items = self._item_pair(first, second)
        if not tables and items is None:
            return None
        return {"kind": "pair", "words": [first, second], "pairs": tables, "items": items}

    def _item_pair(self, first: str, second: str) -> Facts | None:
        found = [self.find_items(name) for name in (first, second)]
        if not all(found):
            return None
        a, b = (items[0] for items in found)
        of_a, of_b = self.links(a), self.links(b)
        joined = of_a.join(of_b, "other", join_type="inner", right_suffix="_b")
        row = of_a.filter(pc.equal(of_a.column("other"), b)).to_pylist()
        doc_freq = self.items.column("doc_freq").to_pylist()
        pivots = self.items.column("is_pivot").to_numpy(zero_copy_only=False)
        both = sorted(
            (
                (-min(r["strength"], r["strength_b"]), r["other"], r)
                for r in joined.to_pylist()
                if pivots[r["other"]]
            ),
        )
        total = float(self.counts["documents"])
        n = row[0]["n"] if row else 0.0
        return {
            "texts": [self.texts[a], self.texts[b]],
            "doc_freq": [doc_freq[a], doc_freq[b]],
            "n": int(n),
            "npmi": npmi(n, float(doc_freq[a]), float(doc_freq[b]), total),
            "common_pivots": [
                {
                    "text": self.texts[item],
                    "strength": [r["strength"], r["strength_b"]],
                    "n": [int(r["n"]), int(r["n_b"])],
                }
                for strength, item, r in both[:LISTED]
                if strength < 0
            ],
        }

    def _pair_tables(self, first: str, second: str) -> list[Facts]:
        """What the `words` stage found of the pair, in the tables of the task and of a list."""
        if not (self.folders.words / MANIFEST).is_file():
            return []
        manifest = read_manifest(self.folders.words, "words")
        total = float(manifest.counts["documents"])
        found = []
        for name in ("pairs", "listed_pairs"):
            path = self.folders.words / f"{name}.parquet"
            if not path.is_file():
                continue
            table = read_columns(path)
            wanted = {(fold(first, False), fold(second, False))}
            places = [
                place
                for place, words in enumerate(
                    zip(
                        table.column("source").to_pylist(), table.column("target").to_pylist(),
                        strict=True,
                    )
                )
                if tuple(fold(word, False) for word in words) in wanted
            ]  # fmt: skip
            for row in table.take(pa.array(places, pa.int64())).to_pylist():
                a, b = float(row["source_doc_freq"]), float(row["target_doc_freq"])
                n = float(row["pair_doc_freq"])
                row["npmi"] = npmi(n, a, b, total) if a and b else None
                row["pivots"] = self._pair_pivots(row) if name == "pairs" else None
                found.append(row)
        return found

    def _pair_pivots(self, row: Facts) -> list[Facts]:
        keys = ("concept", "source_lang", "target_lang")
        table = read_columns(self.folders.words / "pair_pivots.parquet")
        for key in keys:
            table = table.filter(pc.equal(table.column(key), row[key]))
        pivots: list[Facts] = table.sort_by("rank").slice(0, LISTED).to_pylist()
        for pivot in pivots:
            for side in ("source", "target"):
                pivot[f"{side}_lift"] = pivot[f"{side}_share"] - pivot["background"]
        return pivots

    # Documents

    def document(self, name: str) -> Facts | None:
        """All about the document of an id; None where there is none."""
        place = self.documents.find(name)
        if place is None:
            return None
        found, ids = place
        is_pivot = self.items.column("is_pivot").to_pylist()
        hits: dict[int, int] = {}
        for id_ in ids:
            item = self.documents.item_of.get(id_)
            if item is not None and is_pivot[item]:
                hits[item] = hits.get(item, 0) + 1
        n_pivots = sum(hits.values())
        ordered = sorted(hits, key=lambda item: (-hits[item], item))
        rows = {item: self.items.slice(item, 1).to_pylist()[0] for item in ordered}
        proportion = n_pivots / max(1, len(ids))
        return {
            "kind": "document",
            "id": found["id"],
            "lang": found["lang"],
            "source": found["source"],
            "unit": self.counts["unit"],
            "n_tokens": len(ids),
            "n_pivots": n_pivots,
            "proportion": proportion,
            "language": self._among(found["lang"], proportion),
            "pivots": [
                {
                    "text": rows[item]["text"],
                    "times": hits[item],
                    "share": hits[item] / n_pivots,
                    "doc_freq": rows[item]["doc_freq"],
                    "statistic": rows[item]["statistic"],
                }
                for item in ordered
            ],
            "text": [
                {"text": "".join(part.text for part in parts), "pivot": marked}
                for marked, parts in itertools.groupby(
                    self.documents.parts(found["tokens"], found["lang"]),
                    key=lambda part: part.item is not None and is_pivot[part.item],
                )
            ],
        }

    def _among(self, lang: str, proportion: float) -> Facts | None:
        """The proportions of all documents of a language, and how many of them are lower."""
        if not (self.folders.score / MANIFEST).is_file():
            return None
        scores = ds.dataset(self.folders.score / "scores", format="parquet")
        table = scores.to_table(columns=["proportion"], filter=ds.field("lang") == lang)
        values = table.column("proportion").to_numpy()
        if not len(values):
            return None
        return {
            "documents": len(values),
            "lower": float(np.mean(values < proportion)),
            "median": float(np.median(values)),
            "90%": float(np.quantile(values, 0.9)),
        }


def inspect_one(folders: Folders, name: str, contexts: int) -> Facts:
    """All about an item or, where there is none of this name, the document of this id.

    Raises InputError, with what is written alike, where there is neither.
    """
    inspector = Inspector(folders)
    found = inspector.item(name, contexts) or inspector.document(name)
    if found is None:
        near = [*inspector.near(name), *inspector.documents.near(name)]
        where = f"neither an item of {folders.count} nor a document of {folders.tokenize}"
        raise InputError(f"'{name}': {where}{_hint(near)}")
    return found


def inspect_pair(folders: Folders, first: str, second: str) -> Facts:
    """All about a pair; InputError, with what is written alike, where it is not known."""
    inspector = Inspector(folders)
    found = inspector.pair(first, second)
    if found is None:
        unknown = [name for name in (first, second) if not inspector.find_items(name)]
        near = [text for name in unknown for text in inspector.near(name)]
        raise InputError(
            f"'{first}' and '{second}': no pair of {folders.words}, nor are both items of "
            f"{folders.count}{_hint(near)}"
        )
    return found


def _hint(near: list[str]) -> str:
    return f"; there are {', '.join(near)}" if near else ""
