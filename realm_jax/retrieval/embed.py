"""The embed job: follows a training run, embeds the corpus with its newest snapshot, publishes index versions."""

import contextlib
import hashlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import safetensors.numpy
from tqdm import tqdm

from realm_jax.corpus.store import Corpus
from realm_jax.models import RetrieverConfig
from realm_jax.retrieval.build_version import (
    DEFAULT_BATCHES,
    DEFAULT_INDEX,
    BatchSettings,
    BuildStopped,
    IndexSettings,
)
from realm_jax.retrieval.embedder import embed_params, embed_snapshot
from realm_jax.retrieval.manifest import Manifest
from realm_jax.retrieval.shares import Share
from realm_jax.retrieval.versions import list_versions, retire, withdraw
from realm_jax.run_dir import RunDir, read_json, write_json_atomically
from realm_jax.run_lock import exclusive
from realm_jax.storage import Place, as_place, is_remote
from realm_jax.training.snapshots import PARAMS_FILE, list_snapshots, nest_params, snapshot_checksum

__all__ = ["embed", "embed_snapshot"]

logger = logging.getLogger(__name__)

STATUS_SECS = 0.5
"""The status file is written at most this often during a build."""

STORED_STATUS_SECS = 5.0
"""And this often on an object store, where a PUT takes its time and an object changes once a second at most."""

RESTART_GRACE_SECS = 30.0
"""A trainer that had finished before this job started may be about to be started again: so long it is waited for."""

TRAINER_SILENT_SECS = 60.0
"""A running trainer writes its status every ten seconds; one that has not for so long is probably dead."""


def embed(
    *,
    run_dir: str,
    retriever: RetrieverConfig,
    corpus: str | None = None,
    index: IndexSettings = DEFAULT_INDEX,
    batches: BatchSettings = DEFAULT_BATCHES,
    initial_params: str | None = None,
    once: bool = False,
    every_snapshot: bool = False,
    keep_newest: int = 2,
    poll_secs: float = 1.0,
    first_snapshot_timeout_secs: float = 1800.0,
    trainer_timeout_secs: float = 1800.0,
    builder: int = 0,
    num_builders: int = 1,
    builders_timeout_secs: float = 3600.0,
    progress: bool = True,
) -> None:
    """Re-embeds the corpus with each new snapshot of a training run and publishes its index, until training ends.

    Run it beside the train job, with the same --run_dir. It may be stopped and started at any time: finished shards
    are kept, and training goes on with the version that it has.

    Args:
      run_dir: the training run.
      retriever: as the run trains it.
      corpus: the knowledge corpus; by default RUN/corpus.
      index: backend, shards, and the sample that search_recall is measured with.
      batches: lengths and batch size of the embedding.
      initial_params: a snapshot's directory or a safetensors file, from which version 0 is made when the run has no
        snapshot yet.
      once: build one version and end.
      every_snapshot: build the oldest snapshot not yet built instead of the newest, as far as the trainer still has it.
        A trainer that replays another run names the snapshots that it needs; those are built first in any case.
      keep_newest: how many of the newest versions are kept besides those that trainers and checkpoints name.
      poll_secs: pause between two looks for a new snapshot.
      first_snapshot_timeout_secs: how long the first snapshot may take to come.
      trainer_timeout_secs: how long a trainer that was running may give no sign of life, such as one that was killed and is
        not started again; count in the time that a machine which was taken away needs to come back.
      builder: number of this embed job, where several do the run's embedding together, on machines that see the same run
        directory: each embeds its share of every version's shards, and job 0 publishes. All have the same other settings.
      num_builders: how many jobs do so.
      builders_timeout_secs: how long one waits for the others' shares.
      progress: show a progress bar on a terminal.

    Raises:
      ValueError: for a corpus, retriever or snapshot that do not fit, or another embed job in the same run.
      TimeoutError: when no snapshot comes, or no sign of life from the trainer.
      OSError: when the disk is full; nothing published is damaged.
    """
    for name, value in (
        ("poll_secs", poll_secs),
        ("first_snapshot_timeout_secs", first_snapshot_timeout_secs),
        ("trainer_timeout_secs", trainer_timeout_secs),
        ("builders_timeout_secs", builders_timeout_secs),
    ):
        if value <= 0:
            raise ValueError(f"embed.{name} must be above 0, got {value}")
    if keep_newest < 1:
        raise ValueError(f"embed.keep_newest must be at least 1, got {keep_newest}")
    if not 0 <= builder < num_builders:
        raise ValueError(f"embed.builder must lie between 0 and num_builders - 1 = {num_builders - 1}, got {builder}")
    share = Share(builder, num_builders, builders_timeout_secs, poll_secs)
    run = RunDir.of(run_dir)
    opened = Corpus.open(run.corpus if corpus is None else corpus)
    with (
        exclusive(
            run.builder_status(builder).with_suffix(".lock"),
            f"another embed job{f' is builder {builder} of' if num_builders > 1 else ' serves'} this run",
        ),
        _stop_on_signals() as stop,
        _Status(run, builder) as status,
    ):
        job = _EmbedJob(
            run, retriever, opened, index, batches, keep_newest, every_snapshot, progress, stop, status, share
        )
        if builder == 0 and initial_params is not None and not list_versions(run.index) and not list_snapshots(run):
            built = job.try_build(0, as_place(initial_params))
            if once or built is None:
                return
        job.follow(once, poll_secs, first_snapshot_timeout_secs, trainer_timeout_secs)


