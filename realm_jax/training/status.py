"""What a trainer says of itself in the run directory: the embed job and the progress display read it."""

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

from realm_jax.run_dir import RunDir, write_json_atomically
from realm_jax.storage import is_remote

logger = logging.getLogger(__name__)


HEARTBEAT_SECS = 10.0
"""A running trainer's status is never older, whatever its threads wait for or compile."""


class TrainerStatus:
    """This process's RUN/status/trainer-NNNNN.json. Index versions that it names must not be retired.

    May be used from several threads: the training thread and the one that loads indexes.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        process: int,
        num_steps: int,
        step: int,
        kept_versions: Sequence[int] = (),
        write_every_secs: float = 2.0,
    ):
        self._path = run.trainer_status(process)
        # a PUT takes as long as a step may: of a mere change of step the thread of `keep_fresh` tells an object store
        self._write_every_secs = float("inf") if is_remote(self._path) else write_every_secs
        self._lock = threading.Lock()
        self._written_at = -float("inf")
        self._failing = False
        self._ended = threading.Event()
        self._fields: dict[str, Any] = {
            "state": "running",
            "step": step,
            "num_steps": num_steps,
            "index_version": -1,
            "pending_version": -1,
            "kept_versions": list(kept_versions),  # from the first line on: the embed job retires whatever is not named
            "awaited_versions": [],  # a replay's: the embed job builds these first and keeps them
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self.update()

    def update(self, **changes: Any) -> None:
        """Changes fields; written at once, except that a mere change of step waits until the file is a little old."""
        with self._lock:
            changed = {name for name, value in changes.items() if self._fields[name] != value}
            self._fields |= changes
            if changes and changed <= {"step"} and time.monotonic() - self._written_at < self._write_every_secs:
                return
            self._write()

    def keep_fresh(self, every_secs: float = HEARTBEAT_SECS) -> None:
        """Writes the file from a thread of its own until `finish`: who reads it can tell a long wait from a sudden death."""

        def beat() -> None:
            while not self._ended.wait(every_secs):
                with self._lock:
                    if not self._ended.is_set():
                        self._write()

        threading.Thread(target=beat, name="status", daemon=True).start()

    def finish(self, state: Literal["finished", "failed"]) -> None:
        """The last word."""
        with self._lock:
            self._ended.set()
            self._fields["state"] = state
            self._write()

    def _write(self) -> None:
        try:
            write_json_atomically(self._path, {**self._fields, "updated_at": time.time()})
        except OSError as error:  # a full disk: what was said last stands, and what it names is kept
            if not self._failing:
                logger.error("%s cannot be written, training goes on: %s", self._path, error)
            self._failing, self._written_at = True, -float("inf")  # the next change is written, whatever it is
        else:
            self._failing = False
            self._written_at = time.monotonic()
