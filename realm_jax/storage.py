"""Places on object stores (`gs://`, `s3://`) beside local ones: all that differs between the two.

An object appears whole or not at all, but there is no rename, no appending, no folder and no lock. So what consists of
several objects is published by the record that names them, which is written last and removed first: manifest.json,
shard.json, snapshot.json, corpus.json. What must be a file, to be memory-mapped say, is downloaded once, into the cache.

    CACHE/copies/gs/BUCKET/KEY     a local copy of gs://BUCKET/KEY
    CACHE/stamps/gs/BUCKET/KEY     which state of the object it is of
    CACHE/scratch/gs/BUCKET/KEY    what is being made, to be uploaded to gs://BUCKET/KEY
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
from etils.epath.gpath import PosixGPath

logger = logging.getLogger(__name__)

EXTRAS = {"gs": "gcs", "s3": "s3"}
"""What to install for each scheme."""

CACHE_VARIABLE = "REALM_JAX_CACHE"
STAMPS = ("generation", "ETag", "etag", "md5Hash", "LastModified", "mtime")
"""What tells two states of an object apart, in Google's words and in Amazon's."""

# A process that waits for what another one writes must not be answered from its own memory of a listing.
for _protocol in ("gs", "gcs", "s3"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)
# Else epath, and Orbax with it, goes through TensorFlow wherever that happens to be installed.
os.environ.setdefault("EPATH_USE_TF", "false")


class RemotePath(PosixGPath):
    """A path on an object store, with pathlib's methods. Whatever its library raises arrives as an OSError."""

    def info(self) -> dict[str, Any]:
        """What the store says of an object, or of a prefix that has some."""
        return dict(self.ask("info"))

    def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Calls a method of the fsspec file system, with this path first. Errors: `_errors_of`."""
        with _errors_of(self):
            return getattr(_file_system(self), method)(str(self), *arguments, **keywords)

    def exists(self) -> bool:
        return bool(self._kind())

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str:
        try:
            return str(self.info()["type"])
        except FileNotFoundError:
            return ""

    def read_bytes(self) -> bytes:
        return bytes(self.ask("cat_file"))

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors)

    def iterdir(self) -> Iterator["RemotePath"]:
        names = (name.rstrip("/").rpartition("/")[2] for name in self.ask("ls", detail=False))
        return (self / name for name in names if name != self.name)

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        scheme = str(self).partition("://")[0]
        return (type(self)(f"{scheme}://{name}") for name in (self / pattern).ask("glob"))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        try:
            self.ask("rm", recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a prefix is there while objects are."""

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Itself. epath would put the working directory in front."""
        return self

    absolute = resolve


Place = Path | RemotePath


def _file_system(place: RemotePath) -> Any:
    scheme = str(place).partition("://")[0]
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise ValueError(
            f"{place}: {scheme}:// needs a library that is not installed ({error}); pip install 'realm_jax[{EXTRAS[scheme]}]'"
        ) from error


@contextlib.contextmanager
def _errors_of(place: RemotePath) -> Iterator[None]:
    """Raises whatever goes wrong as an OSError, a FileNotFoundError where nothing lies; a ValueError without the library."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # each library has its own kinds
        said = f"{type(error).__name__}: {error}; look at the bucket's name, the credentials and the network"
        raise OSError(errno.EIO, said, str(place)) from error


def is_remote(place: str | os.PathLike[str]) -> bool:
    return os.fspath(place).startswith(tuple(f"{scheme}://" for scheme in EXTRAS))


def as_place(place: str | os.PathLike[str]) -> Place:
    """A local path as it is, or a path on an object store. `Path` alone would make gs:/bucket of gs://bucket.

    Raises:
      ValueError: another scheme, a bucket without a name, or a store whose library is not installed.
    """
    if isinstance(place, Path | RemotePath):
        return place
    text = os.fspath(place)
    if not is_remote(text):
        if re.match(r"[A-Za-z][\w+.-]*://", text):
            raise ValueError(f"expected a local path, gs://BUCKET/… or s3://BUCKET/…, got {text}")
        return Path(text)
    if not text.partition("://")[2].strip("/") or ".." in text.split("/"):
        raise ValueError(f"expected SCHEME://BUCKET/…, without '..', got {text}")
    remote = RemotePath(text)
    _file_system(remote)
    return remote