class _EmbedJob:
    def __init__(
        self,
        run: RunDir,
        retriever: RetrieverConfig,
        corpus: Corpus,
        index: IndexSettings,
        batches: BatchSettings,
        keep_newest: int,
        every_snapshot: bool,
        progress: bool,
        stop: "_Stop",
        status: "_Status",
        share: Share,
    ):
        self.run, self.retriever, self.corpus = run, retriever, corpus
        self.index, self.batches, self.keep_newest = index, batches, keep_newest
        self.every_snapshot, self.progress, self.stop, self.status = every_snapshot, progress, stop, status
        self.share = share
        self.started_at, self.sign_of_life = time.time(), _SignOfLife()

    def follow(
        self, once: bool, poll_secs: float, first_snapshot_timeout_secs: float, trainer_timeout_secs: float
    ) -> None:
        """Builds the newest snapshot whenever there is one, until the trainers have finished, or seem dead for too long."""
        waiting_since = time.monotonic()
        told = False
        while not self.stop.is_set():
            # asked before looking for snapshots: the last one is written before a trainer says that it has finished
            finished = self._trainers_finished() if self.share.number == 0 else self._leader_finished()
            step = self._next_snapshot()
            if step is not None:
                built = self.try_build(step)
                self._retire()
                if built is not None and once:
                    return
                if built is not None:
                    continue
            elif finished or (once and list_versions(self.run.index)):
                logger.info("training has ended" if finished else "the newest snapshot is embedded already")
                return
            elif not list_versions(self.run.index):
                if time.monotonic() - waiting_since > first_snapshot_timeout_secs:
                    raise TimeoutError(
                        f"no snapshot came to {self.run.snapshots} in {first_snapshot_timeout_secs:g} s; start the train "
                        "job with the same --run_dir, or make version 0 with --gin.embed.initial_params=SNAPSHOT"
                    )
                if not told:
                    told = True
                    logger.info(
                        "waiting for the first snapshot in %s (up to %g s); a trainer makes it, or the convert job",
                        self.run.snapshots, first_snapshot_timeout_secs,
                    )  # fmt: skip
            self.sign_of_life.look(self._trainer_statuses() or [], trainer_timeout_secs)
            self.status.update(state="waiting")
            self._retire()
            self.stop.wait(poll_secs)

    def _next_snapshot(self) -> int | None:
        published, snapshots = list_versions(self.run.index), list_snapshots(self.run)
        if self.share.number != 0:
            return self._version_of_leader(published)
        awaited = _named(self._trainer_statuses() or (), "awaited_versions") & set(snapshots) - set(published)
        if awaited:
            return min(awaited)
        waiting = [step for step in snapshots if step > max(published, default=-1)]
        if not waiting:
            return None
        return waiting[0] if self.every_snapshot else waiting[-1]

    def _version_of_leader(self, published: Sequence[int]) -> int | None:
        """The version that builder 0 works at, if it is not published yet."""
        status = self._leader_status()
        version = int(status.get("version", -1))
        return version if status.get("state") == "embedding" and version not in published else None

    def _leader_status(self) -> dict[str, Any]:
        try:
            return dict(read_json(self.run.embedder_status))
        except (OSError, ValueError):  # it has not begun yet
            return {}

    def _leader_finished(self) -> bool:
        status = self._leader_status()
        if status.get("state") not in ("finished", "failed"):
            return False
        said_so_now = float(status.get("updated_at", 0)) >= self.started_at
        return said_so_now or time.time() - self.started_at > RESTART_GRACE_SECS

    def try_build(self, step: int, params_place: Place | None = None) -> Manifest | None:
        """`build`; None where it was told to stop, or came too late for the snapshot."""
        self.stop.is_building = True
        try:
            return self.build(step, params_place)
        except FileNotFoundError as error:
            # the trainer removes old snapshots: a newer one is there
            if params_place is not None or (self.run.snapshot(step) / PARAMS_FILE).exists():
                raise
            logger.info("snapshot %d was removed before it was read (%s)", step, error)
        except BuildStopped as stopped:
            logger.info("%s", stopped)
        finally:
            self.stop.is_building = False
        return None

    def build(self, version: int, params_place: Place | None = None) -> Manifest:
        """One version, from the snapshot of that step or from a file of parameters."""
        started, first_done = time.monotonic(), 0
        with tqdm(
            total=self.corpus.num_documents,
            desc=f"embed version {version}",
            unit=" documents",
            disable=None if self.progress else True,
            leave=False,
        ) as bar:

            def on_progress(done: int, total: int) -> None:
                nonlocal first_done
                if bar.n == 0 and not first_done:
                    first_done = done  # shards left over from an interrupted build come at no cost
                bar.update(done - bar.n)
                rate = (done - first_done) / max(time.monotonic() - started, 1e-9)
                self.status.update(
                    state="embedding",
                    version=version,
                    documents_done=done,
                    documents_total=total,
                    docs_per_sec=round(rate, 1),
                    at_once=done == total,
                )

            kwargs: dict[str, Any] = {
                "settings": self.index,
                "batches": self.batches,
                "on_progress": on_progress,
                "share": self.share,
            }
            if params_place is None:
                checksum = snapshot_checksum(self.run, version)

                def should_stop() -> bool:
                    return self.stop.is_set() or self._is_forgotten(version, checksum)

                manifest = embed_snapshot(
                    self.run, version, self.retriever, self.corpus, should_stop=should_stop, **kwargs
                )
                # A trainer that resumes forgets its later snapshots, then withdraws their versions: one of the two looks
                # comes last. Until then the trainer itself leaves out versions of snapshots that it has not made.
                if self.share.number == 0 and self._is_forgotten(version, checksum):
                    withdraw(self.run.index, version)
                    raise BuildStopped(f"index version {version} is withdrawn: the run went back to an earlier step")
            else:
                params, checksum = _read_params(params_place)
                manifest = embed_params(
                    self.run, version, self.retriever, params, checksum, self.corpus,
                    should_stop=self.stop.is_set, **kwargs,
                )  # fmt: skip
        self.status.update(state="waiting", newest_version=version, search_recall=manifest.search_recall, at_once=True)
        return manifest

    def _is_forgotten(self, version: int, checksum: str) -> bool:
        """Whether the trainer was resumed from an earlier step since: it will make that snapshot anew."""
        try:
            return snapshot_checksum(self.run, version) != checksum
        except FileNotFoundError:
            return True

    def _trainer_statuses(self) -> list[dict[str, Any]] | None:
        """What the trainers last said; None when one of them cannot be read."""
        try:
            return [read_json(path) for path in sorted(self.run.status.glob("trainer-*.json"), key=str)]
        except (OSError, ValueError) as error:
            logger.warning("a trainer's status cannot be read: %s", error)
            return None

    def _trainers_finished(self) -> bool:
        statuses = self._trainer_statuses()
        if not statuses or any(status.get("state") not in ("finished", "failed") for status in statuses):
            return False
        said_so_now = all(status.get("updated_at", 0) >= self.started_at for status in statuses)
        return said_so_now or time.time() - self.started_at > RESTART_GRACE_SECS

    def _retire(self) -> None:
        if self.share.number != 0:
            return
        statuses = self._trainer_statuses()
        if not statuses or any(s.get("state") == "running" and s.get("index_version", -1) < 0 for s in statuses):
            return  # somebody has not said yet what is in use: a trainer that resumes first has to read its checkpoint
        in_use = {int(status.get(name, -1)) for status in statuses for name in ("index_version", "pending_version")}
        in_use |= _named(statuses, "kept_versions") | _named(statuses, "awaited_versions")
        retire(self.run.index, in_use, self.keep_newest)


