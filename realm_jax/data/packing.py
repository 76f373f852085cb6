"""Several texts in one row, each by itself: which texts stand where is a pure function of (seed, step, row).

Texts come in an endless order, drawn from groups by their shares, each group in shuffled epochs. They fill rows one after the other; one
that does not fit any more begins the next row. Nothing is read across the border of two texts: `segments` says whose a token is.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from realm_jax.data.group_order import GroupOrder
from realm_jax.data.order import batch_positions

NO_TARGET = -1
_LAID_AT_ONCE = 4096


class Text(NamedTuple):
    """The tokens of one text, and how many of the first are read only: the loss counts those after them."""

    ids: Int32[np.ndarray, "length"]
    num_read: int


@runtime_checkable
class TextGroup(Protocol):
    """Texts of one kind, by number."""

    @property
    def lengths(self) -> Int64[np.ndarray, "texts"]:
        """Tokens of each text, between 2 and the row's length."""
        ...

    def text(self, number: int) -> Text: ...


class PackedRows(NamedTuple):
    """Rows of packed texts."""

    ids: Int32[np.ndarray, "batch length"]
    segments: Int32[np.ndarray, "batch length"]  # from 1 on; 0 where nothing stands
    positions: Int32[np.ndarray, "batch length"]  # of each token in its own text
    targets: Int32[np.ndarray, "batch length"]  # the next token, where the loss counts it; else NO_TARGET


def packed(rows: Sequence[Sequence[Text]], length: int, pad_id: int) -> PackedRows:
    """Lays texts into rows.

    >>> rows = packed([[Text(np.array([1, 5, 6, 2], np.int32), 2), Text(np.array([1, 7], np.int32), 0)]], 7, 0)
    >>> rows.ids[0].tolist(), rows.segments[0].tolist()
    ([1, 5, 6, 2, 1, 7, 0], [1, 1, 1, 1, 2, 2, 0])
    >>> rows.positions[0].tolist(), rows.targets[0].tolist()
    ([0, 1, 2, 3, 0, 1, 0], [-1, 6, 2, -1, 7, -1, -1])
    """
    ids = np.full((len(rows), length), pad_id, np.int32)
    segments, positions = np.zeros((2, len(rows), length), np.int32)
    targets = np.full_like(ids, NO_TARGET)
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts, start=1):
            stop = start + len(text.ids)
            ids[row, start:stop] = text.ids
            segments[row, start:stop] = number
            positions[row, start:stop] = np.arange(len(text.ids))
            first = max(text.num_read, 1)  # nothing says the first token of all
            targets[row, start + first - 1 : stop - 1] = text.ids[first:]
            start = stop
    return PackedRows(ids, segments, positions, targets)


class PackedTexts:
    """Rows of texts from several groups: a pure function of (seed, step, row)."""

    def __init__(self, groups: Sequence[TextGroup], shares: Sequence[float], *, length: int, pad_id: int, seed: int):
        """Args:
        groups: of texts.
        shares: how often a text is drawn from each; they need not sum to 1.
        length: tokens of a row.
        pad_id: fills rows.
        seed: of the order.

        Raises:
          ValueError: no group with a text and a share.
        """
        self._groups, self._length, self._pad_id = list(groups), length, pad_id
        self._order = GroupOrder([len(group.lengths) for group in groups], shares, seed)
        self._laid = 0  # how many texts of the order have been laid into rows
        self._firsts = [0]  # of each row, as far as they are known: the place in the order of its first text
        self._used = 0  # tokens of the last of these rows, as far as texts have been laid

    def batch(self, step: int, batch_size: int, rows: slice) -> PackedRows:
        """The given rows of the batch of a step."""
        return packed(
            [self._texts(row) for row in batch_positions(step, batch_size, rows).tolist()], self._length, self._pad_id
        )

    def _texts(self, row: int) -> list[Text]:
        while len(self._firsts) <= row + 1:
            self._extend()
        groups, numbers = self._order(np.arange(self._firsts[row], self._firsts[row + 1]))
        return [
            self._groups[group].text(number) for group, number in zip(groups.tolist(), numbers.tolist(), strict=True)
        ]

    def _extend(self) -> None:
        """Lays some more texts into rows."""
        first = self._laid
        groups, numbers = self._order(np.arange(first, first + _LAID_AT_ONCE))
        lengths = np.zeros(_LAID_AT_ONCE, np.int64)
        for at, group in enumerate(self._groups):
            own = groups == at
            lengths[own] = group.lengths[numbers[own]]
        ends = np.cumsum(lengths).tolist()
        place, base = 0, -self._used  # of the row that is being filled: where it begins, in tokens of these texts
        while True:
            place = bisect.bisect_right(ends, base + self._length, lo=place)
            if place == len(ends):
                break
            self._firsts.append(first + place)
            base = ends[place - 1] if place else 0
        self._used = ends[-1] - base
        self._laid += _LAID_AT_ONCE
