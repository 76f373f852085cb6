"""The page and its API: bytes of a connection, through the server's own parser, to a small run that answers."""

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

import h11
from uvicorn.server import ServerState

from realm_jax.answering.collection import Collection
from realm_jax.answering.loading import load_answerer
from realm_jax.serve.app import make_app
from realm_jax.serve.guard import LOOPBACK
from realm_jax.serve.http_server import http_server
from realm_jax.serve.service import Service
from tests.answering import made_world
from tests.answering.made_run import make_run
from tests.fuzz.target import Target

_MEANT = {200, 201, 303, 307, 400, 403, 404, 405, 413, 415, 503}
_HOST = b"Host: 127.0.0.1\r\n"


def _post(path: bytes, kind: bytes, body: bytes, extra: bytes = b"") -> bytes:
    head = b"POST %s HTTP/1.1\r\n%sContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n"
    return head % (path, _HOST, kind, extra, len(body)) + body


_JSON, _FORM = b"application/json", b"application/x-www-form-urlencoded"
_SEEDS = (
    _post(b"/api/answer", _JSON, b'{"question": "Where was Ada Brook born?"}'),
    _post(b"/api/documents", _JSON, json.dumps({"title": "Ada", "text": "Ada Brook, born in Nice."}).encode()),
    _post(b"/api/documents/3/restore", _JSON, b""),
    _post(b"/add", _FORM, b"q=Ada&title=Ada+Brook&text=born+in+%3Cscript%3EGraz", b"Origin: http://127.0.0.1\r\n"),
    _post(b"/remove", _FORM, b"q=a&id=added-1"),
    _post(b"/restore", _FORM, b"q=a&id=2"),
    b"GET /?q=Where+was+Ada+born%3F HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /api/status HTTP/1.1\r\n" + _HOST + b"\r\nGET /api/documents HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"DELETE /api/documents/2 HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"HEAD / HTTP/1.1\r\n" + _HOST + b"Connection: close\r\n\r\n",
    b"POST /api/answer HTTP/1.1\r\n" + _HOST + b'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n{"question": "a"}\r\n0\r\n\r\n',
)  # fmt: skip
_WORDS = (
    b"Host: evil.example\r\n", b"Host: \r\n", b"Origin: null\r\n", b"Origin: http://[\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n", b"%00", b"%ff%fe", b"/../../etc/passwd", b"%2e%2e%2f",
    b"{}", b"?q=" + b"a" * 2000, b"\r\n\r\n", b"A: " + b"b" * 3000 + b"\r\n", b"TRACE ", b"OPTIONS * ", b"<script>alert(1)</script>", b"%3Cscript%3E",
    b"/api/documents/added-1", b"/api/documents/99999999999999999999", b"\\ud800", b"&" * 20, b"=%F0%28%8C%28",
)  # fmt: skip


class _Wire(asyncio.Transport):
    """A connection of which only what the server writes is kept."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written, self.closed = b"", False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...


class _Page:
    """The application and its event loop, which live on from input to input."""

    def __init__(self, folder: Path):
        params = made_world.params()
        run = make_run(folder / "run", params, made_world.corpus(folder / "run" / "corpus"))
        loaded = load_answerer(run, made_world.task(run.corpus))
        collection = Collection(loaded.answerer, loaded.corpus, loaded.index, max_added=50, max_document_chars=3000)
        service = Service(run, loaded, collection)
        service.warm_up()
        self.collection, self.loop = collection, asyncio.new_event_loop()
        self.errors: list[str] = []
        self.config = http_server(make_app(service, hosts=LOOPBACK), 1000).config
        self.config.load()
        self.state: dict[str, Any] = {}
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        received: asyncio.Queue[Any] = asyncio.Queue()
        started = asyncio.Event()

        async def send(message: Any) -> None:
            started.set()

        await received.put({"type": "lifespan.startup"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        self.lifespan = asyncio.ensure_future(self.config.loaded_app(scope, received.get, send))
        await started.wait()

    def exchange(self, data: bytes) -> bytes:
        return self.loop.run_until_complete(self._exchange(data))

    async def _exchange(self, data: bytes) -> bytes:
        """What the server writes to a client that sends these bytes and then hangs up."""
        server, wire = ServerState(), _Wire()
        protocol = self.config.http_protocol_class(self.config, server, self.state)
        protocol.connection_made(wire)
        try:
            if data:  # asyncio hands on no empty data, which would mean the end to h11
                protocol.data_received(data)
            while server.tasks:  # requests in the same bytes come one after the other
                if protocol.conn.their_state in (h11.SEND_BODY, h11.ERROR):  # waits for what will not come
                    for _ in range(5):
                        await asyncio.sleep(0)
                    break
                await asyncio.wait(set(server.tasks))
                await asyncio.sleep(0)
        finally:
            protocol.connection_lost(None)
            if server.tasks:
                await asyncio.gather(*server.tasks, return_exceptions=True)
        return wire.written


@functools.cache
def _page(folder: Path) -> _Page:
    return _Page(folder)


def _seeds(folder: Path) -> tuple[bytes, ...]:
    _page(folder)
    return _SEEDS


def _send(data: bytes, folder: Path) -> None:
    page = _page(folder)
    written = page.exchange(data)
    for part in written.split(b"HTTP/1.1 ")[1:]:
        head, _, body = part.partition(b"\r\n\r\n")
        status = int(head[:3])
        assert status in _MEANT or status == 100, part[:200]
        if b"text/html" in head:
            assert b"<script" not in body and b"<img" not in body, "markup of a request in the page"
        # what is no HTTP is refused by the server itself; HEAD gets no words
        bare = b"Invalid HTTP request received." in body or (
            status == 400 and not body and b"connection: close" in head
        )
        assert bare or status == 100 or b"content-security-policy" in head.lower() or body == b"Service Unavailable", (
            part[:200]
        )
    if len(page.collection.added) > 20:
        for text in page.collection.added:
            page.collection.remove(text.name)
        for number in page.collection.removed:
            page.collection.restore(str(number))


TARGETS = [Target("page", _seeds, _send, refuses=(), words=_WORDS, secs=20, mib=1024)]
