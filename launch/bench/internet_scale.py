"""What counting a very large corpus on a cluster would take, from rates measured on one core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mining.count_cost import BAND_PARTS, Rates, band_tasks, work_of
from mining.kernels.cooccurrence import band_cells, bands


@dataclass(frozen=True)
class Cluster:
    """A corpus, and the machines that count it.

    `text_bytes` of text at `bytes_per_token`; documents of `mean_document` tokens with
    `different_items` different items. `shard_bytes_per_token` is the size of a token in a shard on
    disk. `filesystem_bytes` is what the shared file system gives each node, a second; `parallel`
    the share of the rates that a core keeps when all cores of a node are at work.
    """

    text_bytes: float = 10e12
    bytes_per_token: float = 4.0
    mean_document: float = 1000.0
    different_items: float = 350.0
    top_items: int = 50_000
    power: float = 0.7
    shard_bytes_per_token: float = 2.0
    nodes: int = 32
    cores: int = 64
    parallel: float = 0.5
    filesystem_bytes: float = 1e9
    dollars_per_core_hour: float = 0.04


def describe(cluster: Cluster, rates: Rates) -> list[str]:
    """The lines of a Markdown table, one quantity a line, with how it comes about."""
    tokens = cluster.text_bytes / cluster.bytes_per_token
    documents = tokens / cluster.mean_document
    postings = documents * cluster.different_items
    share = np.arange(1, cluster.top_items + 1) ** -cluster.power
    triangle_pairs = cluster.top_items * (cluster.top_items - 1) / 2
    cores = cluster.nodes * cluster.cores
    n_bands = len(bands(cluster.top_items))
    doc_freq = postings * share / share.sum()
    work = work_of(doc_freq, documents, tokens, triangle_pairs, band_tasks(cores, n_bands), 1)
    parts = rates.seconds(work)
    filesystem = cluster.nodes * cluster.filesystem_bytes
    shards = cluster.shard_bytes_per_token * tokens
    index = 2 * postings
    # A band reads the postings of its items and all later ones.
    again = work.read_again / work.postings
    # One core a band; the first band adds every posting's row once.
    by_band = [parts[name] for name in BAND_PARTS]
    slowest = max(rates.rows * postings, sum(by_band) / min(cores, n_bands)) / cluster.parallel
    by_document = sum(parts.values()) - parts["transpose"] - parts["write"]
    mapping = (sum(parts.values()) - sum(by_band)) / cores / cluster.parallel
    sums = 2.0 * cluster.top_items**2 * cores
    slurm = max(mapping, 2 * shards / filesystem) + max(slowest, index * (1 + again) / filesystem)
    spark = max(by_document / cores / cluster.parallel, 2 * shards / filesystem)
    spark += 2 * sums / filesystem + (parts["transpose"] + parts["write"]) / n_bands
    price = cores * cluster.dollars_per_core_hour / 3600
    terabyte = 1e12
    rows = [
        ("tokens", f"{tokens:.3g}", "text / bytes a token"),
        ("documents", f"{documents:.3g}", "tokens / mean document"),
        ("postings", f"{postings:.3g}", "documents x different items"),
        ("pairs of items in documents", f"{documents * cluster.different_items**2 / 2:.3g}",
         "documents x different items^2 / 2"),
        *((f"core seconds: {part}", f"{took:.3g}", "rate x work") for part, took in parts.items()),
        ("core hours", f"{sum(parts.values()) / 3600:.4g}", "sum / 3600"),
        ("reading the shards twice", f"{2 * shards / filesystem:.3g} s",
         f"2 x {shards / terabyte:.3g} TB / {filesystem / 1e9:.0f} GB/s"),
        ("index", f"{index / terabyte:.3g} TB", "2 bytes x postings"),
        ("Slurm: documents to index", f"{mapping:.3g} s", f"/ {cores} cores / {cluster.parallel}"),
        ("Slurm: bands", f"{slowest:.3g} s",
         f"at most {n_bands} tasks, the first of them adds every posting"),
        ("Slurm: moved", f"{index * (1 + again) / terabyte:.3g} TB",
         f"index x (1 + {again:.3g}): written once, read by the bands"),
        ("Slurm: time and cost", f"{slurm / 3600:.2g} h, ${slurm * price:.3g}",
         "of each part the longer of computing and moving"),
        ("Spark: moved", f"{sums / terabyte:.3g} TB", "4 bytes x K^2 / 2 x cores, twice"),
        ("Spark: time and cost", f"{spark / 3600:.2g} h, ${spark * price:.3g}",
         "a share a core; sums written and read"),
        ("memory of a task", f"{8 * band_cells(cluster.top_items) / 1e6:.0f} MB and the code",
         "two bands of 512 rows"),
        ("output", f"{rates.pair_bytes * triangle_pairs / 1e9:.3g} GB",
         "bytes a pair x K^2 / 2: every pair occurs"),
    ]  # fmt: skip
    head = ["| quantity | value | how |", "| --- | --: | --- |"]
    return head + [f"| {name} | {value} | {how} |" for name, value, how in rows]
