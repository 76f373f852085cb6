"""Rolling refresh: a version embeds some of its shards anew and takes the others from the version before it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from realm_jax.retrieval.manifest import Shard
from realm_jax.retrieval.shards import finish_shard, finished_shard, recorded_origin, share_file
from realm_jax.retrieval.versions import list_versions, read_manifest, version_dir
from realm_jax.storage import Place

MadeFrom = Callable[[int, int, str], dict[str, Any]]
"""What a shard depends on, by its number and the version and snapshot that it is embedded for."""


class CarriedShard(NamedTuple):
    """A shard of an earlier version, to be one of the next as well."""

    origin: Place  # directory of the version that has it
    shard: Shard
    made_from: dict[str, Any]


def carried_shards(
    index_dir: Place, version: int, names: Sequence[str], num_renewed: int, made_from: MadeFrom
) -> dict[int, CarriedShard]:
    """The shards that a version takes from the newest one before it: all but the `num_renewed` of the oldest snapshots.

    Returns:
      By number; none, where there is no version before or a shard of it was made otherwise: all are then to be embedded.
    """
    before = [other for other in list_versions(index_dir) if other < version]
    if not before:
        return {}
    directory = version_dir(index_dir, before[-1])
    steps = read_manifest(directory).shard_steps
    if len(steps) != len(names):
        return {}
    oldest = sorted(range(len(names)), key=lambda number: (steps[number], number))
    found = {}
    for number in sorted(oldest[num_renewed:]):
        origin = recorded_origin(directory, names[number])
        if origin is None:
            return {}
        expected = made_from(number, origin["version"], origin["snapshot_checksum"])
        shard = finished_shard(directory, names[number], expected)
        if shard is None:
            return {}
        found[number] = CarriedShard(directory, shard, origin)
    return found


def carry(carried: CarriedShard, directory: Place) -> Shard:
    """Makes a carried shard one of the version in `directory`: its files linked, or copied where links are not to be had."""
    for file in carried.shard.files:
        share_file(carried.origin / file.path, directory / file.path)
    shard = dataclasses.replace(carried.shard, snapshot_step=int(carried.made_from["version"]))
    finish_shard(directory, shard, carried.made_from)
    return shard
