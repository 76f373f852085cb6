"""One process at a time: a lock that ends with the process that holds it."""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from realm_jax.storage import Place, RemotePath, scratch_of

logger = logging.getLogger(__name__)

LOOK_SECS = 0.2  # between two attempts of one that waits
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class InUse(ValueError):  # noqa: N818 - reads as what it says
    """Another process is at work there."""


@contextlib.contextmanager
def exclusive(path: Place, message: str, wait_secs: float = 0.0) -> Iterator[None]:
    """Holds a lock file while the body runs. The lock ends with the process that holds it, however that dies.

    The file goes with it, and the folders that were made for it if they are still empty; one that a killed process left
    locks nothing. On a shared file system it locks out other hosts where `flock` works between hosts (NFS; Lustre if so
    mounted). Where there are no locks at all a warning says so and the body runs. An object store has none: the lock then lies
    in the cache of this machine and guards nothing against others.

    Args:
      path: the lock file.
      message: what is said where another process holds it.
      wait_secs: how long to wait for that one to end.

    Raises:
      InUse: when another process holds it all that time, with the message, the process's id and its host (a ValueError).
    """
    if isinstance(path, RemotePath):
        _warn_of_no_locks(path)
        path = scratch_of(path)
    made = [folder for folder in path.parents if not folder.exists()]
    handle = _locked(path, message, time.monotonic() + wait_secs)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: whoever opened it in between looks again
        os.close(handle)
        with contextlib.suppress(OSError):  # something lies there now
            for folder in made:
                folder.rmdir()


@functools.cache
def _warn_of_no_locks(path: RemotePath) -> None:
    logger.warning("%s: an object store has no locks; start no second process there from another machine", path)


def _locked(path: Path, message: str, deadline: float) -> int:
    """A descriptor that holds the lock of the file which is at `path` now."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # an earlier holder has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 300).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            if time.monotonic() < deadline:
                time.sleep(LOOK_SECS)
                continue
            raise InUse(
                f"{message} (process {holder} holds {path}); wait for it, stop it, or use another run directory"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise
            logger.warning("%s cannot be locked (%s); start no second process there", path, error.strerror)
            return handle
        try:
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # an earlier holder removed it after it was opened here
