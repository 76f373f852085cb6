"""Which example of which group a run draws at which position: groups by their shares, each in shuffled epochs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from realm_jax.data.order import example_rng

_DRAWN_AT_ONCE = 4096


class GroupOrder:
    """An endless order over several groups: a pure function of (seed, position).

    What comes when in a group depends on the draws before, so the order is made from the beginning on, and kept: 16 bytes an example.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int):
        """Args:
        sizes: examples of each group.
        shares: how often each is drawn; they need not sum to 1. A group that is empty, or has no share, is never drawn.
        seed: of the order.

        Raises:
          ValueError: nothing can be drawn.
        """
        chances = [share if size else 0.0 for size, share in zip(sizes, shares, strict=True)]
        if not sum(chances) > 0:
            raise ValueError("there is nothing to draw from: every group is empty, or has no share")
        self._edges, self._seed = np.cumsum(chances) / sum(chances), seed
        self._epochs = [_Epochs(size, seed, (at + 1) << 40) for at, size in enumerate(sizes)]
        self._known = np.zeros((2, 0), np.int64)

    def __call__(
        self, positions: Int64[np.ndarray, "batch"]
    ) -> tuple[Int64[np.ndarray, "batch"], Int64[np.ndarray, "batch"]]:
        """Groups, and numbers in their groups, at positions of the endless order."""
        known, wanted = self._known.shape[1], int(positions.max(initial=-1)) + 1
        if known < wanted:
            parts, wanted = (
                [self._known],
                max(wanted, 2 * known),
            )  # ahead, so that the whole is not copied again and again
            while known < wanted:
                parts.append(self._draw(known // _DRAWN_AT_ONCE))
                known += _DRAWN_AT_ONCE
            self._known = np.concatenate(parts, axis=1)
        groups, numbers = self._known[:, positions]
        return groups, numbers

    def _draw(self, part: int) -> Int64[np.ndarray, "2 drawn"]:
        draws = example_rng(self._seed, part).random(_DRAWN_AT_ONCE)
        groups = np.searchsorted(self._edges[:-1], draws, side="right")
        numbers = np.zeros(_DRAWN_AT_ONCE, np.int64)
        for at, epochs in enumerate(self._epochs):
            own = np.flatnonzero(groups == at)
            numbers[own] = epochs.take(len(own))
        return np.stack([groups, numbers])


class _Epochs:
    """The numbers below `size` in shuffled epochs, from the beginning on, in bulk."""

    def __init__(self, size: int, seed: int, first: int):
        """`first` is the number of the first epoch among the seed's random numbers."""
        self._size, self._seed, self._epoch = size, seed, first
        self._rest = np.zeros(0, np.int64)

    def take(self, count: int) -> Int64[np.ndarray, "_"]:
        """The next ones."""
        parts, missing = [self._rest], count - len(self._rest)
        while missing > 0:
            parts.append(example_rng(self._seed, self._epoch).permutation(self._size))
            self._epoch += 1
            missing -= self._size
        every = np.concatenate(parts)
        self._rest = every[count:]
        return every[:count]
