"""Files that grow, kept on an object store, where nothing can be appended: uploaded whole from time to time."""

import concurrent.futures
import logging
import time

from realm_jax.storage import RemotePath, put, scratch_of

logger = logging.getLogger(__name__)


class Mirror:
    """Keeps objects like files of a scratch folder that grow: uploaded whole from time to time, and when asked to.

    Uploads happen in a thread of its own. One that fails is logged once, and made up for by the next.
    """

    def __init__(self, place: RemotePath, every_secs: float = 30.0):
        self._place, self._every_secs = place, every_secs
        self._uploaded_at = time.monotonic()
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._pending: concurrent.futures.Future[None] | None = None
        self._sizes: dict[str, int] = {}
        self._refused = False

    def changed(self) -> None:
        """Says that a file has grown."""
        if time.monotonic() - self._uploaded_at >= self._every_secs and (self._pending is None or self._pending.done()):
            self._pending = self._executor.submit(self._upload)

    def flush(self) -> None:
        """Uploads what has grown, and waits for it."""
        self._executor.submit(self._upload).result()

    def close(self) -> None:
        self.flush()
        self._executor.shutdown()

    def _upload(self) -> None:
        self._uploaded_at = time.monotonic()
        scratch = scratch_of(self._place)
        try:
            for file in sorted(scratch.iterdir()) if scratch.is_dir() else ():
                content = file.read_bytes()  # a line half written is what readers of a killed run's file know
                if self._sizes.get(file.name) != len(content):
                    put(self._place / file.name, content)
                    self._sizes[file.name] = len(content)
        except OSError as error:
            if not self._refused:
                logger.error("%s cannot be written, trying again later: %s", self._place, error)
            self._refused = True
