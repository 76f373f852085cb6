"""What every request and every response passes: only this page's own addresses, nothing loaded from elsewhere."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # "no-referrer" would make browsers hide the origin of the page's own forms
    "cache-control": "no-store",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Refuses what another site makes a browser send: requests under a foreign name, changes from a foreign page."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None):
        """Args:
        app: what is guarded.
        hosts: names that the page may be asked under; None for any. With the loopback names alone, a site whose name
          was made to point here cannot read answers.
        """
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        reason = self._reason_to_refuse(scope["method"], Headers(scope=scope))
        app = JSONResponse({"error": reason}, 403) if reason else self._app
        await app(scope, receive, send_guarded)

    def _reason_to_refuse(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return f"this page is served as {', '.join(sorted(self._hosts))}, not as {host[:80]!r}"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin is not None and _place(origin) != host:
            return f"changes come from this page alone, not from {origin[:80]!r}"
        return None


def _place(origin: str) -> str | None:
    """Name and port in an Origin header; None of what is no origin.

    >>> _place("http://127.0.0.1:8000"), _place("null"), _place("http://[::1")
    ('127.0.0.1:8000', None, None)
    """
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port.

    >>> _name("LOCALHOST:8000"), _name("[::1]:8000"), _name("[::1")
    ('localhost', '::1', '')
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
