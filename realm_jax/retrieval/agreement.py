"""How the hosts of a run come to act at the same step: each says what it has, all read what every host said."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp


@runtime_checkable
class Agreement(Protocol):
    """Exchanges one small message a host. Called by all hosts with the same name, each name once."""

    def exchange(self, name: str, message: Any) -> list[Any]: ...


class SingleHost:
    """The agreement of one host with itself."""

    def exchange(self, name: str, message: Any) -> list[Any]:
        return [message]


class CoordinationService:
    """Messages through the key-value store of `jax.distributed`: host code alone, no collective, bounded in time."""

    def __init__(self, timeout_secs: float):
        self._timeout_secs = timeout_secs
        self._client = ocp.multihost.get_jax_distributed_client()
        self._process, self._num_processes = jax.process_index(), jax.process_count()
        self._last: str | None = None

    def exchange(self, name: str, message: Any) -> list[Any]:
        """Every host's message, by process index.

        Raises:
          TimeoutError: naming the first host that did not answer in time.
        """
        self._client.key_value_set(f"{name}/{self._process}", json.dumps(message))
        deadline = time.monotonic() + self._timeout_secs
        messages = []
        for process in range(self._num_processes):
            left_ms = max(1, int((deadline - time.monotonic()) * 1000))
            try:
                answer = self._client.blocking_key_value_get(f"{name}/{process}", left_ms)
            except jax.errors.JaxRuntimeError as error:
                raise TimeoutError(
                    f"host {process} of {self._num_processes} said nothing about {name} within {self._timeout_secs:.0f} s; "
                    "it has died or is stuck: look at its log, then start the run again (it resumes from its checkpoint)"
                ) from error
            messages.append(json.loads(answer))
        if self._last is not None:  # every host has read it: each has come to this exchange since
            self._client.key_value_delete(f"{self._last}/{self._process}")
        self._last = name
        return messages


def for_this_run(timeout_secs: float) -> Agreement:
    """The agreement that fits the number of processes."""
    return SingleHost() if jax.process_count() == 1 else CoordinationService(timeout_secs)


@runtime_checkable
class Mail(Protocol):
    """Letters between all hosts. Called by every host in the same order within a thread."""

    @property
    def num_hosts(self) -> int: ...

    def exchange(self, letters: Sequence[bytes]) -> list[bytes]:
        """Sends a letter to every host, and returns the one of every host to this one, both by process index."""
        ...


class CoordinationMail:
    """Letters through the key-value store of `jax.distributed`: from any thread, beside whatever the devices do, bounded in time.

    Threads are told apart by their names: those that exchange letters must have the same names on every host.
    """

    def __init__(self, timeout_secs: float):
        self._timeout_secs = timeout_secs
        self._client = ocp.multihost.get_jax_distributed_client()
        self._process, self.num_hosts = jax.process_index(), jax.process_count()
        self._rounds: Counter[str] = Counter()

    def exchange(self, letters: Sequence[bytes]) -> list[bytes]:
        """See `Mail`.

        Raises:
          TimeoutError: naming the first host that sent none in time.
        """
        assert len(letters) == self.num_hosts, f"a letter a host: expected {self.num_hosts}, got {len(letters)}"
        thread = threading.current_thread().name
        self._rounds[thread] += 1
        place = f"realm_jax/mail/{thread}/{self._rounds[thread]}"
        for receiver, letter in enumerate(letters):
            self._client.key_value_set_bytes(f"{place}/{self._process}/{receiver}", letter)
        deadline = time.monotonic() + self._timeout_secs
        received = []
        for sender in range(self.num_hosts):
            left_ms = max(1, int((deadline - time.monotonic()) * 1000))
            key = f"{place}/{sender}/{self._process}"
            try:
                received.append(self._client.blocking_key_value_get_bytes(key, left_ms))
            except jax.errors.JaxRuntimeError as error:
                raise TimeoutError(
                    f"host {sender} of {self.num_hosts} did not search along within {self._timeout_secs:.0f} s; it has died or "
                    "is stuck: look at its log, then start the run again (it resumes from its checkpoint)"
                ) from error
            self._client.key_value_delete(key)  # nobody else reads it
        return received
