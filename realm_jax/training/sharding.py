"""Meshes and where each array lies on them. "pjit" is `jax.jit` with these shardings."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.models.rows import BATCH_AXES
from realm_jax.typed import check_fields

BATCH = P(BATCH_AXES)  # the leading axis of every batch array

# The first rule whose pattern ends the parameter's path decides. Layers are stacked on a leading axis, never sharded.
# Adam's moments have the same paths behind their own prefix, so they follow their parameters.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/(cross_)?attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/(cross_)?attention/(query|key|value)/bias$", P(None, "tensor")),
    (r"layers/(cross_)?attention/out/kernel$", P(None, "tensor", "fsdp")),
    (r"layers/feed_forward/(wi|gate)/kernel$", P(None, "fsdp", "tensor")),
    (r"layers/feed_forward/wi/bias$", P(None, "tensor")),
    (r"layers/feed_forward/wo/kernel$", P(None, "tensor", "fsdp")),
    # LoRA's A and B, [layers, features, rank] and [layers, rank, outputs]: along their long side, over all that cut their matrix
    (r"layers/(attention|feed_forward)/\w+/lora_a$", P(None, ("fsdp", "tensor"), None)),
    (r"layers/(attention|feed_forward)/\w+/lora_b$", P(None, None, ("fsdp", "tensor"))),
    (r"(token|position)_embedding/embedding$", P(None, "fsdp")),
    (r"(^|/)output$", P("fsdp", "tensor")),  # of a language model: [hidden, vocabulary]
    (r"(transform|pooler|projection)/kernel$", P("fsdp", None)),
    (r"", P()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 (once) takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, devices: list[jax.Device] | None = None) -> Mesh:
        """Lays the devices out as [data, fsdp, tensor].

        Raises:
          ValueError: when the axes do not multiply to the number of devices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = [self.data, self.fsdp, self.tensor]
        known = int(np.prod([size for size in sizes if size != -1]))
        if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
            sizes[sizes.index(-1)] = len(devices) // known
        if any(size < 1 for size in sizes) or np.prod(sizes) != len(devices):
            raise ValueError(
                f"mesh data={self.data} × fsdp={self.fsdp} × tensor={self.tensor} does not cover {len(devices)} devices; "
                "set one axis to -1 to take what is left"
            )
        return jax.make_mesh(tuple(sizes), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)

    def build_here(self) -> Mesh:
        """The same of the devices of this process alone, for what other processes have no part in."""
        return self.build(jax.local_devices())


def spec_of(path: tuple[Any, ...]) -> P:
    """The partition of the array at a path of the state."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def parts_along(axis: str | tuple[str, ...] | None, sizes: Mapping[str, int]) -> int:
    """Into how many parts a dimension is cut that a partition gives an axis of the mesh, several, or none.

    >>> [parts_along(axis, {"fsdp": 4, "tensor": 2}) for axis in (None, "fsdp", ("fsdp", "tensor"))]
    [1, 4, 8]
    """
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return math.prod(sizes[name] for name in names)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Shardings of a whole training state, by the table of rules.

    An axis that a dimension does not divide into is dropped for that array: a 30522-row table on 4 devices is replicated
    rather than refused.
    """

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = spec_of(path)
        axes = [
            axis if leaf.shape[dimension] % parts_along(axis, mesh.shape) == 0 else None
            for dimension, axis in enumerate(spec)
        ]
        return NamedSharding(mesh, P(*axes) if len(leaf.shape) >= len(axes) else P())

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def traced_for(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be jitted, with a mesh that models can lay their activations over (`models.rows`)."""

    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def batch_devices(mesh: Mesh) -> int:
    """How many parts the rows of a batch are divided into."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def rows_for(mesh: Mesh, count: int) -> int:
    """How many rows a batch of so many gets, so that they can be cut over the devices."""
    parts = batch_devices(mesh)
    return -(-count // parts) * parts


def process_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a global batch that this process feeds.

    Raises:
      ValueError: when the batch does not divide over the devices of the batch axes.
    """
    num_parts = batch_devices(mesh)
    if batch_size % num_parts:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {num_parts} devices (data × fsdp); "
            f"use a multiple of {num_parts}"
        )
    index_map = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    starts = [index[0].start or 0 for index in index_map.values() if index is not None]
    stops = [
        batch_size if index[0].stop is None else index[0].stop for index in index_map.values() if index is not None
    ]
    return slice(min(starts), max(stops))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Host arrays of this process's rows to arrays of the global batch, sharded by rows."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array sharded by rows, in order."""
    shards = {(shard.index[0].start or 0): shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_this_host(mesh: Mesh, tree: Any) -> Any:
    """The whole arrays on devices of this process, for computations that other processes have no part in."""
    if jax.process_count() == 1:
        return tree
    whole = jax.device_put(tree, NamedSharding(mesh, P()))
    return jax.tree.map(lambda array: array.addressable_data(0), whole)
