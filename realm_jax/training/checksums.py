"""A checksum of arrays that is computed where they lie, whatever the mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped, UInt32

MIXING = 0x9E3779B1  # odd: no bit that differs is lost, whatever its place


@jax.jit
def checksum(tree: Any) -> UInt32[Array, ""]:
    """Sum of all elements' bits, each times an odd number of its own, modulo 2³².

    One flipped bit always changes it, other damage but for one case in 2³². Sums modulo 2³² do not depend on their order, so it is
    the same on any number of devices and hosts.

    Args:
      tree: of arrays of up to 32 bits an element.

    >>> int(checksum([jnp.zeros(3)])), int(checksum([jnp.int32([1, 0])])), int(checksum([jnp.int32([0, 1])]))
    (0, 2654435761, 3668339987)
    """
    sums = [_sum_of(leaf, number) for number, leaf in enumerate(jax.tree.leaves(tree))]
    return sum(sums, jnp.uint32(0))


def checksum_of_host(tree: Any) -> int:
    """`checksum` of arrays that no device may hold together: one after the other.

    >>> arrays = [jnp.zeros(3), jnp.int32([1, 0])]
    >>> checksum_of_host(arrays) == int(checksum(arrays))
    True
    """
    return sum(int(_sum_of(leaf, number)) for number, leaf in enumerate(jax.tree.leaves(tree))) % (1 << 32)


@jax.jit  # traced once for all leaves of a shape: a learner's parameters and the optimizer's two moments of each
def _sum_of(leaf: Shaped[Array, "..."], number: ArrayLike) -> UInt32[Array, ""]:
    place = jnp.uint32(number)
    for axis, length in enumerate(leaf.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(_bits(leaf) * ((2 * place + 1) * jnp.uint32(MIXING)), dtype=jnp.uint32)


def _bits(leaf: Array) -> UInt32[Array, "..."]:
    """Each element's bits as a number."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
