"""Requests read within bounds, and what is refused, with its status."""

import json
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request


class Refused(Exception):  # noqa: N818 - it says what happened to the request
    """A request that is not answered: HTTP status and a message for who sent it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request; no more than that is ever read.

    Raises:
      Refused: 413.
    """
    too_large = Refused(413, f"a request may have {most_bytes} bytes; send less")
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit() or int(announced) > most_bytes:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, most_bytes: int, **fields: str) -> list[str]:
    """The strings of a JSON object, in the order of `fields`, which gives each a default; "" means it is required.

    Raises:
      Refused: 413, 415 or 400, saying what was expected.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected the header Content-Type: application/json")
    body = await read_body(request, most_bytes)
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


async def read_form(request: Request, most_bytes: int, *names: str) -> list[str]:
    """Fields of a form of the page, "" where there is none.

    Raises:
      Refused: 413, 415 or 400.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "expected a form of the page")
    body = await read_body(request, most_bytes)
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=8)
    except ValueError as error:
        raise Refused(400, f"this form cannot be read ({error})") from error
    return [fields.get(name, [""])[0] for name in names]