class _SignOfLife:
    """When a trainer that says it is running last wrote its status.

    By this process's clock, which need not agree with the trainer's.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], float] = {}
        self._warned = False

    def look(self, statuses: Sequence[Mapping[str, Any]], timeout_secs: float) -> None:
        """Warns once when none has for a while, or the process of each is gone from this host.

        Raises:
          TimeoutError: when none has for `timeout_secs`.
        """
        running = [status for status in statuses if status.get("state") == "running"]
        now = time.monotonic()
        said = {(status.get("host"), status.get("pid"), status.get("updated_at")): status for status in running}
        self._seen = {key: self._seen.get(key, now) for key in said}
        if not running:  # none has begun yet, or all have said that they ended
            return
        silent_secs = now - max(self._seen.values())  # one that lives is enough
        names = ", ".join(f"process {status.get('pid')} on {status.get('host')}" for status in running)
        if silent_secs > timeout_secs:
            raise TimeoutError(
                f"the trainer ({names}) was running and has given no sign of life for {silent_secs:.0f} s: it was probably "
                "killed; start the train job again with the same --run_dir, and this job beside it, or raise "
                "embed.trainer_timeout_secs"
            )
        gone = all(_is_gone(status) for status in running)
        if not gone and silent_secs <= TRAINER_SILENT_SECS:
            self._warned = False
        elif not self._warned:
            self._warned = True
            logger.warning(
                "the trainer (%s) was running and %s; waiting up to %.0f s for it to be started again",
                names, "is gone" if gone else f"has given no sign of life for {silent_secs:.0f} s", timeout_secs,
            )  # fmt: skip


def _is_gone(status: Mapping[str, Any]) -> bool:
    """Whether a trainer's process is known not to exist any more: only on this host."""
    if status.get("host") != socket.gethostname() or "pid" not in status:
        return False
    try:
        os.kill(int(status["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _named(statuses: Iterable[Mapping[str, Any]], field: str) -> set[int]:
    """The versions that a field of the trainers' statuses lists."""
    return {int(version) for status in statuses for version in status.get(field, ())}


def _read_params(place: Place) -> tuple[dict[str, Any], str]:
    """Parameters and their checksum, the same one that a snapshot of them has."""
    path = place / PARAMS_FILE if place.is_dir() else place
    content = path.read_bytes()
    try:
        flat = safetensors.numpy.load(content)
    except Exception as error:  # safetensors raises its own kind, and others for odd headers
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
    return nest_params(flat), hashlib.sha256(content).hexdigest()


class _Status:
    """RUN/status/embedder.json, for the progress display."""

    def __init__(self, run: RunDir, builder: int):
        self._path = run.builder_status(builder)
        self._content: dict[str, Any] = {
            "state": "waiting",
            "version": -1,
            "newest_version": max(list_versions(run.index), default=-1),
            "documents_done": 0,
            "documents_total": 0,
            "docs_per_sec": 0.0,
            "pid": os.getpid(),
        }
        self._every_secs = STORED_STATUS_SECS if is_remote(self._path) else STATUS_SECS
        self._written_at, self._failing = -float("inf"), False

    def update(self, *, at_once: bool = False, **changes: Any) -> None:
        """Changes fields; written when the state changes, else at most every half second."""
        at_once |= changes.get("state", self._content["state"]) != self._content["state"]
        self._content.update(changes)
        if at_once or time.monotonic() - self._written_at > self._every_secs:
            self._written_at = time.monotonic()
            self._write()

    def _write(self) -> None:
        try:
            write_json_atomically(self._path, self._content | {"updated_at": time.time()})
        except OSError as error:  # a full disk: what was said last stands
            if not self._failing:
                logger.error("%s cannot be written, the embed job goes on: %s", self._path, error)
            self._failing = True
        else:
            self._failing = False

    def __enter__(self) -> "_Status":
        self.update(at_once=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, BuildStopped):
            self.update(state="finished", at_once=True)
        else:
            self.update(state="failed", error=str(error), at_once=True)


class _Stop(threading.Event):
    """Set when the job shall end; knows what it ends, for the message."""

    is_building = False


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """An event that SIGTERM and SIGINT set; only the main thread can listen to them."""
    stop = _Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        ends = "ending after this batch" if stop.is_building else "no longer waiting for a snapshot"
        logger.info("%s: %s", signal.Signals(number).name, ends)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
