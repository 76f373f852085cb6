"""Rows of a batch encoded in groups of like length, so that short documents do not pay for the padding of the longest.

A compiled step has fixed shapes, and which documents it reads is known only as it runs. So the rows of each device are
sorted by length and cut into groups of fixed sizes: the shortest so many rows at one length, the next at another, the last
at the full one. The sizes are chosen from the lengths of the corpus, so that nearly every batch fits them; one that does not
is encoded at full length, in the same program (`training.state.train_step`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Int64
from scipy import special

from realm_jax.data.inputs import Inputs
from realm_jax.retrieval.length_batches import choose_lengths

RISK = 0.02
"""Share of batches that may turn out not to fit, if documents were drawn from the corpus one by one."""


class LengthGroup(NamedTuple):
    """So many of a part's rows, encoded at one length."""

    rows: int
    length: int


def plan_groups(
    counts: Int64[np.ndarray, "lengths"], num_rows: int, num_groups: int, num_parts: int = 1
) -> tuple[LengthGroup, ...]:
    """The groups that cost the least padding among those that nearly every batch fits.

    Of n documents drawn from the corpus, how many are at most L long is binomial; its lower quantile is how many rows a group
    of that length may have.

    >>> plan_groups(np.bincount([20] * 50 + [200] * 50), num_rows=64, num_groups=2)
    (LengthGroup(rows=24, length=32), LengthGroup(rows=40, length=200))

    Args:
      counts: of the corpus's documents of each length; the last entry is the full length (`length_histogram`).
      num_rows: of a part.
      num_groups: at most so many groups.
      num_parts: parts of a batch, each of which has to fit.

    Returns:
      Groups by ascending length; the last has the full length.
    """
    full = len(counts) - 1
    shares = np.cumsum(counts) / counts.sum()
    risk = RISK / (num_parts * max(1, num_groups - 1))
    at_most = special.bdtr(np.arange(num_rows + 1)[:, None], num_rows, np.minimum(shares, 1.0))
    certain = (at_most < risk).sum(axis=0)  # of each length
    certain[-1] = num_rows
    new = np.diff(certain, prepend=0)
    lengths = choose_lengths(new, num_groups)
    if lengths[-1] != full:  # the whole corpus is shorter than that; what is not from it may not be
        lengths = (*lengths[:-1], full)
    ends = np.array([num_rows if length == full else certain[length] for length in lengths])
    rows = np.diff(ends, prepend=0)
    return tuple(LengthGroup(int(n), length) for n, length in zip(rows, lengths, strict=True) if n or length == full)


def by_length(lengths: Int32[Array, "rows"], num_parts: int) -> Int32[Array, "parts rows_of_part"]:
    """For each part, its rows by ascending length."""
    return jnp.argsort(lengths.reshape(num_parts, -1), axis=1, stable=True).astype(jnp.int32)


def fits(lengths: Int32[Array, "rows"], groups: Sequence[LengthGroup], num_parts: int) -> Bool[Array, ""]:
    """Whether in every part the rows sorted by length are short enough for their groups."""
    ascending = jnp.sort(lengths.reshape(num_parts, -1), axis=1)
    allowed = np.repeat([group.length for group in groups], [group.rows for group in groups])
    return (ascending <= jnp.asarray(allowed)[None]).all()


class RowEncoding(NamedTuple):
    """How the rows of a batch are put through an encoder; the default is all at once.

    Attributes:
      order: of the rows of each part by length, `by_length`; None: all at once, at their full length.
      groups: by ascending length; their rows are those of a part.
    """

    order: Int32[Array, "parts rows_of_part"] | None = None
    groups: tuple[LengthGroup, ...] = ()

    def __call__(self, encode: Callable[..., Array], inputs: Inputs, *others: Array, wider_by: int = 0) -> Array:
        """Encodes rows.

        Args:
          encode: called with ids and segment ids, [rows, length], and of each of the others the same rows; gives an array
            with rows as leading axis, whose other sizes do not depend on the length.
          inputs: [rows, length].
          others: [rows, …].
          wider_by: most pieces that a row has here beyond the length by which rows are sorted and grouped.

        Returns:
          What `encode` gives, in the order of the rows.
        """
        if self.order is None:
            return encode(*inputs, *others)
        num_parts, num_rows = self.order.shape
        order = self.order

        def sorted_rows(array: Array) -> Array:
            parts = array.reshape(num_parts, num_rows, *array.shape[1:])
            return jnp.take_along_axis(parts, order.reshape(*order.shape, *(1,) * (parts.ndim - 2)), axis=1)

        arrays = [sorted_rows(array) for array in (*inputs, *others)]
        encoded, first, full = [], 0, inputs.ids.shape[1]
        for number, (count, length) in enumerate(self.groups, 1):
            # of a row cut to the greatest length more may be left here
            width = full if number == len(self.groups) else min(length + wider_by, full)
            ids, segment_ids, *rest = (array[:, first : first + count] for array in arrays)
            flat = [
                part.reshape(num_parts * count, *part.shape[2:])
                for part in (ids[:, :, :width], segment_ids[:, :, :width], *rest)
            ]
            rows = encode(*flat)
            encoded.append(rows.reshape(num_parts, count, *rows.shape[1:]))
            first += count
        together = jnp.concatenate(encoded, axis=1)
        back = jnp.argsort(order, axis=1).reshape(*order.shape, *(1,) * (together.ndim - 2))
        together = jnp.take_along_axis(together, back, axis=1)
        return together.reshape(num_parts * num_rows, *together.shape[2:])


ALL_AT_ONCE = RowEncoding()


def input_length(ids: Int32[Array, "*rows length"]) -> Int32[Array, "*rows"]:
    """Pieces of each row that are no padding."""
    return (ids != 0).sum(axis=-1, dtype=jnp.int32)
