"""Shards of an index version: what makes one finished, and reading one back."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from realm_jax.retrieval.manifest import (
    REBUILD,
    IndexRefused,
    Shard,
    ShardFile,
    check_content,
    check_size,
    sha256_of,
    shard_from_json,
)
from realm_jax.run_dir import write_json_atomically
from realm_jax.storage import Place, RemotePath, copy_of, fetch_file, is_remote, link_or_copy, scratch_of, upload

if TYPE_CHECKING:
    from realm_jax.retrieval.scann_index import ScannShard

SHARD_RECORD = "shard.json"
EMBEDDINGS = "embeddings.npy"
SCANN_ASSETS = "scann"


def shard_name(number: int, num_shards: int) -> str:
    return f"shard-{number:05d}-of-{num_shards:05d}"


def save_embeddings(path: Path, rows: Float32[np.ndarray, "count embed"]) -> None:
    """Writes a .npy file. Unlike `np.save`, which loses what a full disk does not take without saying so."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(rows, "<f4").data)


def describe_files(version_dir: Path, name: str) -> tuple[ShardFile, ...]:
    """Sizes and checksums of all files of a shard but its record, each flushed to disk first."""
    files = []
    for path in sorted((version_dir / name).rglob("*")):
        if path.is_file() and path.name != SHARD_RECORD:
            flush(path)
            files.append(ShardFile(path.relative_to(version_dir).as_posix(), path.stat().st_size, sha256_of(path)))
        elif path.is_dir():
            flush(path)
    return tuple(files)


def finish_shard(version_dir: Place, shard: Shard, made_from: Mapping[str, Any]) -> None:
    """Writes a shard's record: from now on the shard survives a crash.

    Args:
      version_dir: of the unpublished version.
      shard: whose files are on disk (`describe_files`).
      made_from: what the shard depends on; `finished_shard` compares it.
    """
    write_json_atomically(
        version_dir / shard.name / SHARD_RECORD, {"made_from": dict(made_from), "shard": dataclasses.asdict(shard)}
    )
    flush(version_dir / shard.name)
    flush(version_dir)


def finished_shard(version_dir: Place, name: str, made_from: Mapping[str, Any]) -> Shard | None:
    """The shard that an interrupted build left finished, intact and made from the same; None if there is none such."""
    try:
        record = json.loads((version_dir / name / SHARD_RECORD).read_bytes())
        shard = shard_from_json(record["shard"])
        if record["made_from"] != json.loads(json.dumps(made_from)) or shard.name != name:
            return None
        for file in shard.files:
            check_size(version_dir, file)
            check_content(version_dir, file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return shard


def recorded_origin(version_dir: Place, name: str) -> dict[str, Any] | None:
    """What a finished shard says that it was made from; None where it says nothing that can be read."""
    try:
        made_from = json.loads((version_dir / name / SHARD_RECORD).read_bytes())["made_from"]
        return made_from if {"version", "snapshot_checksum"} <= set(made_from) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def share_file(origin: Place, place: Place) -> None:
    """A file of one version as one of another, which is never changed: a link, or a copy where links are not to be had."""
    file, target = fetch_file(origin), scratch_of(place)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of an upload that was interrupted
    link_or_copy(file, target)
    if isinstance(place, RemotePath):
        upload(target, place)


def map_embeddings(version_dir: Place, shard: Shard, embed_dim: int) -> np.ndarray:
    """The embeddings of a shard, memory-mapped, from an object store its local copy: [count, embed_dim].

    Raises:
      IndexRefused: when the file does not hold them.
    """
    path = version_dir / shard.name / EMBEDDINGS
    try:
        rows = np.load(fetch_file(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexRefused(f"{path} cannot be read ({error}); {REBUILD}") from error
    if rows.shape != (shard.count, embed_dim) or rows.dtype != np.float32:
        raise IndexRefused(
            f"{path}: expected float32 {[shard.count, embed_dim]}, got {rows.dtype} {list(rows.shape)}; {REBUILD}"
        )
    return rows


def load_scann_shard(version_dir: Place, shard: Shard, embed_dim: int, parameters: Mapping[str, Any]) -> "ScannShard":
    """The searcher of a shard.

    Raises:
      IndexRefused: when ScaNN cannot read it.
    """
    from realm_jax.retrieval.scann_index import ScannSettings, load_shard

    place = version_dir / shard.name / SCANN_ASSETS
    try:
        for file in shard.files:
            fetch_file(version_dir / file.path)
        return load_shard(copy_of(place), shard.first_document, shard.count, embed_dim, ScannSettings(**parameters))
    except (ValueError, TypeError) as error:
        raise IndexRefused(f"{place}: {error}; {REBUILD}") from error


def flush(path: Place) -> None:
    """Waits until a file or directory is on disk. An object is there once it is written."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
