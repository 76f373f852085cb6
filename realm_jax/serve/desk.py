"""One piece of work at a time, a few that wait, and a word for the others."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from realm_jax.serve.requests import Refused

T = TypeVar("T")


class Desk:
    """Does work in a thread beside the server's, in turn: two answers at once would take as long as one after the other.

    Must be made inside the server's event loop.
    """

    def __init__(self, max_waiting: int):
        """Args:
        max_waiting: how many may be at the desk or wait for it; further ones are told to come back.
        """
        self._limiter = anyio.CapacityLimiter(1)
        self._max_waiting, self._waiting = max_waiting, 0

    @property
    def waiting(self) -> int:
        """How many are at the desk or wait for it."""
        return self._waiting

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns.

        Raises:
          Refused: 503, when too many wait.
        """
        if self._waiting >= self._max_waiting:
            raise Refused(503, f"{self._waiting} requests wait already; try again", {"retry-after": "1"})
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._waiting -= 1
