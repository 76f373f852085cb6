"""Every epoch is a permutation; every position has its own random numbers."""

import numpy as np
import pytest

from realm_jax.data.order import ExampleOrder, batch_positions, example_rng


def test_epochs_are_different_permutations():
    order = ExampleOrder(37, seed=3)
    drawn = order(np.arange(3 * 37, dtype=np.int64)).reshape(3, 37)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == list(range(37))
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 3 and drawn[0].tolist() != list(range(37))
    assert ExampleOrder(37, seed=4)(np.arange(37, dtype=np.int64)).tolist() != drawn[0].tolist()


def test_a_position_has_one_example_whoever_asks_in_whatever_order():
    positions = np.array([70, 3, 5000, 3], np.int64)
    one = ExampleOrder(37, seed=3)(positions)
    order = ExampleOrder(37, seed=3)
    order(np.arange(50, dtype=np.int64))
    assert [int(order(np.array([p], np.int64))[0]) for p in positions] == one.tolist()
    assert one[1] == one[3]


def test_random_numbers_of_a_position():
    draws = {(seed, place): example_rng(seed, place).random(3).tolist() for seed in (0, 1) for place in (0, 1, 1 << 40)}
    assert len({tuple(d) for d in draws.values()}) == 6
    assert example_rng(1, 1 << 40).random(3).tolist() == draws[(1, 1 << 40)]


def test_positions_continue_over_steps():
    assert batch_positions(3, 8, slice(2, 5)).tolist() == [26, 27, 28]


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="no example to draw from"):
        ExampleOrder(0, seed=0)
