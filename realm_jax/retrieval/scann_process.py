"""ScaNN in a process of its own: however large the shards, loading them holds up nothing here.

ScaNN keeps Python's global lock while it loads a shard, for a second and more where the shard has a million documents; the
training thread would stand still for as long. Each version has its own process, which ends with the index: its memory goes
back to the system whole, and of two versions there is never a third one's left.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from realm_jax.retrieval.embedding_rows import EmbeddingRows
from realm_jax.retrieval.index import SearchResult, check_queries
from realm_jax.retrieval.manifest import IndexRefused, Manifest

logger = logging.getLogger(__name__)

LARGE_SHARD_BYTES = 16 << 20
"""Of embeddings: the training thread would miss more than 20 ms while a larger shard is loaded (docs/index_life_cycle.md)."""


def is_large(manifest: Manifest) -> bool:
    """Whether loading a shard of the version would hold up a training thread."""
    largest = max(shard.count for shard in manifest.shards)
    return manifest.backend == "scann" and 4 * manifest.embed_dim * largest > LARGE_SHARD_BYTES


class SearchProcessEnded(ChildProcessError):  # noqa: N818 - says what happened
    """The process that searches an index ended, twice."""


class ScannProcess:
    """An index whose shards another process loads and searches. Used like a `ScannIndex`, one search at a time.

    A process that ends by itself (it is the largest here, and the first that goes where memory runs out) is started once
    more; what it loads is on disk.
    """

    def __init__(
        self,
        version_dir: Path,
        manifest: Manifest,
        shards: Sequence[int],
        rows: EmbeddingRows | None = None,
        num_threads: int | None = None,
    ):
        """Starts the process and waits until it has loaded the shards.

        Args:
          version_dir: where the shards' files lie on this machine, verified.
          manifest: of the version.
          shards: numbers of those to load.
          rows: their embeddings, which are read here.
          num_threads: see `ScannIndex`.

        Raises:
          IndexRefused: the shards cannot be loaded, or the process ended while it loaded them.
        """
        self._rows, self.embed_dim = rows, manifest.embed_dim
        self.num_documents = sum(manifest.shards[number].count for number in shards)
        self._name = f"index version {manifest.version:08d}"
        self._to_load = (str(version_dir), manifest, list(shards), num_threads)
        self._one_at_a_time = threading.Lock()
        self._child = _Child()
        self.close = weakref.finalize(self, self._child.discard)
        self._load()

    def search(self, queries: Float32[np.ndarray, "batch embed"], num_results: int) -> SearchResult:
        """The documents of greatest inner product that the shards find; -1 and -inf where they find no more.

        Raises:
          ValueError: for queries of another width or not finite, or `num_results` below 1.
          SearchProcessEnded: the process ended, and so did the one that was started in its place.
        """
        check_queries(queries, self.embed_dim, num_results)
        question = np.ascontiguousarray(queries), num_results
        with self._one_at_a_time:
            try:
                return SearchResult(*self._child.ask(question))
            except EOFError:
                logger.error("the process that searches %s ended (%s); loading it again", self._name, self._child.end())
            self._load()
            try:
                return SearchResult(*self._child.ask(question))
            except EOFError as error:
                raise SearchProcessEnded(
                    f"the process that searches {self._name} ended twice ({self._child.end()}); if memory ran out, let hosts "
                    "share the index (RefreshConfig.index_hosts='sharded'). Started again, the run resumes"
                ) from error

    def embeddings(self, document_ids: Int64[np.ndarray, "*rows"]) -> Float32[np.ndarray, "*rows embed"]:
        """The embeddings that the shards were built from; zeros for id -1.

        Raises:
          ValueError: when the index was made without `rows`.
        """
        if self._rows is None:
            raise ValueError("this index was made without its embeddings; load it with versions.load_version")
        return self._rows.take(document_ids)

    @property
    def process_id(self) -> int:
        return self._child.process.pid

    def _load(self) -> None:
        try:
            self._child.start()
            self._child.ask(self._to_load)
        except EOFError as error:
            raise IndexRefused(
                f"the process that loads {self._name} ended ({self._child.end()}); look whether memory ran out"
            ) from error


class _Child:
    """The process at the other end of a pipe."""

    process: "subprocess.Popen[bytes]"
    _pipe: Connection | None = None

    def start(self) -> None:
        pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._pipe = pipe

    def ask(self, question: Any) -> Any:
        """What the process answers.

        Raises:
          EOFError: it has ended.
          Exception: that it sends as its answer.
        """
        assert self._pipe is not None
        try:
            self._pipe.send(question)
            answer = self._pipe.recv()
        except OSError as error:  # a broken pipe, or one reset
            raise EOFError from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> str:
        """Ends it, if it has not ended by itself, and says how it did."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def discard(self) -> None:
        """Ends it without waiting: whoever lets go of an index may be the training thread, between two steps."""
        if self._pipe is None:
            return
        self._pipe.close()
        self.process.kill()  # it has nothing to lose
        with contextlib.suppress(RuntimeError):  # no new threads where the interpreter is ending
            threading.Thread(target=self.process.wait, name="scann-process-end", daemon=True).start()


def _serve(pipe: Connection) -> None:
    """Loads what it is told to, and answers searches until the other end is closed."""
    from realm_jax.retrieval.scann_index import ScannIndex
    from realm_jax.retrieval.shards import load_scann_shard

    version_dir, manifest, numbers, num_threads = pipe.recv()
    try:
        shards = [
            load_scann_shard(Path(version_dir), manifest.shards[number], manifest.embed_dim, manifest.parameters)
            for number in numbers
        ]
        index = ScannIndex(shards, num_threads)
    except ValueError as error:
        pipe.send(error if isinstance(error, IndexRefused) else IndexRefused(str(error)))
        return
    pipe.send(None)
    while True:
        queries, num_results = pipe.recv()
        pipe.send(tuple(index.search(queries, num_results)))


if __name__ == "__main__":
    for _signal in (signal.SIGINT, signal.SIGTERM):  # the trainer takes its last step first, and then ends us
        signal.signal(_signal, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        _serve(Connection(int(sys.argv[1])))
