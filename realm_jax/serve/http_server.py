"""The server that speaks HTTP for the page, within bounds."""

from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from realm_jax.serve.requests import CHARACTER_BYTES

_CONNECTIONS = 256
# Addresses are read that hold 10 000 words of eight letters in any script: the page then says how long a question may be.
# Of longer ones uvicorn closes the connection with a bare "Invalid HTTP request received.", status 400.
_ADDRESS_CHARS = 10_000 * 9
_OTHER_BYTES = 64 * 1024  # the rest of a request's head
# Within so long a request arrives whole: else whoever sends a byte now and then keeps one of the connections for ever.
_REQUEST_SECS = 30.0


class _Impatient(H11Protocol):
    """Hangs up where a request has not arrived whole `_REQUEST_SECS` after the connection, or the last answer, was made."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_REQUEST_SECS, self._hang_up)

    def on_response_complete(self) -> None:
        self._deadline.cancel()
        self._deadline = self.loop.call_later(_REQUEST_SECS, self._hang_up)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but where the words of the refusal may not be sent: a malformed HEAD gets none, and is hung up on."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def _hang_up(self) -> None:
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.transport.close()


def http_server(app: ASGIApp, max_question_chars: int) -> uvicorn.Server:
    """A server for the application, which says nothing but warnings.

    Args:
      app: what answers.
      max_question_chars: characters of the longest question; the page sends it in an address.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            h11_max_incomplete_event_size=address_bytes(max_question_chars),
            http=_Impatient,
            ws="none",
            timeout_graceful_shutdown=5,
        )
    )


def address_bytes(max_question_chars: int) -> int:
    """Bytes of the longest head of a request that is read: a question of that many characters fits into its address.

    >>> address_bytes(1_000), address_bytes(200_000)
    (1145536, 2465536)
    """
    return CHARACTER_BYTES * max(_ADDRESS_CHARS, max_question_chars) + _OTHER_BYTES
