"""Reading files that may be compressed, damaged or very large, without trusting their names."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

from realm_jax.corpus.sources.article import (
    DAMAGED_FILE,
    HIDDEN_FILE,
    NOT_UTF8,
    OVER_COMPRESSED,
    OVER_LONG,
    OWN_FOLDER,
    OnDrop,
)

CHUNK_BYTES = 1 << 20
# Text is compressed to a fiftieth at best; a file made to fill disk and memory, to a thousandth and less.
_MAX_RATIO, _UNCHECKED_BYTES = 200, 64 << 20
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def open_decompressed(path: Path) -> io.BufferedReader:
    """Opens a plain, gzip, bzip2 or xz file, told apart by their first bytes."""
    raw = path.open("rb")
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _Owning(gzip.GzipFile(fileobj=raw), raw)
    if magic.startswith(b"BZh"):
        return _Owning(bz2.BZ2File(raw), raw)
    if magic == b"\xfd7zXZ\x00":
        return _Owning(lzma.LZMAFile(raw), raw)
    return raw


class _Owning(io.BufferedReader):
    """A buffered reader that also closes the file under a decompressor (which leaves files that it did not open)."""

    def __init__(self, stream: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, raw: io.BufferedReader):
        super().__init__(cast(io.RawIOBase, stream), CHUNK_BYTES)
        self._file = raw

    def close(self) -> None:
        super().close()
        self._file.close()


def is_damage(error: BaseException) -> bool:
    """Whether an error while reading says that the content of the file is broken, not the disk or the network."""
    if isinstance(error, EOFError | zlib.error | lzma.LZMAError):
        return True
    return isinstance(error, OSError) and error.errno is None


def read_chunks(path: Path, on_drop: OnDrop) -> Iterator[bytes]:
    """The decompressed content in pieces; what comes after damage is lost, and counted once.

    So is what a compressed file holds beyond 64 MiB and 200 times its size.
    """
    with open_decompressed(path) as stream:
        limit = max(_UNCHECKED_BYTES, _MAX_RATIO * path.stat().st_size) if isinstance(stream, _Owning) else None
        num_bytes = 0
        while True:
            try:
                # Not read(n), which would lose what it had gathered when the damage is met.
                chunk = stream.read1(CHUNK_BYTES)
            except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                if not is_damage(error):
                    raise
                on_drop(DAMAGED_FILE)
                return
            if not chunk:
                return
            num_bytes += len(chunk)
            if limit is not None and num_bytes > limit:
                on_drop(OVER_COMPRESSED)
                return
            yield chunk


def read_lines(path: Path, on_drop: OnDrop, max_line_bytes: int) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) without their ends; lines that are too long or not UTF-8 are counted and left out.

    A line is held in memory only up to `max_line_bytes`.  In a file cut short, the cut line goes with the damage.
    """
    for number, line in _raw_lines(path, on_drop, max_line_bytes):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            on_drop(NOT_UTF8)


def _raw_lines(path: Path, on_drop: OnDrop, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    damaged = False

    def note_damage(cause: str) -> None:
        nonlocal damaged
        damaged = True
        on_drop(cause)

    number, rest, skipping = 0, b"", False
    for chunk in read_chunks(path, note_damage):
        if number == 0 and not rest:
            chunk = chunk.removeprefix(_BOM)
        lines = chunk.split(b"\n")
        lines[0] = rest + lines[0]
        rest = lines.pop()
        for line in lines:
            number += 1
            if skipping or len(line) > max_line_bytes:
                skipping = False
                on_drop(OVER_LONG)
            else:
                yield number, line.removesuffix(b"\r")
        if len(rest) > max_line_bytes:
            rest, skipping = b"", True
    if skipping:
        on_drop(OVER_LONG)
    elif rest and not damaged:
        yield number + 1, rest.removesuffix(b"\r")


def list_files(path: Path, on_drop: OnDrop, leave_out: Collection[Path] = ()) -> list[Path]:
    """The file itself, or all files below a directory in sorted order; hidden ones (and hidden folders) are counted.

    Folders below `path` that are one of `leave_out` are counted and not looked into.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"no file or directory at {path}; expected the text to build a corpus from")
    found = []
    left_out = {folder.resolve() for folder in leave_out}
    for folder, names, files in os.walk(path):
        for hidden in [name for name in names if name.startswith(".")]:
            names.remove(hidden)
            on_drop(HIDDEN_FILE)
        for own in [name for name in names if (Path(folder) / name).resolve() in left_out]:
            names.remove(own)
            on_drop(OWN_FOLDER)
        names.sort()
        for name in sorted(files):
            if name.startswith("."):
                on_drop(HIDDEN_FILE)
            elif (Path(folder) / name).is_file():  # not a pipe, a socket or a dangling link
                found.append(Path(folder) / name)
    return found


def first_bytes(path: Path, count: int = 1 << 16) -> bytes:
    """The beginning of the decompressed content, without a byte order mark; of a damaged file, what there is."""
    head = b""
    for chunk in read_chunks(path, lambda cause: None):
        head += chunk
        if len(head) >= count:
            break
    return head[:count].removeprefix(_BOM)


def looks_binary(head: bytes | bytearray) -> bool:
    """Whether the beginning of a file cannot be text: it holds NUL bytes, or is UTF-16."""
    return b"\x00" in head or head.startswith(_UTF16_BOMS)
