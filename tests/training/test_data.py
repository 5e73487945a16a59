from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.common.errors import InputError
from mining.common.token_file import write_token_file
from training.data import DataOrder, Sequences, process_share


@given(st.integers(0, 9), st.integers(1, 60), st.integers(1, 17), st.integers(1, 3))
def test_every_epoch_sees_every_sequence_once(seed: int, n: int, batch: int, epochs: int) -> None:
    order = DataOrder(seed, n, batch)
    n_steps = -(-n * epochs // batch)
    seen = np.concatenate([order.ids(step) for step in range(n_steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(0, 9), st.integers(1, 60), st.integers(1, 17), st.lists(st.integers(0, 40)))
def test_a_step_does_not_depend_on_the_steps_before(
    seed: int, n: int, batch: int, steps: list[int]
) -> None:
    used = DataOrder(seed, n, batch)
    for step in steps:
        assert np.array_equal(used.ids(step), DataOrder(seed, n, batch).ids(step))


def test_seeds_and_epochs_differ() -> None:
    first, other = DataOrder(0, 100, 100), DataOrder(1, 100, 100)
    assert not np.array_equal(first.ids(0), other.ids(0))
    assert not np.array_equal(first.ids(0), first.ids(1))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_processes_share_a_step_without_loss(world: int, micros: int, size: int) -> None:
    ids = np.random.default_rng(0).permutation(world * micros * size)
    pieces = [process_share(ids, rank, world, size) for rank in range(world)]
    assert all(len(piece) == size for own in pieces for piece in own)
    assert np.array_equal(np.concatenate([np.concatenate(own) for own in pieces]), ids)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(2, 9))
def test_sequences_cover_the_file(lengths: list[int], length: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ds"
        documents = [np.arange(1, n + 1, dtype=np.uint32) for n in lengths]
        total = write_token_file(path, documents, 20, 0)
        stream = np.concatenate([np.append(d, 0) for d in documents])
        if total < length + 1:
            with pytest.raises(InputError, match="sequence_length"):
                Sequences(path, 20, length)
            return
        sequences = Sequences(path, 20, length)
        assert len(sequences) == (total - 1) // length
        rows = sequences.batch(np.arange(len(sequences)))
        assert np.array_equal(rows[:, :-1].ravel(), stream[: len(sequences) * length])
        assert np.array_equal(rows[:, 1:].ravel(), stream[1 : len(sequences) * length + 1])
