"""Index versions on disk or an object store: immutable directories, published by their manifest, verified before they serve.

    INDEX/00000300/shard-00000-of-00002/embeddings.npy   float32 rows of documents first_document, first_document + 1, …
    INDEX/00000300/shard-00000-of-00002/scann/…          ScaNN's assets of these rows (backend "scann")
    INDEX/00000300/shard-00000-of-00002/shard.json       written last, by rename: now the shard is finished
    INDEX/00000300/manifest.json                         written last, by rename: now the version exists

A version is named by the snapshot step that it was embedded with. Nothing published is ever changed; a version is
retired by removing its manifest first. On an object store a PUT is what the rename is on a disk; versions are verified,
mapped and loaded from local copies (`realm_jax.storage`). `build_version` makes versions, `load_version` makes an index of one.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from jax.sharding import Mesh

from realm_jax.retrieval.ball_tree import BallTreeIndex, BallTreeSettings
from realm_jax.retrieval.device_rows import SpareRows
from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.exact import ExactIndex, ExactSettings
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.manifest import REBUILD, Backend, IndexRefused, Manifest, check_content, check_size
from realm_jax.retrieval.shards import flush, load_scann_shard, map_embeddings
from realm_jax.run_dir import write_json_atomically
from realm_jax.storage import Place, RemotePath, as_place, copy_of, is_remote, remove

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

SettingsT = TypeVar("SettingsT", BallTreeSettings, ExactSettings)

__all__ = [
    "Backend",
    "IndexRefused",
    "Manifest",
    "list_versions",
    "load_version",
    "publish",
    "read_manifest",
    "retire",
    "shards_of_host",
    "verify",
    "version_dir",
    "withdraw",
    "withdraw_after",
]


def version_dir(index_dir: str | os.PathLike[str], version: int) -> Place:
    return as_place(index_dir) / f"{version:08d}"


def list_versions(index_dir: str | os.PathLike[str]) -> list[int]:
    """The published versions, ascending; unfinished ones do not exist yet."""
    return [version for version in _directories(index_dir) if (version_dir(index_dir, version) / MANIFEST).is_file()]


def _directories(index_dir: str | os.PathLike[str]) -> list[int]:
    try:
        names = [entry.name for entry in as_place(index_dir).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if re.fullmatch(r"\d{8,}", name))


def read_manifest(version_dir: str | os.PathLike[str]) -> Manifest:
    """Reads manifest.json without looking at the files that it names.

    Raises:
      IndexRefused: when it is missing, torn, or not a manifest of this directory's version.
    """
    path = as_place(version_dir) / MANIFEST
    try:
        manifest = Manifest.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise IndexRefused(f"{path} is missing: this index version was never published, or is retired") from error
    except (ValueError, OSError, RecursionError) as error:  # torn JSON and broken UTF-8 are ValueErrors too
        if isinstance(error, OSError) and is_remote(path):
            raise  # a network that fails now may be back at the next look
        raise IndexRefused(f"{path} is damaged: {error}; {REBUILD}") from error
    if f"{manifest.version:08d}" != path.parent.name or manifest.snapshot_step != manifest.version:
        raise IndexRefused(
            f"{path} is of version {manifest.version} and snapshot {manifest.snapshot_step}, expected "
            f"{path.parent.name} for both; it was copied from elsewhere: {REBUILD}"
        )
    return manifest


def verify(
    version_dir: str | os.PathLike[str],
    *,
    corpus_fingerprint: str | None = None,
    embed_dim: int | None = None,
    num_documents: int | None = None,
    shards: Collection[int] | None = None,
) -> Manifest:
    """Checks a version before it serves: what it is of, then size and SHA-256 of every file.

    From an object store the files of the shards are downloaded between the two, where the cache has them not yet.

    Args:
      version_dir: RUN/index/VERSION.
      corpus_fingerprint: of the corpus in use; None accepts any.
      embed_dim: of the retriever in use; None accepts any.
      num_documents: of the corpus in use; None accepts any.
      shards: numbers of the shards that this process will load; None for all.

    Returns:
      The manifest.

    Raises:
      IndexRefused: naming the file or field, expected and got, and the remedy.
    """
    manifest = read_manifest(version_dir)
    for name, expected, got in (
        ("corpus_fingerprint", corpus_fingerprint, manifest.corpus_fingerprint),
        ("num_documents", num_documents, manifest.num_documents),
        ("embed_dim", embed_dim, manifest.embed_dim),
    ):
        if expected is not None and expected != got:
            raise IndexRefused(
                f"{version_dir}: expected {name} {expected}, got {got}; the index was built from another "
                f"{'retriever' if name == 'embed_dim' else 'corpus'}: rebuild it with the embed job"
            )
    chosen = [manifest.shards[number] for number in _shard_numbers(manifest, shards)]
    for shard in chosen:  # sizes first: most damage shows without reading anything
        for file in shard.files:
            check_size(as_place(version_dir), file)
    for shard in chosen:
        for file in shard.files:
            check_content(as_place(version_dir), file)
    _remove_old_copies(as_place(version_dir))
    return manifest


def _remove_old_copies(version_dir: Place) -> None:
    """Removes local copies of earlier versions that the object store has no more; who has mapped one keeps it."""
    if isinstance(version_dir, RemotePath):
        published = list_versions(version_dir.parent)
        for version in _directories(copy_of(version_dir.parent)):
            if version < int(version_dir.name) and version not in published:
                shutil.rmtree(copy_of(version_dir.parent / f"{version:08d}"), ignore_errors=True)


def _shard_numbers(manifest: Manifest, shards: Collection[int] | None) -> list[int]:
    if shards is None:
        return list(range(len(manifest.shards)))
    unknown = [number for number in shards if not 0 <= number < len(manifest.shards)]
    if unknown or not shards:
        raise ValueError(f"expected shards among 0 … {len(manifest.shards) - 1}, got {sorted(shards)}")
    return sorted(set(shards))


def shards_of_host(manifest: Manifest, host: int, num_hosts: int) -> list[int]:
    """The shards that host `host` of `num_hosts` holds: consecutive ones, about the same number on every host.

    Raises:
      ValueError: when there are fewer shards than hosts.
    """
    if num_hosts > len(manifest.shards):
        raise ValueError(
            f"{num_hosts} hosts cannot share an index of {len(manifest.shards)} shards; build it with a smaller "
            "shard_bytes, or let every host hold all of it"
        )
    bounds = [len(manifest.shards) * part // num_hosts for part in (host, host + 1)]
    return list(range(*bounds))


def load_version(
    version_dir: str | os.PathLike[str],
    *,
    backend: Backend | None = None,
    shards: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    manifest: Manifest | None = None,
    on_shard: Callable[[int, int], None] | None = None,
    num_threads: int | None = None,
    apart: bool = False,
    exact: ExactSettings | None = None,
    spare: SpareRows | None = None,
) -> Index:
    """Loads a version shard by shard; beside what has been loaded there is never more than one shard in memory.

    Loading a ScaNN shard holds the GIL for a time that grows with the shard's bytes (docs/index_life_cycle.md has
    figures); between two shards other threads run, and with `apart` all the time.

    Args:
      version_dir: RUN/index/VERSION.
      backend: "scann", "exact" or "ball_tree"; None for the one that it was built for. The last two work for every
        version.
      shards: numbers of the shards to load, in order; None for all.
      mesh: devices that the exact index is sharded over.
      manifest: what `verify` returned; without it the version is verified here.
      on_shard: called after each shard (exact: each chunk; ball tree: each level too) with how many are loaded and how
        many there are. Raise in it to give up, sleep in it to go slowly.
      num_threads: of ScaNN's search, see `ScannIndex`.
      apart: ScaNN's shards are loaded and searched by a process of their own, `ScannProcess`.
      exact: settings of the exact index; None for those that the version was built for, else the default ones.
      spare: whoever serves one version after the other keeps it, and gives it to every load: the exact index is written
        into the buffers of one that has ended.

    Raises:
      IndexRefused: for a version that cannot be served.
    """
    manifest = manifest or verify(version_dir, shards=shards)
    backend = backend or manifest.backend
    numbers = _shard_numbers(manifest, shards)
    if backend != "scann":
        if not _are_consecutive(numbers):
            raise ValueError(f"backend {backend!r} needs consecutive shards, got {list(numbers)}")
        blocks = [
            map_embeddings(as_place(version_dir), manifest.shards[number], manifest.embed_dim) for number in numbers
        ]
        first = manifest.shards[numbers[0]].first_document
        if backend == "ball_tree":
            tree = _built_for(as_place(version_dir), manifest, "ball_tree", BallTreeSettings)
            return BallTreeIndex(blocks, leaf_size=tree.leaf_size, first_document=first, on_block=on_shard)
        chosen = exact or _built_for(as_place(version_dir), manifest, "exact", ExactSettings)
        settings = dataclasses.asdict(chosen)
        return ExactIndex(blocks, mesh=mesh, first_document=first, spare=spare, on_block=on_shard, **settings)
    if manifest.backend != "scann":
        raise IndexRefused(
            f"{version_dir} was built for the backend {manifest.backend!r} and holds no ScaNN assets; "
            "load it as 'exact', or rebuild it with IndexSettings.backend = 'scann'"
        )
    rows = _rows(as_place(version_dir), manifest, numbers) if _are_consecutive(numbers) else None
    if apart:
        from realm_jax.retrieval.scann_process import ScannProcess

        return ScannProcess(copy_of(as_place(version_dir)), manifest, numbers, rows, num_threads)
    from realm_jax.retrieval.scann_index import ScannIndex

    loaded = []
    for done, number in enumerate(numbers):
        loaded.append(
            load_scann_shard(as_place(version_dir), manifest.shards[number], manifest.embed_dim, manifest.parameters)
        )
        if on_shard is not None:
            on_shard(done + 1, len(numbers))
    return ScannIndex(loaded, num_threads, rows)


def _are_consecutive(numbers: Sequence[int]) -> bool:
    return list(numbers) == list(range(numbers[0], numbers[-1] + 1))


def _rows(version_dir: Place, manifest: Manifest, numbers: Sequence[int]) -> EmbeddingRows:
    blocks = [map_embeddings(version_dir, manifest.shards[number], manifest.embed_dim) for number in numbers]
    return EmbeddingRows(blocks, manifest.shards[numbers[0]].first_document)


def _built_for(version_dir: Place, manifest: Manifest, backend: Backend, kind: type[SettingsT]) -> SettingsT:
    """The settings that a version was built for, or the default ones if it was built for another backend."""
    try:
        return kind(**manifest.parameters) if manifest.backend == backend else kind()
    except (TypeError, ValueError) as error:
        raise IndexRefused(f"{version_dir / MANIFEST}: parameters of {backend!r}: {error}; {REBUILD}") from error


def publish(index_dir: str | os.PathLike[str], manifest: Manifest) -> Place:
    """Makes a version visible by one rename, after everything that it names is on disk.

    Publishing the same version with the same content again does nothing.

    Returns:
      The version's directory.

    Raises:
      ValueError: when the version exists with other content; what is published is never changed.
      IndexRefused: when a file that the manifest names is missing or has another size.
    """
    directory = version_dir(index_dir, manifest.version)
    if (directory / MANIFEST).exists():
        published = read_manifest(directory)
        if dataclasses.replace(manifest, built_at=published.built_at, build_secs=published.build_secs) == published:
            return directory
        raise ValueError(
            f"index version {manifest.version} is already published in {directory} with other content; a version is "
            "never changed: use a new snapshot step, or another run directory"
        )
    for shard in manifest.shards:
        for file in shard.files:
            check_size(directory, file)
    flush(directory)
    write_json_atomically(directory / MANIFEST, manifest.to_json())
    flush(directory)
    flush(as_place(index_dir))
    return directory


def withdraw_after(index_dir: str | os.PathLike[str], step: int) -> list[int]:
    """Removes versions of later snapshots than `step`, from which a run resumes: it will make these snapshots anew."""
    later = [version for version in list_versions(index_dir) if version > step]
    for version in later:
        withdraw(index_dir, version)
    return later


def withdraw(index_dir: str | os.PathLike[str], version: int) -> None:
    """Removes a version that must not be served: it is of a snapshot that the run has forgotten. Its manifest goes first."""
    remove(version_dir(index_dir, version), MANIFEST)


def retire(index_dir: str | os.PathLike[str], keep: Collection[int], newest: int = 2) -> list[int]:
    """Removes old versions: all published ones but the `newest` last and those in `keep`.

    A version's manifest goes first, so that a reader sees a whole version or none; what an interrupted retirement or
    build left behind of versions older than the newest is removed too. A reader that has loaded a version no longer
    needs its files; one that is loading gets `IndexRefused` and takes the newest.

    Args:
      index_dir: RUN/index.
      keep: versions in use, about to be used, or named by a checkpoint.
      newest: how many of the newest versions stay in any case.

    Returns:
      The versions retired, ascending.
    """
    if newest < 1:
        raise ValueError(f"at least the newest version must stay, got newest={newest}")
    published = list_versions(index_dir)
    staying = set(keep) | set(published[-newest:])
    retired = [version for version in published if version not in staying]
    for version in retired:
        directory = version_dir(index_dir, version)
        (directory / MANIFEST).unlink(missing_ok=True)
        flush(directory)
    leftovers = [v for v in _directories(index_dir) if published and v < published[-1] and v not in staying]
    for version in leftovers:
        remove(version_dir(index_dir, version))
    if retired:
        logger.info("retired index versions %s", ", ".join(map(str, retired)))
    return retired
