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
# What Python and libraries read of their own accord.
_OWN = (
    str(_ROOT),
    sys.prefix,
    sys.base_prefix,
    sysconfig.get_paths()["stdlib"],
    "/proc",
    "/dev",
    "/usr",
    "/sys",
    "/lib",
)
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "socket.connect",
         "ctypes.dlopen", "code.__new__", "os.putenv")  # fmt: skip
# What is judged by the places that it names: where its arguments hold these, and the folders that they are relative to.
_TOUCHES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.link": ((0, 2), (1, 3)),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CANARIES = frozenset({"antigravity", "turtledemo", "this", "idlelib"})
"""Modules that nothing here imports."""

_folders: tuple[str, ...] = ()
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
    elif event in _TOUCHES:
        may = (*_folders, *_OWN) if event == "open" and _only_reads(*arguments[1:3]) else (*_folders, os.devnull)
        _seen.extend(
            f"{event} outside: {place[-80:]}" for place in _places(event, arguments) if not _within(place, may)
        )


def _only_reads(mode: str | None, flags: int) -> bool:
    return not flags & _WRITES and not set(mode or "") & set("wax+")


def _places(event: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """What an event touches, by absolute names; descriptors have been judged when they were opened."""
    for at, folder_at in _TOUCHES[event]:
        if isinstance(arguments[at], str | bytes | os.PathLike):
            yield _absolute(arguments[at], -1 if folder_at is None else arguments[folder_at])
    if event == "os.symlink":  # where it leads is relative to where it lies
        yield _absolute(Path(_absolute(arguments[1], arguments[2])).parent / os.fsdecode(arguments[0]), -1)


def _absolute(name: Any, folder: int) -> str:
    if folder != -1:
        name = Path(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(name))  # noqa: PTH115 - Path.readlink() is an event
    return os.path.abspath(os.fsdecode(name))  # noqa: PTH100 - resolve() opens links: the names are what is judged


def _within(place: str, folders: tuple[str, ...]) -> bool:
    return f"{place}/".startswith(tuple(f"{folder}/" for folder in folders))


sys.addaudithook(_audit)  # there is no way to take one back: it sleeps outside of `fenced`


def _hang(signum: int, frame: Any) -> None:
    raise Hang


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def fenced(folder: Path, secs: float, num_bytes: int) -> Iterator[list[str]]:
    """Runs what is inside within limits.

    Args:
      folder: beyond which nothing may be opened or changed; Python's own files and those of this checkout may be read.
      secs: of processor time (a slow machine is no hang); then `Hang` is raised.
      num_bytes: of memory that may be taken beside what the process has; beyond that allocations fail.

    Yields:
      What was done that must not be, in words; complete after the block.
    """
    global _folders, _watching
    _seen.clear()
    _folders = (os.path.abspath(folder), os.path.realpath(folder))  # noqa: PTH100 - a link to it is its name too
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # what is imported late lies elsewhere
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
        sys.dont_write_bytecode = bytecode
