"""What an input may take and touch: processor time, memory, files, and nothing run that it brought along."""

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
# What Python and libraries open of their own accord.
_OWN = tuple(
    {str(_ROOT), sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"], "/proc", "/dev", "/usr", "/sys", "/lib"}
)
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect",
         "ctypes.dlopen", "code.__new__", "os.putenv")  # fmt: skip
_TOUCHES = (
    "open",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
)
CANARIES = frozenset({"antigravity", "turtledemo", "this", "idlelib"})
"""Modules that nothing here imports."""

_folder = ""
_seen: list[str] = []
_watching = False


class Hang(BaseException):
    """An input took longer than it may. No handler of errors catches it."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "import":
        if arguments[0].partition(".")[0] in CANARIES:
            _seen.append(f"imported {arguments[0]}")
    elif event in _RUNS:
        _seen.append(f"{event} {arguments!r:.80}")
    elif event in _TOUCHES and isinstance(arguments[0], str | bytes | os.PathLike):
        place = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - resolve() opens links: the names are what is judged
        if not place.startswith(_folder) and not place.startswith(_OWN):
            _seen.append(f"{event} outside: {place[:80]}")


sys.addaudithook(_audit)  # there is no way to take one back: it sleeps outside of `fenced`


def _hang(signum: int, frame: Any) -> None:
    raise Hang


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def fenced(folder: Path, secs: float, num_bytes: int) -> Iterator[list[str]]:
    """Runs what is inside within limits.

    Args:
      folder: beyond which nothing may be opened or changed, Python's own files and those of this checkout aside.
      secs: of processor time (a slow machine is no hang); then `Hang` is raised.
      num_bytes: of memory that may be taken beside what the process has; beyond that allocations fail.

    Yields:
      What was done that must not be, in words; complete after the block.
    """
    global _folder, _watching
    _seen.clear()
    _folder = str(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + num_bytes, hard))
    # SIGPROF, so that pytest-timeout keeps SIGALRM
    before = signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, secs)
    _watching = True
    try:
        yield _seen
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
