"""Requests read within bounds, and what is refused, with its status."""

import json
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request

CHARACTER_BYTES = 12
"""A character takes at most: 4 bytes of UTF-8, each as %XX in a form or an address; in JSON \\uXXXX\\uXXXX."""


class Refused(Exception):  # noqa: N818 - it says what happened to the request
    """A request that is not answered: HTTP status and a message for who sent it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class Bound(NamedTuple):
    """How long a body may be: bytes, and what they are to hold, in the caller's words."""

    num_bytes: int
    content: str


async def read_body(request: Request, bound: Bound) -> bytes:
    """The body of a request; no more than the bound is ever read.

    Raises:
      Refused: 413; 400 where its length is no number.
    """

    def too_large(got: str) -> Refused:
        return Refused(413, f"a request may hold {bound.content} ({bound.num_bytes} bytes), got {got}; shorten it")

    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit():
        raise Refused(400, f"expected a number of bytes as Content-Length, got {announced[:40]!r}")
    if len(announced) > 18:  # Python refuses to read very many digits
        raise too_large(f"a Content-Length of {len(announced)} digits")
    if int(announced) > bound.num_bytes:
        raise too_large(f"{int(announced)} bytes")
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > bound.num_bytes:
                raise too_large("more")
            parts.append(part)
    except ClientDisconnect as error:
        raise Refused(400, "the connection ended before the request did") from error
    return b"".join(parts)


async def read_json(request: Request, bound: Bound, **fields: str) -> list[str]:
    """The strings of a JSON object, in the order of `fields`, which gives each a default; "" means it is required.

    Raises:
      Refused: 413, 415 or 400, saying what was expected.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected the header Content-Type: application/json")
    body = await read_body(request, bound)
    example = "{" + ", ".join(f'"{name}": "…"' for name in fields) + "}"
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"expected JSON such as {example}, got what is no JSON ({error})") from error
    if not isinstance(content, dict) or not content.keys() <= fields.keys():
        unknown = sorted(content.keys() - fields.keys())[:3] if isinstance(content, dict) else type(content).__name__
        raise Refused(400, f"expected JSON such as {example}, got {unknown}")
    values = []
    for name, default in fields.items():
        value = content.get(name, default)
        if not isinstance(value, str):
            raise Refused(400, f"expected a string for {name!r}, got {type(value).__name__}")
        values.append(value)
    return values


async def read_form(request: Request, bound: Bound, *names: str) -> list[str]:
    """Fields of a form of the page, "" where there is none.

    Raises:
      Refused: 413, 415 or 400.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "expected a form of the page")
    body = await read_body(request, bound)
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=8)
    except ValueError as error:
        raise Refused(400, f"this form cannot be read ({error})") from error
    return [fields.get(name, [""])[0] for name in names]
