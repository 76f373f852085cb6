"""Child processes on cores of their own, how they are stopped, and one line of progress: what the launchers share."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
# glibc's defaults give a step's large buffers back to the system after every step and fault them in again, 4 KiB at a
# time: a fifth to a quarter of a small CPU step. Huge pages, kept, cost that once. Other C libraries ignore the variable.
KEEP_HUGE_PAGES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("arena_max", 1), ("mmap_threshold", 1 << 32), ("trim_threshold", 1 << 33))
)
PREEMPTED = 143  # the exit status of a training that SIGTERM ended early, and of a launcher
GRACE_SECS = 60.0  # between SIGTERM and SIGKILL: a trainer finishes its step and writes a checkpoint


class Child:
    """One job in a process of its own."""

    def __init__(self, name: str, command: Sequence[str], log: Path, cores: Sequence[int], environment: dict[str, str]):
        self.name, self.command, self.log = name, list(command), log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"\n$ {shlex.join(self.command)}\n".encode())
            output.flush()
            self._begun_at = self._read_to = output.tell()  # before it lies what earlier attempts said
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={
                    "GLIBC_TUNABLES": KEEP_HUGE_PAGES,
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                },
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends its children in order
            )
        _keep_on_cores(self.process.pid, cores)

    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self, grace_secs: float = GRACE_SECS) -> None:
        """SIGTERM, then SIGKILL for one that does not end."""
        stop_all([self], grace_secs)

    def last_words(self, lines: int = 15) -> str:
        """The end of what it said itself."""
        return "\n".join(self._said_since(self._begun_at).decode(errors="replace").rstrip().splitlines()[-lines:])

    def new_lines(self) -> list[str]:
        """The lines that it has finished since this was asked last."""
        whole = self._said_since(self._read_to).rpartition(b"\n")
        self._read_to += len(whole[0] + whole[1])
        return whole[0].decode(errors="replace").splitlines()

    def _said_since(self, place: int) -> bytes:
        with self.log.open("rb") as file:
            file.seek(place)
            return file.read()


def stop_all(children: Sequence[Child], grace_secs: float = GRACE_SECS) -> None:
    """SIGTERM to all of them, in this order and at once; SIGKILL for those that have not ended when the time is over."""
    running = [child for child in children if child.running()]
    for child in running:
        child.process.terminate()
    deadline = time.monotonic() + grace_secs
    for child in running:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
    for child in running:
        child.process.wait()


class Stopped(Exception):  # noqa: N818 - reads as what it says
    """SIGTERM or Ctrl-C asked the launcher to stop."""

    def __init__(self, number: int):
        self.exit_status = 128 + number
        super().__init__(
            f"{signal.Signals(number).name}: ending the jobs, with up to {GRACE_SECS:.0f} s for checkpoints; "
            "the same command goes on from here"
        )


class StopSignals:
    """Notes SIGTERM and Ctrl-C for the launcher, which asks between two looks at its children.

    A handler that raised would do so again at the next signal, also while children are being started or ended, and leave
    them behind with nobody to stop them: `timeout` and make pass one signal on twice. Once asked to stop, the launcher
    stops its children in its own time, whatever comes.
    """

    def __init__(self) -> None:
        self._number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job is not for Ctrl-C
                signal.signal(number, self._note)

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self._number:
            raise Stopped(self._number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number


def _keep_on_cores(pid: int, cores: Sequence[int]) -> None:
    """Binds a process to cores, where the system can: trainer and embedder do not take each other's time.

    From outside, while it is still starting its interpreter: the threads that it makes later inherit the cores.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(pid, cores)


def split_cores() -> tuple[list[int], list[int]]:
    """Cores for two processes side by side: halves, or all for both where there is one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    half = len(cores) // 2
    return (cores[:half], cores[half:]) if half else (cores, cores)


class Display:
    """One line of progress: redrawn on a terminal, elsewhere a line every quarter of a minute."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.started = time.monotonic()
        self.title, self.title_started, self.shown_at = "", self.started, 0.0

    def begin(self, title: str) -> None:
        self.finish_title()
        self.title, self.title_started, self.shown_at = title, time.monotonic(), time.monotonic()
        if not self.live:
            print(f"[{self.clock()}] {title}", file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        line = f"[{self.clock()}] {self.title}: {text}"
        if self.live:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\x1b[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.shown_at > 15:
            print(line, file=sys.stderr, flush=True)
            self.shown_at = time.monotonic()

    def note(self, text: str) -> None:
        print(f"{chr(13) + chr(27) + '[K' if self.live else ''}[{self.clock()}] {text}", file=sys.stderr, flush=True)

    def finish_title(self) -> None:
        if self.title:
            self.note(f"{self.title}: done in {time.monotonic() - self.title_started:.0f} s")

    def done(self) -> None:
        self.finish_title()
        self.title = ""

    def clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes:02d}:{seconds:02d}"


def run_to_end(
    title: str, command: Sequence[str], log: Path, display: Display, check_signals: Callable[[], None]
) -> None:
    """Runs one process to its end, its last words shown on the way.

    Raises:
      SystemExit: it failed; its log is named.
      Stopped: `check_signals` says so; the process is stopped, too.
    """
    display.begin(title)
    child = Child(title, list(command), log, (), {})
    try:
        while child.running():
            display.show(child.last_words(1))
            check_signals()
            time.sleep(0.5)
    finally:
        child.stop()
    if child.process.returncode:
        raise SystemExit(f"{title} failed; the end of {child.log}:\n{child.last_words()}")
    display.done()
