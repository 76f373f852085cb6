"""The order over groups: shares, epochs, and that it is a function of the position alone."""

import numpy as np
import pytest

from realm_jax.data.group_order import GroupOrder


def test_every_example_of_a_group_comes_once_an_epoch():
    groups, numbers = GroupOrder([5, 300, 0], [0.5, 0.5, 1.0], seed=0)(np.arange(9000))
    assert set(groups.tolist()) == {0, 1}
    for group, size in ((0, 5), (1, 300)):
        own = numbers[groups == group]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(size), epochs.shape))
        assert (epochs[0] != epochs[1]).any()
    assert abs(np.mean(groups == 0) - 0.5) < 0.02  # of 9000 draws


def test_it_depends_on_seed_and_position_alone():
    def order(seed=1):
        return GroupOrder([40, 60], [0.3, 0.7], seed)

    whole = np.stack(order()(np.arange(10_000)))
    late = order()
    np.testing.assert_array_equal(np.stack(late(np.arange(9000, 9010))), whole[:, 9000:9010])
    np.testing.assert_array_equal(np.stack(late(np.array([3, 1, 9009]))), whole[:, [3, 1, 9009]])
    assert (np.stack(order(2)(np.arange(100))) != whole[:, :100]).any()
    assert [part.shape for part in order()(np.zeros(0, np.int64))] == [(0,), (0,)]


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="every group is empty, or has no share"):
        GroupOrder([3, 0], [0.0, 1.0], seed=0)
