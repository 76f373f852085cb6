"""What an index version says of itself: the manifest, its shards and their files."""

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

from realm_jax.storage import Place, fetch_file, is_remote, size_of
from realm_jax.typed import check_fields

Backend = Literal["scann", "exact", "ball_tree"]

CHECKSUM = "sha256"
"""Name of the manifest's own checksum among its fields."""

REBUILD = "remove the version's directory and let the embed job build a new one"
"""The remedy for a damaged version."""


class IndexRefused(ValueError):  # noqa: N818 - it says what happened to the index
    """An index version that must not be served: incomplete, damaged, or of another corpus or model."""


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """A file of a shard: its path within the version, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_fields(self)
        parts = Path(self.path).parts
        if not parts or ".." in parts or Path(self.path).is_absolute() or not self.path.isprintable():
            raise ValueError(f"a shard's file must lie within its version, got {self.path!r}")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: documents `first_document` … `first_document + count - 1` and the files that hold them.

    Attributes:
      name: of its folder.
      first_document: the first of its documents.
      count: how many there are.
      files: in the folder.
      snapshot_step: step of the retriever that embedded it; None for the version's own, as it is without rolling refresh.
    """

    name: str
    first_document: int
    count: int
    files: tuple[ShardFile, ...]
    snapshot_step: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not re.fullmatch(r"shard-\d{5,}-of-\d{5,}", self.name):
            raise ValueError(f"a shard is named shard-NNNNN-of-NNNNN, got {self.name!r}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
      version: its name as a number, the snapshot step.
      snapshot_step: step of the retriever that embedded it.
      snapshot_checksum: SHA-256 of that retriever's parameters.
      corpus_fingerprint: of the corpus that was embedded.
      num_documents: of the whole version.
      embed_dim: width of an embedding.
      dtype: of the stored embeddings.
      backend: what `load_version` makes of it unless told otherwise.
      parameters: of the backend: ScannSettings, which every shard was built with, ExactSettings or BallTreeSettings.
      shards: in the order of their documents, together all of them.
      search_recall: share of exact search's best documents that this version finds, on a sample.
      built_at: when it was published, in seconds since 1970.
      build_secs: how long the build took, without what was left over from an interrupted one.
    """

    version: int
    snapshot_step: int
    snapshot_checksum: str
    corpus_fingerprint: str
    num_documents: int
    embed_dim: int
    dtype: Literal["float32"]
    backend: Backend
    parameters: dict[str, Any]
    shards: tuple[Shard, ...]
    search_recall: float
    built_at: float
    build_secs: float

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("search_recall", "built_at", "build_secs"):
            if not -sys.float_info.max <= getattr(self, name) <= sys.float_info.max:  # whole numbers may be larger
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        expected = 0
        for shard in self.shards:
            if shard.first_document != expected or shard.count < 1:
                raise ValueError(
                    f"shard {shard.name} must begin with document {expected} and hold some, "
                    f"got first_document {shard.first_document}, count {shard.count}"
                )
            expected += shard.count
        if any(step > self.version for step in self.shard_steps):
            raise ValueError(f"version {self.version} has a shard of a later snapshot: {max(self.shard_steps)}")
        if expected != self.num_documents or not expected:
            raise ValueError(f"the shards hold {expected} documents, num_documents is {self.num_documents}")

    @property
    def shard_steps(self) -> tuple[int, ...]:
        """Step of the retriever that embedded each shard."""
        return tuple(self.version if shard.snapshot_step is None else shard.snapshot_step for shard in self.shards)

    @property
    def mean_step(self) -> float:
        """The same over documents."""
        parts = zip(self.shard_steps, self.shards, strict=True)
        return sum(step * shard.count for step, shard in parts) / self.num_documents

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, and a checksum of them."""
        return signed(json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False)))

    @classmethod
    def from_json(cls, content: Any) -> "Manifest":
        """The reverse of `to_json`.

        Raises:
          ValueError: for missing or unknown fields, for values of a wrong type, and for others than were written.
        """
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
        try:
            expected = content[CHECKSUM]
            fields = {name: value for name, value in content.items() if name != CHECKSUM}
            shards = tuple(shard_from_json(shard) for shard in fields["shards"])
            manifest = cls(**{**fields, "shards": shards})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks a field or has an unknown one ({error})") from error
        if expected != (got := signed(fields)[CHECKSUM]):
            raise ValueError(f"it is corrupt: expected SHA-256 {str(expected)[:16]}…, got {got[:16]}…")
        return manifest


def signed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with the SHA-256 of them; what they were signed with before does not count."""
    bare = {name: value for name, value in fields.items() if name != CHECKSUM}
    return {**bare, CHECKSUM: hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def shard_from_json(content: Any) -> Shard:
    """The reverse of `dataclasses.asdict`."""
    return Shard(**{**content, "files": tuple(ShardFile(**file) for file in content["files"])})


def check_size(directory: Place, file: ShardFile) -> None:
    try:
        size = size_of(directory / file.path)
    except OSError as error:
        _raise_if_passing(directory, error)
        raise IndexRefused(f"{directory / file.path} is missing ({error.strerror}); {REBUILD}") from error
    if size != file.bytes:
        raise IndexRefused(f"{directory / file.path}: expected {file.bytes} bytes, got {size}; {REBUILD}")


def check_content(directory: Place, file: ShardFile) -> None:
    """Checks the SHA-256 of a file, on an object store that of its local copy, which is fetched for it."""
    try:
        digest = sha256_of(fetch_file(directory / file.path))
    except OSError as error:
        _raise_if_passing(directory, error)
        raise IndexRefused(f"{directory / file.path} cannot be read ({error.strerror}); {REBUILD}") from error
    if digest != file.sha256:
        raise IndexRefused(
            f"{directory / file.path} is corrupt: expected SHA-256 {file.sha256[:16]}…, got {digest[:16]}…; {REBUILD}"
        )


def _raise_if_passing(directory: Place, error: OSError) -> None:
    """Raises what says nothing of the version: a network that fails now may be back at the next look."""
    if is_remote(directory) and not isinstance(error, FileNotFoundError):
        raise error


def sha256_of(path: Path) -> str:
    # in pieces: hashing a piece releases the GIL, and no file is in memory as a whole
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