def require_local(place: str | os.PathLike[str], what: str) -> None:
    """Refuses an object store where only files will do.

    Raises:
      ValueError: with the remedy.
    """
    if is_remote(place):
        raise ValueError(
            f"{what}: expected a local path, got {place}; use one, and copy what is made to the bucket afterwards, "
            "or mount the bucket as a file system"
        )


def size_of(place: Place) -> int:
    return int(place.info()["size"]) if isinstance(place, RemotePath) else place.stat().st_size


def modified_at(place: Place) -> float:
    """In unix seconds."""
    return float(place.ask("modified").timestamp()) if isinstance(place, RemotePath) else place.stat().st_mtime


def put(place: RemotePath, content: bytes) -> None:
    """Writes an object. Who reads it sees the old content or the new one."""
    place.ask("pipe_file", content)


def read_ranges(folder: RemotePath, names: Sequence[str], starts: Sequence[int], num_bytes: int) -> list[bytes]:
    """Parts of objects, `num_bytes` from each start, in one go where the library can."""
    with _errors_of(folder):
        paths = [str(folder / name) for name in names]
        stops = [start + num_bytes for start in starts]
        found: list[bytes] = _file_system(folder).cat_ranges(paths, list(starts), stops, on_error="raise")
        return found


def objects(place: RemotePath) -> dict[str, str]:
    """All objects below a prefix, by their names within it, with what tells their states apart."""
    return {name: _stamp(info) for name, info in _find(place).items()}


def _find(place: RemotePath) -> dict[str, dict[str, Any]]:
    prefix = str(place).partition("://")[2].rstrip("/") + "/"
    found = place.ask("find", detail=True)
    # an object whose name ends in a slash is some tool's idea of a folder
    return {
        name.removeprefix(prefix): info
        for name, info in found.items()
        if name.startswith(prefix) and not name.endswith("/")
    }


def _stamp(info: dict[str, Any]) -> str:
    return f"{info['size']} {next((info[name] for name in STAMPS if info.get(name)), '')}"


