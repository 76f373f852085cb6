"""A fake of Google's object store in a local folder: `gs://` paths reach it through fsspec, and tensorstore over HTTP.

What it has in common with the real one, and a file system has not: an object appears whole when it is closed, or not at
all; there is no rename, no appending and no folder (a prefix is there while objects are); a listing may be remembered, as
gcsfs and s3fs do unless they are told not to. `s3://` paths reach the same folder.
"""

import contextlib
import datetime
import fcntl
import http.server
import io
import json
import os
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem
from orbax.checkpoint._src.path import gcs_utils

from realm_jax.storage import as_place, put

ROOT = "TESTS_OBJECT_STORE"  # environment variables, which child processes inherit
CACHE = "REALM_JAX_CACHE"


class Objects:
    """The objects, one file each, in one folder. May be used by several processes."""

    def __init__(self, root: Path):
        self.root, self.partial = root / "objects", root / "partial"
        for folder in (self.root, self.partial):
            folder.mkdir(parents=True, exist_ok=True)

    def file(self, key: str) -> Path:
        return self.root / key.replace("/", "|")

    def put(self, key: str, content: bytes, generation: int | None = None) -> None:
        """Writes an object at once; with a generation only if that is the one that is there (0: none).

        Raises:
          FileExistsError: another generation is there.
        """
        partial = self.partial / uuid.uuid4().hex
        partial.write_bytes(content)
        with (self.partial / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if generation is not None and generation != self.generation(key):
                raise FileExistsError(key)
            partial.replace(self.file(key))

    def generation(self, key: str) -> int:
        try:
            return self.file(key).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def keys(self, prefix: str) -> list[str]:
        found = (name.replace("|", "/") for name in os.listdir(self.root))
        return sorted(key for key in found if key.startswith(prefix))


class FakeObjectStore(AbstractFileSystem):
    """The fsspec side: reads, whole writes, server-side copies, listings, removals."""

    protocol = ("gs", "gcs", "s3")

    @property
    def objects(self) -> Objects:
        return Objects(Path(os.environ[ROOT]))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if self.objects.file(path).exists():
            return self._described(path)
        if not self.objects.keys(f"{path}/"):
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def _described(self, key: str) -> dict[str, Any]:
        status = self.objects.file(key).stat()
        return {"name": key, "size": status.st_size, "type": "file", "generation": str(status.st_mtime_ns)}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found = self._ls_from_cache(path)
        if found is None:
            names = {key.removeprefix(f"{path}/").split("/")[0] for key in self.objects.keys(f"{path}/")}
            if not names:
                return [self.info(path)] if detail else [self.info(path)["name"]]
            found = [self.info(f"{path}/{name}") for name in sorted(names)]
            self.dircache[path] = found
        return found if detail else [entry["name"] for entry in found]

    def modified(self, path: str) -> datetime.datetime:
        seconds = self.objects.file(self._strip_protocol(path)).stat().st_mtime
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            return self.objects.file(path).open("rb")
        if mode == "wb":
            return _Upload(self.objects, path)
        raise NotImplementedError(f"an object store cannot open {path} as {mode!r}")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.objects.put(self._strip_protocol(path), value, 0 if mode == "create" else None)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        content = self.objects.file(self._strip_protocol(path1)).read_bytes()
        self.objects.put(self._strip_protocol(path2), content)

    def _rm(self, path: str) -> None:
        file = self.objects.file(self._strip_protocol(path))
        if file.exists():  # else a prefix, which goes with its objects
            file.unlink()

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def rmdir(self, path: str) -> None:
        pass

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"an object store cannot rename {path1} to {path2}")

    rename = move = mv_file = mv


class _Upload(io.BytesIO):
    """What is written, put at once when it is closed; a `with` block that fails puts nothing."""

    def __init__(self, objects: Objects, key: str):
        super().__init__()
        self._put = lambda: objects.put(key, self.getvalue())

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self._put = lambda: None
        self.close()

    def close(self) -> None:
        if not self.closed:
            self._put()
        super().close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """As much of the JSON interface as tensorstore asks for."""

    protocol_version = "HTTP/1.1"
    objects: Objects

    def do_GET(self) -> None:
        path, query = self._asked()
        bucket, _, key = path.removeprefix("/storage/v1/b/").partition("/o")
        if not key:
            found = [
                name.removeprefix(f"{bucket}/") for name in self.objects.keys(f"{bucket}/{query.get('prefix', '')}")
            ]
            return self._answer(200, json.dumps({"items": [self._described(bucket, name) for name in found]}).encode())
        key = bucket + key
        try:
            content, generation = self.objects.file(key).read_bytes(), self.objects.generation(key)
        except FileNotFoundError:
            return self._answer(404)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._answer(412)
        headers = {"x-goog-generation": str(generation)}
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            total = len(content)
            start, stop = (
                (total - int(last), total) if not first else (int(first), min(int(last or total), total - 1) + 1)
            )
            content = content[start:stop]
            return self._answer(206, content, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{total}"})
        return self._answer(200, content, headers)

    def do_POST(self) -> None:
        path, query = self._asked()
        bucket = path.removeprefix("/upload/storage/v1/b/").removesuffix("/o")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key, wanted = f"{bucket}/{query['name']}", query.get("ifGenerationMatch")
        try:
            self.objects.put(key, content, None if wanted is None else int(wanted))
        except FileExistsError:
            return self._answer(412)
        return self._answer(200, json.dumps(self._described(bucket, query["name"])).encode())

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        bucket, _, key = path.removeprefix("/storage/v1/b/").partition("/o/")
        self.objects.file(f"{bucket}/{key}").unlink(missing_ok=True)
        self._answer(204)

    def _described(self, bucket: str, name: str) -> dict[str, str]:
        key = f"{bucket}/{name}"
        size, generation = self.objects.file(key).stat().st_size, self.objects.generation(key)
        return {"name": name, "bucket": bucket, "size": str(size), "generation": str(generation)}

    def _asked(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        return urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query))

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def use(root: Path, cache: Path | None = None) -> Objects:
    """Lets `gs://` and `s3://` of this process, and of those that call this too, reach the store in a folder."""
    os.environ |= {ROOT: str(root), CACHE: str(cache or root / "cache")}
    for protocol in FakeObjectStore.protocol:
        fsspec.register_implementation(protocol, FakeObjectStore, clobber=True)
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: False  # asks Google's own library
    return Objects(root)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Objects]:
    """`use`, and the store over HTTP, for this process and those that it starts. Once a process: tensorstore looks once."""
    objects = use(root)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"objects": objects}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
    }
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()


def copy_in(folder: Path, place: str) -> None:
    """Uploads all files of a folder."""
    remote = as_place(place)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        put(remote / file.relative_to(folder).as_posix(), file.read_bytes())
