"""Reads what one machine's launcher says, over a connection that may break and is made again."""

import collections
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from gcloud import CONNECTION_LOST, Gcloud

MARK = "| "  # before each line of the launcher, by which it is told from what gcloud and ssh say
MAX_LOST = 5  # connections in a row without a line
LOST_SECS = 3.0  # after the first lost connection; longer after each further one
LAST_SECS = 5.0  # for what was said last


class Follower:
    """One machine's output from a line on, and in the end the exit status of its launcher."""

    def __init__(self, gcloud: Gcloud, name: str, worker: int, command: str, num_lines: int = 0):
        """Args:
        gcloud: makes the connection.
        name: of the TPU VM.
        worker: its machine.
        command: what prints the output there, given the number of lines to leave out.
        num_lines: how many were seen before.
        """
        self.worker, self.num_lines = worker, num_lines
        self.status: int | None = None
        self.last_lines: collections.deque[str] = collections.deque(maxlen=20)
        self._open = lambda: gcloud.follow(name, worker, f"{command} {self.num_lines}")
        self._lost, self._again_at = 0, 0.0
        self._new: collections.deque[str] = collections.deque()
        self._connect()

    @property
    def is_lost(self) -> bool:
        """Whether there is no connection now."""
        return bool(self._again_at)

    def look(self, show: Callable[[str], None] | None) -> None:
        """Takes in what came; sets `status` once the launcher has ended, or its machine cannot be reached."""
        if self.status is not None:
            return
        ended = self._process.poll()
        if ended is not None:
            self._reader.join(LAST_SECS)
        while self._new:
            line = self._new.popleft()
            self.last_lines.append(line.removeprefix(MARK))
            if line.startswith(MARK):
                self.num_lines, self._lost = self.num_lines + 1, 0
                if show is not None:
                    show(line.removeprefix(MARK))
        if ended is None:
            return
        if ended != CONNECTION_LOST or self._lost == MAX_LOST:
            self.status = ended
        elif not self._again_at:
            self._lost += 1
            self._again_at = time.monotonic() + self._lost * LOST_SECS
        elif time.monotonic() >= self._again_at:
            self._connect()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, signal.SIGKILL)  # with the ssh that it started
        self._process.wait()

    def _connect(self) -> None:
        self._again_at = 0.0
        self._process = self._open()
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._new.append(line.rstrip("\n"))
