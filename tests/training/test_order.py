"""The order of sequences: every one once an epoch, the same from any step and for any processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mining.common.errors import SettingsError
from training import order as order_module
from training.order import PERIOD, DataOrder, Mixture, Shuffle, feistel, process_share


@pytest.fixture(params=["drawn", "computed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to shuffle, which of them is otherwise decided by size."""
    if request.param == "computed":
        monkeypatch.setattr(order_module, "DRAWN_LIMIT", 0)
    return str(request.param)


@pytest.mark.parametrize(("n", "batch", "epochs"), [(1, 1, 3), (2, 3, 2), (60, 17, 3), (37, 5, 2)])
@pytest.mark.parametrize("seed", [0, 5])
def test_every_epoch_sees_every_sequence_once(
    way: str, seed: int, n: int, batch: int, epochs: int
) -> None:
    order = DataOrder(seed, n, batch)
    n_steps = -(-n * epochs // batch)
    seen = np.concatenate([order.ids(step) for step in range(n_steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize("mixture", [None, Mixture((20, 10, 30), (1.0, 2.5, 0.5))])
def test_a_step_does_not_depend_on_the_steps_before(way: str, mixture: Mixture | None) -> None:
    used = DataOrder(3, 60, 7, mixture)
    for step in (40, 0, 8, 9, 8, 17, 40):
        assert np.array_equal(used.ids(step), DataOrder(3, 60, 7, mixture).ids(step))


def test_seeds_and_epochs_differ(way: str) -> None:
    first, other = DataOrder(0, 100, 100), DataOrder(1, 100, 100)
    assert not np.array_equal(first.ids(0), other.ids(0))
    assert not np.array_equal(first.ids(0), first.ids(1))


@given(st.integers(1, 300), st.integers(0, 2**40))
def test_feistel_is_a_permutation(n: int, key: int) -> None:
    assert sorted(feistel(np.arange(n), n, key)) == list(range(n))


def test_billions_of_sequences_cost_nothing_and_look_shuffled() -> None:
    n = 3_000_000_017
    shuffle = Shuffle(0, n, "order")
    places = np.arange(100_000)
    found = shuffle.at(0, places)
    assert len(set(found.tolist())) == len(found)
    assert found.min() >= 0
    assert found.max() < n
    # Uniform and without a trend: 100 equal ranges hold 1,000 each (standard deviation 31), and the
    # correlation of neighbours has a standard deviation of 0.003.
    counts = np.histogram(found, bins=100, range=(0, n))[0]
    assert np.abs(counts - 1000).max() < 160
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.016
    assert abs(np.corrcoef(found, places)[0, 1]) < 0.016
    # The place after the last of an epoch is the next epoch's first.
    assert shuffle.endless(np.array([n]))[0] == shuffle.at(1, np.array([0]))[0]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
def test_quotas_are_the_weights(weights: list[float]) -> None:
    quotas = Mixture((1,) * len(weights), tuple(weights)).quotas()
    assert quotas.sum() == PERIOD
    assert np.abs(quotas - np.array(weights) * PERIOD / sum(weights)).max() < 1


def test_a_weight_too_small_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"sources: found the weights \[1.0, 1e-09\]"):
        Mixture((5, 5), (1.0, 1e-9)).quotas()


def test_sources_come_in_proportion_and_each_in_its_own_epochs(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "PERIOD", 16)
    sizes, weights = (24, 12, 100), (1.0, 2.0, 5.0)  # quotas 2, 4, 10
    order = DataOrder(4, sum(sizes), 16, Mixture(sizes, weights))
    steps = np.stack([order.ids(step) for step in range(12)])
    sources = np.searchsorted(np.cumsum(sizes), steps, side="right")
    for step in range(12):
        assert np.bincount(sources[step], minlength=3).tolist() == [2, 4, 10]
    # After 12 periods: source 0 once through, source 1 four times, source 2 once and 20 more.
    times = np.bincount(steps.ravel(), minlength=sum(sizes))
    assert set(times[:24]) == {1}
    assert set(times[24:36]) == {4}
    assert sorted(set(times[36:])) == [1, 2]
    # Sources are mixed within a step, not one after another.
    assert any(np.any(np.diff(row) < 0) for row in sources)


def test_a_mixture_of_one_takes_everything_once() -> None:
    order = DataOrder(0, 70_000, 70_000, Mixture((70_000,), (3.0,)))
    # The second period's places are still a permutation of what the first left.
    seen = order.ids(0)
    assert len(set(seen[:PERIOD].tolist())) == PERIOD
    assert np.bincount(np.concatenate([seen, order.ids(1)])).max() <= 3


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_processes_share_a_step_without_loss(world: int, micros: int, size: int) -> None:
    ids = np.random.default_rng(0).permutation(world * micros * size)
    pieces = [process_share(ids, rank, world, size) for rank in range(world)]
    assert all(len(piece) == size for own in pieces for piece in own)
    assert np.array_equal(np.concatenate([np.concatenate(own) for own in pieces]), ids)
