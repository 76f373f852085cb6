"""A checksum sees every bit and every place, and none of the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realm_jax.training.checksums import MIXING, checksum


def by_hand(*leaves):
    """The definition, in Python's whole numbers."""
    total = 0
    for number, leaf in enumerate(leaves):
        bits = np.asarray(leaf).reshape(-1)
        unsigned = bits.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[bits.itemsize])
        first = number * bits.size
        total += sum(int(word) * (2 * (first + place) + 1) * MIXING for place, word in enumerate(unsigned))
    return total % 2**32


def leaves():
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(8, 3)).astype(np.float32),
        jnp.asarray(rng.normal(size=(8, 2, 2)), jnp.bfloat16),
        rng.integers(-5, 5, size=8).astype(np.int32),
        np.int32(7),
        np.asarray([True, False, True]),
    ]


def test_is_its_definition_on_any_mesh():
    expected = by_hand(*leaves())
    assert int(checksum(leaves())) == expected
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data"))
    assert int(checksum([jax.device_put(leaf, sharding) for leaf in leaves()[:3]] + leaves()[3:])) == expected


@pytest.mark.parametrize("bit", [0, 13, 31])
def test_every_flipped_bit_changes_it(bit):
    whole = leaves()
    for place in range(whole[0].size):
        damaged = whole[0].copy()
        damaged.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
        assert int(checksum([damaged, *whole[1:]])) != int(checksum(whole))


def test_the_order_counts():
    one, *rest = leaves()
    assert int(checksum([one[::-1].copy(), *rest])) != int(checksum([one, *rest]))
    assert int(checksum([None, jnp.int32([3, 4])])) == int(checksum([jnp.int32([3, 4])]))  # no candidates
