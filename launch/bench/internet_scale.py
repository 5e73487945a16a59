"""What counting a very large corpus on a cluster would take, from rates measured on one core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mining.count_cost import Rates, work_of
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
    work = work_of(postings * share / share.sum(), documents, tokens, triangle_pairs)
    parts = rates.seconds(work)
    cores = cluster.nodes * cluster.cores
    core_seconds = sum(parts.values())
    compute = core_seconds / cores / cluster.parallel
    filesystem = cluster.nodes * cluster.filesystem_bytes
    shards = cluster.shard_bytes_per_token * tokens
    index = 2 * postings
    reading = 2 * shards / filesystem
    # Read by the bands of one task at a time: what an item below the first of them costs is left.
    again = work.row_additions / work.postings
    n_bands = len(bands(cluster.top_items))
    shuffle = index * (1 + again)
    sums = 4.0 * band_cells(cluster.top_items) * n_bands / 2 * cluster.nodes
    hours = max(compute, reading + shuffle / filesystem) / 3600
    rows = [
        ("tokens", f"{tokens:.3g}", "text / bytes a token"),
        ("documents", f"{documents:.3g}", "tokens / mean document"),
        ("postings", f"{postings:.3g}", "documents x different items"),
        ("pairs of items in documents", f"{documents * cluster.different_items**2 / 2:.3g}",
         "documents x different items^2 / 2"),
        *((f"core seconds: {part}", f"{took:.3g}", "rate x work") for part, took in parts.items()),
        ("core hours", f"{core_seconds / 3600:.4g}", "sum / 3600"),
        ("compute", f"{compute:.3g} s", f"/ {cores} cores / {cluster.parallel} of a core's rate"),
        ("shards read twice", f"{reading:.3g} s",
         f"2 x {shards / 1e12:.3g} TB / {filesystem / 1e9:.0f} GB/s"),
        ("index", f"{index / 1e12:.3g} TB", "2 bytes x postings"),
        ("index read again", f"{again:.3g} times", "row additions / postings, a band at a time"),
        ("moved, local and Slurm", f"{shuffle / 1e12:.3g} TB, {shuffle / filesystem:.3g} s",
         "index written, and read by the bands"),
        ("moved, sums of a node", f"{sums / 1e12:.3g} TB, {sums / filesystem:.3g} s",
         "4 bytes x K^2 / 2 x nodes: one share a node, as with Spark"),
        ("memory of a task", f"{8 * band_cells(cluster.top_items) / 1e6:.0f} MB and the code",
         "two bands of 512 rows"),
        ("output", f"{rates.pair_bytes * triangle_pairs / 1e9:.3g} GB", "bytes a pair x K^2 / 2"),
        ("time", f"{hours:.3g} h", "the longer of computing and moving"),
        ("cost", f"${hours * cores * cluster.dollars_per_core_hour:.4g}",
         f"cores x hours x ${cluster.dollars_per_core_hour}"),
    ]  # fmt: skip
    head = ["| quantity | value | how |", "| --- | --: | --- |"]
    return head + [f"| {name} | {value} | {how} |" for name, value, how in rows]
