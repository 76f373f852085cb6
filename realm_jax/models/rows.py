"""Where activations lie: every row on the devices of its part of the batch, whole."""

import math

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
"""Axes of a mesh that the rows of a batch are cut over."""


def rows_apart(hidden: jax.Array) -> jax.Array:
    """The array, cut by its rows alone, where it is traced for a mesh (`training.sharding.traced_for`); elsewhere as it is.

    The compiler would otherwise lay activations as the table of embeddings lies, cut by columns over the same axis, and sum them over
    devices after every product of every layer instead of gathering the matrix: of a language model many times the bytes.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    axes = tuple(axis for axis in BATCH_AXES if axis in sizes)
    if not axes or hidden.shape[0] % math.prod(sizes[axis] for axis in axes):
        return hidden
    return jax.lax.with_sharding_constraint(hidden, P(axes))
