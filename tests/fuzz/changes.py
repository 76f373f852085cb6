"""Inputs as a valid file and a few changes: small to print, to shrink and to repeat."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

KINDS = ("flip", "cut", "drop", "repeat", "insert", "graft", "field", "field", "field", "rename", "pack")
MAX_BYTES = 1 << 17
_DEEP = "\x01deep\x01"  # stands for more brackets than json writes
_LEAVES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**18, 10**400, 0.5, float("inf"), float("nan"), "", " ", "\x00", "\ud800", "a\nb", "../../out",
    "/etc/passwd", "a/../../out", "..", "out\x00side", "x" * 3000, [], {}, [[]], [None], {"a": {}}, ["", 1], _DEEP,
    "<script>alert(1)</script>", "(" * 400, "9" * 5000, "\u202e\u0301", "1e999", "True",
)  # fmt: skip
WORDS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\t", b'"', b"\\", b"\\u0000", b"\\ud800", b"[" * 2000, b"{\"a\":" * 500,
    b"9" * 5000, b"NaN", b"Infinity", b"-", b"null", b"../../out", b"/etc/passwd", b"\xc3\x28", b"\xe2\x80\xa8", b"<", b">",
    b"'", b"(" * 200, b" " * 500, b"." * 500,
)  # fmt: skip


class Change(NamedTuple):
    """One change. `place` and `what` are scaled to what is there, so that any numbers will do."""

    kind: str
    place: int
    what: int


def random_changes(rng: random.Random) -> list[Change]:
    """One to eight changes, most often few."""
    number = min(8, 1 + int(rng.expovariate(0.7)))
    return [Change(rng.choice(KINDS), rng.getrandbits(32), rng.getrandbits(16)) for _ in range(number)]


def changed(seeds: Sequence[bytes], chosen: int, changes: Sequence[Change], words: Sequence[bytes] = ()) -> bytes:
    """A seed with changes.

    Args:
      seeds: valid inputs.
      chosen: scaled to one of them.
      changes: made one after the other.
      words: what is put in, besides `WORDS`.
    """
    data, words = seeds[chosen % len(seeds)], (*WORDS, *words, *words)
    for change in changes:
        data = _apply(data, change, seeds, words)[:MAX_BYTES]
    return data


def _apply(data: bytes, change: Change, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    kind, place, what = change
    at = place % (len(data) + 1)
    length = 1 + what % 40
    if kind == "flip" and data:
        at %= len(data)
        return data[:at] + bytes([data[at] ^ (1 + what % 255)]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "drop":
        return data[:at] + data[at + length :]
    if kind == "repeat":
        return data[:at] + data[at : at + length] * (1 + what % 2000) + data[at:]
    if kind == "graft":
        other = seeds[what % len(seeds)]
        return data[:at] + other[place % (len(other) + 1) :]
    if kind in ("field", "rename"):
        found = _with_field(data, place, what, kind == "rename")
        if found is not None:
            return found
    if kind == "pack":
        return (gzip.compress, bz2.compress, lzma.compress)[what % 3](data[: 1 << 15])
    return data[:at] + words[what % len(words)] + data[at:]


def _with_field(data: bytes, place: int, what: int, rename: bool) -> bytes | None:
    """JSON, or one line of JSON lines, with one value or key replaced; None where there is no JSON."""
    try:
        return _replaced(data, place, what, rename)
    except (ValueError, RecursionError):
        pass
    lines = data.split(b"\n")
    number = place % len(lines)
    try:
        lines[number] = _replaced(lines[number], place >> 8, what, rename)
    except (ValueError, RecursionError):
        return None
    return b"\n".join(lines)


def _replaced(text: bytes, place: int, what: int, rename: bool) -> bytes:
    document = json.loads(text)
    places: list[tuple[Any, Any]] = []
    _walk(document, places)
    value = _LEAVES[what % len(_LEAVES)]
    if not places:
        document = value
    else:
        holder, key = places[place % len(places)]
        if rename and isinstance(holder, dict):
            holder[str(value)[:50]] = holder.pop(key)
        elif what % 7 == 0:
            del holder[key]
        elif what % 11 == 0:
            holder[key] = [holder[key]] * (1 + what % 50)
        else:
            holder[key] = value
    made = json.dumps(document)
    return made.replace(json.dumps(_DEEP), "[" * 3000 + "]" * 3000).encode()


def _walk(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        places.append((value, key))
        _walk(value[key], places)
