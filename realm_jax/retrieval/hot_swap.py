"""The trainer's side of the index: new versions are loaded beside the old one and swapped in between two steps."""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from realm_jax.retrieval.agreement import Agreement, SingleHost
from realm_jax.retrieval.index import Index
from realm_jax.retrieval.stall import StallMeter

logger = logging.getLogger(__name__)

NO_VERSION = -1
REFUSED = -2  # what a host says of a proposed version that is damaged where it reads it


class WaitStopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop while it waited for an index; says for which."""


class LoadedVersion(NamedTuple):
    """An index in memory, and where it comes from."""

    version: int
    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    built_at: float  # unix seconds
    load_secs: float
    load_stall_ms: float  # the longest that other threads stood still while it was loaded


class Swap(NamedTuple):
    """One hot swap: at which step, to what, and how long the training thread was held up."""

    step: int
    version: int
    pause_ms: (
        float  # of the exchange of references and the agreement, or the worst stall while loading, if that is longer
    )
    load_secs: float


class VersionSource(NamedTuple):
    """Where versions come from: list, then verify and load. Refused versions raise ValueError."""

    list_versions: Callable[[], list[int]]
    load: Callable[[int], tuple[Index, float]]  # version -> (index, built_at)


class HotSwap:
    """Serves one index version and prepares the next in a background thread.

    Swaps happen in `begin_step` alone, at multiples of `swap_every_steps`, so a step never sees its index change. With
    several hosts, host 0 decides which version is next, every host loads it, and all swap at the first multiple at which
    every one of them reports it loaded.
    """

    def __init__(
        self,
        source: VersionSource,
        agreement: Agreement,
        *,
        swap_every_steps: int,
        timeout_secs: float,
        poll_secs: float = 0.5,
        is_leader: bool = True,
        on_pending: Callable[[int], None] = lambda version: None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        """Args:
        source: lists and loads versions.
        agreement: between the hosts of the run.
        swap_every_steps: swaps happen at multiples of this.
        timeout_secs: how long to wait for a version that a step cannot do without.
        poll_secs: pause between two looks for a new version.
        is_leader: this is host 0.
        on_pending: told each version before it is loaded, so that it can be kept from being retired.
        should_stop: asked while waiting; the wait then ends with WaitStopped.
        """
        self._source, self._agreement = source, agreement
        self._swap_every_steps, self._timeout_secs, self._poll_secs = swap_every_steps, timeout_secs, poll_secs
        self._is_leader, self._on_pending, self._should_stop = is_leader, on_pending, should_stop
        self._current: LoadedVersion | None = None
        self._pending: LoadedVersion | None = None
        self._target = NO_VERSION  # what a follower is to load
        self._refused: dict[int, str] = {}  # and why
        self._changed = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def version(self) -> int:
        return self._current.version if self._current else NO_VERSION

    @property
    def built_at(self) -> float:
        return self._current.built_at if self._current else 0.0

    @property
    def index(self) -> Index:
        """The index being served; hold on to it for one search, not for longer."""
        assert self._current is not None, "serve() comes first"
        return self._current.index

    def serve(self, version: int | None) -> Swap:
        """Blocks until a version is published and loaded, and serves it: the first index of a run, or a resumed one's.

        Args:
          version: which one; none takes the newest there is, on every host the one that host 0 found.

        Raises:
          TimeoutError: when it does not appear in time.
          WaitStopped: when should_stop said so.
        """
        start = time.monotonic()
        host_0_chooses = version is None
        if host_0_chooses and not self._is_leader:
            version = int(self._agreement.exchange("realm_jax/first_version", NO_VERSION)[0])
        while True:
            published = [v for v in self._source.list_versions() if v not in self._refused]
            wanted = version if version is not None else max(published, default=NO_VERSION)
            if wanted in published:
                loaded = self._load(wanted)
                if loaded is not None:
                    break
            if version is not None and version in self._refused:
                raise ValueError(
                    f"index version {version:08d} is needed to go on, but refused: {self._refused[version]}"
                )
            name = "first index version" if version is None else f"index version {version:08d}"
            if self._should_stop():
                raise WaitStopped(f"the {name}" if version is None else name)
            if time.monotonic() - start > self._timeout_secs:
                raise TimeoutError(
                    f"no {name} was published within {self._timeout_secs:.0f} s; is the embed job running on this run directory "
                    f"(there: {', '.join(map(str, published)) or 'none'})?{self._said_of_refused()}"
                )
            time.sleep(self._poll_secs)
        if host_0_chooses and self._is_leader:
            self._agreement.exchange("realm_jax/first_version", loaded.version)
        self._current = loaded
        return Swap(0, loaded.version, (time.monotonic() - start) * 1e3, loaded.load_secs)

    def watch(self) -> None:
        """Starts looking for newer versions in the background."""
        self._thread = threading.Thread(target=self._watch, name="hot-swap", daemon=True)
        self._thread.start()

    def begin_step(self, step: int, wait_for: int | None = None) -> Swap | None:
        """Swaps if a newer version is loaded on every host and `step` is a multiple of `swap_every_steps`.

        Args:
          step: the step about to begin.
          wait_for: a version that must be served from this step on (synchronous refresh, replay): blocks for it.

        Returns:
          The swap, or None.

        Raises:
          TimeoutError: a version waited for did not come, or another host did not answer.
          WaitStopped: when should_stop said so while it waited.
        """
        if wait_for is not None and wait_for != self.version:
            start = time.monotonic()
            self.serve(wait_for)
            self._agreement.exchange(f"realm_jax/swap/{step}", self.version)
            assert self._current is not None
            return Swap(step, self.version, (time.monotonic() - start) * 1e3, self._current.load_secs)
        if self._thread is None or step % self._swap_every_steps:
            return None
        if self._failure is not None:
            raise self._failure
        start = time.monotonic()
        if not self._swap_if_agreed(f"realm_jax/swap/{step}"):
            return None
        assert self._current is not None
        pause_ms = max((time.monotonic() - start) * 1e3, self._current.load_stall_ms)
        logger.info("step %d: index %08d swapped in, pause %.1f ms", step, self.version, pause_ms)
        return Swap(step, self.version, pause_ms, self._current.load_secs)

    def wait_for_newer(self, step: int) -> Swap:
        """Blocks until a newer version is loaded on every host: the index has grown too old to go on.

        Raises:
          TimeoutError: when none comes.
          WaitStopped: when should_stop said so.
        """
        deadline = time.monotonic() + self._timeout_secs
        attempt = 0
        while time.monotonic() < deadline:
            attempt += 1
            if self._swap_if_agreed(f"realm_jax/stale/{step}/{attempt}"):
                assert self._current is not None
                waited_ms = (self._timeout_secs - (deadline - time.monotonic())) * 1e3
                return Swap(step, self.version, waited_ms, self._current.load_secs)
            if self._failure is not None:
                raise self._failure
            if self._should_stop():
                raise WaitStopped(f"an index newer than version {self.version:08d}")
            time.sleep(self._poll_secs)
        raise TimeoutError(
            f"step {step}: index {self.version:08d} is too old and no newer one came within {self._timeout_secs:.0f} s; "
            "look at the embed job's log, or raise max_index_age_steps"
        )

    def close(self) -> None:
        """Ends the background thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def _swap_if_agreed(self, name: str) -> bool:
        """Exchanges what every host has loaded; all hosts draw the same conclusion from it."""
        pending = self._pending
        refused = self._target > self.version and self._target in self._refused
        said = self._agreement.exchange(name, pending.version if pending else REFUSED if refused else NO_VERSION)
        proposed = said[0]
        with self._changed:
            swapped = proposed > self.version and all(version == proposed for version in said)
            target = self._target
            if swapped:
                self._current = pending
                if self._pending is pending:  # else a newer one was loaded this instant
                    self._pending = None
            elif REFUSED in said:  # damaged on one host: no host may serve it, and it must not block newer ones
                logger.error("index version %08d was refused by a host and is given up", proposed)
                self._refused.setdefault(proposed, "another host could not load it")
                self._pending, self._target = None, NO_VERSION
            else:
                self._target = proposed
            if swapped or self._target != target:
                self._changed.notify_all()
        return swapped

    def _said_of_refused(self) -> str:
        return "".join(f" Version {version:08d} was refused: {reason}." for version, reason in self._refused.items())

    def _pending_version(self) -> int:
        pending = self._pending
        return pending.version if pending else NO_VERSION

    def _watch(self) -> None:
        while not self._stopping:
            try:
                wanted = self._next_version()
                if wanted is not None:
                    self._prepare(wanted)
            except OSError as error:  # a shared file system that stumbles: the old version goes on serving
                logger.error("looking for a new index version failed, trying again: %s", error)
            except BaseException as error:
                self._failure = error
                return
            with self._changed:
                if not self._stopping:
                    self._changed.wait(self._poll_secs)

    def _prepare(self, version: int) -> None:
        """Loads a version to be swapped in. One that still waits is let go first: two indexes fit in memory, three may not."""
        with self._changed:
            self._pending = None
        loaded = self._load(version)
        with self._changed:
            if loaded is not None and loaded.version > self.version:
                self._pending = loaded

    def _next_version(self) -> int | None:
        """The version to load now: the newest for host 0 (and not while one waits to be agreed on), the target for others."""
        held = max(self.version, self._pending_version())
        if self._is_leader:
            newest = max((v for v in self._source.list_versions() if v not in self._refused), default=NO_VERSION)
            agreed_needed = self._pending is not None and not isinstance(self._agreement, SingleHost)
            return newest if newest > held and not agreed_needed else None
        return self._target if self._target > held and self._target not in self._refused else None

    def _load(self, version: int) -> LoadedVersion | None:
        """Loads a version; one that is damaged is reported, remembered and not tried again."""
        self._on_pending(version)
        start = time.monotonic()
        try:
            with StallMeter() as stall:
                index, built_at = self._source.load(version)
        except ValueError as error:
            logger.error("index version %08d refused, version %08d keeps serving: %s", version, self.version, error)
            self._refused[version] = str(error)
            return None
        except FileNotFoundError as error:  # retired between listing and loading: a newer one is there
            logger.warning("index version %08d disappeared while it was loaded: %s", version, error)
            return None
        return LoadedVersion(version, index, built_at, time.monotonic() - start, stall.worst_ms)
