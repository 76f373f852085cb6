"""Reads what one machine's launcher says, over a connection that may break and is made again."""

import collections
import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from gcloud import CONNECTION_LOST, Gcloud

LINE = re.compile(r"(\d+)\| (.*)")  # of the launcher, with its number; what else comes is said by gcloud and ssh
ENDED = re.compile(r"ended (\d+)")  # the launcher, with this exit status
MAX_LOST = 5  # connections in a row without a line
LOST_SECS = 3.0  # after the first lost connection; longer after each further one
LAST_SECS = 5.0  # for what was said last


class Follower:
    """One machine's output from a line on, and in the end the exit status of its launcher.

    gcloud repeats a command up to ten times by itself when the connection breaks, from the line that it was first given:
    what has been seen is told by the numbers of the lines. Only the other end says how the launcher ended: gcloud's own exit
    status is also 1 where it could not ask Google for the machine's address.
    """

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
            self._take(self._new.popleft(), show)
        if ended is None or self.status is not None:
            return
        if self._lost == MAX_LOST:
            self.status = CONNECTION_LOST
        elif not self._again_at:
            self._lost += 1
            self._again_at = time.monotonic() + self._lost * LOST_SECS
        elif time.monotonic() >= self._again_at:
            self._connect()

    def _take(self, said: str, show: Callable[[str], None] | None) -> None:
        line, end = LINE.fullmatch(said), ENDED.fullmatch(said)
        if end is not None:
            self.status = int(end[1])
        elif line is None:
            self.last_lines.append(said)
        elif int(line[1]) > self.num_lines:
            self.num_lines, self._lost = int(line[1]), 0
            self.last_lines.append(line[2])
            if show is not None:
                show(line[2])

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