def cache_dir() -> Path:
    """$REALM_JAX_CACHE, else realm_jax in $XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realm_jax"


def copy_of(place: Place) -> Path:
    """Where the local copy of a place lies, fetched or not; a local place is its own."""
    return _in_cache("copies", place) if isinstance(place, RemotePath) else place


def original_of(copy: Path) -> Place:
    """The place that a path of the cache is the local copy of; any other path is its own original."""
    copies = cache_dir() / "copies"
    if not copy.is_relative_to(copies):
        return copy
    scheme, *key = copy.relative_to(copies).parts
    return RemotePath(f"{scheme}://{'/'.join(key)}")


def scratch_of(place: Place) -> Path:
    """Where what belongs to a place is made, to be uploaded; a local place itself."""
    return _in_cache("scratch", place) if isinstance(place, RemotePath) else place


def _in_cache(kind: str, place: RemotePath) -> Path:
    """Raises OSError for an object whose name would lie elsewhere: a bucket may hold any name."""
    scheme, _, key = str(place).partition("://")
    if scheme not in EXTRAS or ".." in key.split("/") or key.startswith("/") or "\x00" in key:
        raise OSError(errno.EINVAL, "the name of an object leads out of its folder; remove it", str(place))
    return cache_dir() / kind / scheme / key


def fetch(place: str | os.PathLike[str]) -> Path:
    """The local copy of a file or of all files of a folder, downloaded where it is not there yet or of another state.

    Raises:
      FileNotFoundError: nothing lies there. Local places are not looked at.
      OSError: what cannot be downloaded.
    """
    found = as_place(place)
    if not isinstance(found, RemotePath):
        return found
    return fetch_file(found) if found.is_file() else _fetch_folder(found)


def fetch_file(place: Place) -> Path:
    """`fetch` of what is one object."""
    return _fetch_object(place, place.info()) if isinstance(place, RemotePath) else place


def _fetch_folder(place: RemotePath) -> Path:
    found, copy = _find(place), copy_of(place)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "nothing lies there", str(place))
    for name, info in found.items():
        _fetch_object(place / name, info)
    for path in copy.rglob("*"):
        if path.is_file() and path.relative_to(copy).as_posix() not in found and not path.name.endswith(PARTIAL):
            path.unlink(missing_ok=True)
    return copy


PARTIAL = ".partial"


def _fetch_object(place: RemotePath, info: dict[str, Any]) -> Path:
    copy, stamp = copy_of(place), _stamp(info)
    with contextlib.suppress(FileNotFoundError):
        if copy.stat().st_size == info["size"] and _in_cache("stamps", place).read_text() == stamp:
            return copy
    if copy.is_dir():  # an object where there were objects below
        shutil.rmtree(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{copy.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        place.ask("get_file", str(partial))
        if partial.stat().st_size != info["size"]:
            got = partial.stat().st_size
            raise OSError(errno.EIO, f"expected {info['size']} bytes, got {got}; it was replaced meanwhile", str(place))
        partial.replace(copy)  # who has mapped an earlier state keeps that
        _note_stamp(place, stamp)
    finally:
        partial.unlink(missing_ok=True)
    return copy


def _note_stamp(place: RemotePath, stamp: str) -> None:
    path = _in_cache("stamps", place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stamp)


def upload(file: Path, place: RemotePath) -> None:
    """Uploads a file of a scratch folder, which then is the local copy."""
    upload_copy(file, place)
    copy = copy_of(place)
    copy.parent.mkdir(parents=True, exist_ok=True)
    file.replace(copy)
    _note_stamp(place, _stamp(place.info()))


def link_or_copy(file: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """A second name for a file that is never changed; a copy where there are no links, or to another file system."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def upload_copy(file: Path, place: RemotePath) -> None:
    """Uploads a file, which stays where it is."""
    with _errors_of(place):
        _file_system(place).put_file(str(file), str(place))


def publish_folder(place: Place, record: str) -> None:
    """Uploads the scratch folder of a place, `record` after all other files.

    What else lies in the same folders there goes, but not what lies beside them.

    Nothing happens to a local place: it is its own scratch folder.
    """
    if not isinstance(place, RemotePath):
        return
    scratch = scratch_of(place)
    names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    (place / record).unlink(missing_ok=True)
    for folder in (path for path in scratch.iterdir() if path.is_dir()):
        for name in objects(place / folder.name):
            if not (folder / name).exists():
                (place / folder.name / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == record):
        upload(scratch / name, place / name)
    shutil.rmtree(scratch, ignore_errors=True)


def clear_scratch(place: Place) -> None:
    """Empties the scratch folder of a place of what an earlier process left there; a local place stays as it is."""
    if isinstance(place, RemotePath):
        shutil.rmtree(scratch_of(place), ignore_errors=True)


def remove(place: Place, record: str | None = None) -> None:
    """Removes a folder and its local copy, its record first. What cannot be removed, or is not there, is left."""
    if record is not None:
        (place / record).unlink(missing_ok=True)
    if isinstance(place, RemotePath):
        with contextlib.suppress(OSError):
            place.rmtree(missing_ok=True)
    shutil.rmtree(copy_of(place), ignore_errors=True)  # of what is mapped the content stays


def move_folder(place: Place, target: Place) -> None:
    """Renames a folder; on an object store it copies its objects there, then removes them."""
    if not isinstance(place, RemotePath):
        place.rename(target)
        return
    for name in objects(place):
        with _errors_of(place):
            _file_system(place).cp_file(str(place / name), str(target / name))
    remove(place)
