"""Keeps a TPU VM at its work: asked for, installed, started, followed, and again when it is taken away."""

import contextlib
import dataclasses
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from follower import Follower
from gcloud import CONNECTION_LOST, Gcloud, GcloudFailed, GcloudUnreachable, runtime_version, workers_of

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKOUT = "realm_jax"  # in the home of the user there, from which everything is started
WORKER = f"bash {CHECKOUT}/launch/tpu_vm/worker.sh"
ARCHIVE = f"{CHECKOUT}.tar.gz"
INSTALL = (  # what runs is never replaced
    f"if [ -d realm_jax ] && {WORKER} running; then echo a run is at work here >&2; exit 9; fi && "
    f"rm -rf realm_jax.new && mkdir realm_jax.new && tar -xzf {ARCHIVE} -C realm_jax.new && "
    "if [ -d realm_jax/.venv-tpu ]; then mv realm_jax/.venv-tpu realm_jax.new/; fi && "
    f"rm -rf realm_jax && mv realm_jax.new realm_jax && {WORKER} install"
)
GONE = ("PREEMPTED", "TERMINATED")  # is not coming back under this name, which must be freed
ABSENT, UNREACHABLE = "absent", "unreachable"
RUNNING, DONE, NEITHER, NEW = (
    0,
    10,
    11,
    127,
)  # of `worker.sh running`, and where it is not there; others are gcloud's own
NOT_UNDERSTOOD, PREEMPTED = 2, 143  # of launch/local.py
LOOK_SECS = 1.0  # between two looks at the output
STATE_SECS, WAIT_SECS = 60.0, 15.0  # at the TPU VM, and at one that is being made or out of reach
FAILED_SECS = 15.0  # before the first start after a failure; twice as long before each further one
HEALTHY_SECS = 900.0  # a run that lived so long has nothing to do with the failures before it
CAPACITY_TIMEOUT_SECS = 24 * 3600.0
MAX_STRANGE = 5  # looks in a row that fail in a way that is not known to pass
NO_CAPACITY = ("RESOURCE_EXHAUSTED", "no more capacity", "Internal error")
QUOTA = re.compile(r"\bquota\b|\blimit\b", re.IGNORECASE)  # what the project may have, which no waiting changes
PER_MINUTE = re.compile(r"per (minute|100 seconds)", re.IGNORECASE)  # a quota of questions, which comes back


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU VM by its name, and what runs on it."""

    name: str
    accelerator_type: str
    arguments: tuple[str, ...]  # of launch/local.py
    host: int | None = None  # where it is one of several slices that embed; None: each of its machines is a host
    num_hosts: int = 1

    def start_command(self, worker: int, num_workers: int) -> str:
        host = (worker, num_workers) if self.host is None else (self.host, self.num_hosts)
        return f"{WORKER} start {shlex.join([*self.arguments, f'--host={host[0]}', f'--num_hosts={host[1]}'])}"

    @property
    def holds_its_run(self) -> bool:
        """Whether the run lies on the machine itself, and is lost with it."""
        run_dir = self.arguments[0].removeprefix("--run_dir=")
        return "://" not in run_dir and not run_dir.startswith("/")


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a TPU VM is asked for.

    Attributes:
      version: the machine image; None: the one that Google names for the accelerator type.
      spot: cheaper, and may be taken away at any time.
      queued: through Google's queue.
      max_failures: starts after failures in a row.
      dry_run: print the commands.
    """

    version: str | None = None
    spot: bool = False
    queued: bool = False
    max_failures: int = 3
    dry_run: bool = False


class RunFailed(Exception):  # noqa: N818 - reads as what it says
    """A run that failed again and again, or at once for good."""


class Supervisor:
    """Keeps one slice at its work until that is done."""

    def __init__(self, asking: Asking, own: Slice, gcloud: Gcloud, check_signals: Callable[[], None], shows: bool):
        """Args:
        asking: how to get the slice.
        own: the slice.
        gcloud: the commands.
        check_signals: asked at each look; raises to end this supervisor.
        shows: whether the output of the slice's first machine is printed.
        """
        self.asking, self.slice, self.gcloud = asking, own, gcloud
        self.check_signals, self.shows = check_signals, shows
        self.num_workers = workers_of(own.accelerator_type)
        self.known: str | None = None  # the last state that gcloud told; None: none yet
        self._unanswered = GcloudUnreachable("")
        self._seen: dict[int, int] = {}  # lines of each machine's output

    def run(self) -> None:
        """To the end of the run.

        Raises:
          RunFailed: more failures in a row than `max_failures`, with the last lines of the machine that failed first.
          GcloudFailed: no TPU VM can be asked for, such as for want of a permission.
        """
        failures = 0
        while True:
            self.ensure()
            began = time.monotonic()
            try:
                self.install_and_start()
                worker, status, words = self.follow()
            except GcloudFailed as failed:  # a machine that is gone, or out of disk: its state says which
                worker, status, words = "of those", CONNECTION_LOST, [str(failed)]
            if status == 0:
                return
            state = self.state()
            if state in (*GONE, ABSENT) and not self.slice.holds_its_run:
                note(f"{self.slice.name} is {state}: it is replaced, and the run goes on from its last checkpoint")
                continue
            if state != "READY":
                note(f"{self.slice.name} is {state}")
                continue
            if time.monotonic() - began >= HEALTHY_SECS:
                failures = 0
            failures += status != PREEMPTED
            if status == CONNECTION_LOST and failures <= self.asking.max_failures:
                note(f"{self.slice.name}, machine {worker} was not reached; trying again")  # a run may be at work there
                self._pause(FAILED_SECS)
                continue
            said = f"{self.slice.name}, machine {worker}: ended with {status}"
            if status == NOT_UNDERSTOOD or failures > self.asking.max_failures:
                self.stop()
                raise RunFailed(f"{said}; its last words:\n" + "\n".join(words))
            note(f"{said}; all machines start again from the last checkpoint")
            self.stop()
            self._pause(FAILED_SECS * 2 ** max(0, failures - 1))

    def ensure(self) -> None:
        """Waits for the TPU VM, asking for one where there is none, or where it is gone."""
        name, asked_at = self.slice.name, time.monotonic()
        told, strange = "", 0
        while True:
            state = self.state()
            if state == "READY":
                return
            strange = strange + 1 if state == UNREACHABLE and not self._unanswered.is_passing else 0
            if strange == MAX_STRANGE:
                raise self._unanswered
            if state in GONE and self.slice.holds_its_run:
                raise RunFailed(
                    f"{name} is {state}, and its run lay on it: delete it (--delete; make tpu-delete), and start with "
                    "--run_dir=gs://BUCKET/RUN (RUN_DIR=), which survives that"
                )
            if state in GONE:
                self.remove()
                state = ABSENT
            elif state == "STOPPED":
                self.gcloud.start(name)
            if state == ABSENT:
                self._ask()
                if self.asking.dry_run:
                    return
            says = {ABSENT: "asked for", UNREACHABLE: f"unreachable; asking again ({self._unanswered})"}.get(
                state, state
            )
            if told != says:
                told = says
                note(f"{name}: {says}")
            if time.monotonic() - asked_at > CAPACITY_TIMEOUT_SECS:
                raise RunFailed(f"{name} did not come in {CAPACITY_TIMEOUT_SECS / 3600:.0f} hours; it is {state}")
            self._pause(WAIT_SECS)

    def install_and_start(self) -> None:
        """Brings the checkout and its environment to all machines and starts the launcher there.

        Where a run is at work on some of them nothing is replaced, and only those are started that have failed: a machine
        that is done has done its part.
        """
        name = self.slice.name
        found = self._on_all(lambda worker: self.gcloud.ssh_status(name, worker, f"{WORKER} running"))
        for worker, status in enumerate(found):
            if status not in (RUNNING, DONE, NEITHER, NEW):
                raise GcloudFailed(f"machine {worker} of {name} cannot be reached")
        at_work = RUNNING in found and not self.asking.dry_run
        if at_work:
            note(f"{name}: a run is at work there; following it")
        else:
            note(f"{name}: installing on {machines(self.num_workers)} (some minutes the first time)")
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(ARCHIVE) if self.asking.dry_run else Path(folder) / ARCHIVE
                if not self.asking.dry_run:
                    pack(archive)
                self.gcloud.upload(archive, name, ARCHIVE)
            self.gcloud.ssh(name, "all", INSTALL)

        def start(worker: int) -> None:
            if not at_work or found[worker] not in (RUNNING, DONE):
                self._seen[worker] = 0
                self.gcloud.ssh(name, worker, self.slice.start_command(worker, self.num_workers))

        self._on_all(start)

    def follow(self) -> tuple[int | str, int, list[str]]:
        """Until all machines have ended well or one has not: that one, its exit status and its last lines."""
        followers = [
            Follower(self.gcloud, self.slice.name, worker, f"{WORKER} follow", self._seen.get(worker, 0))
            for worker in range(self.num_workers)
        ]
        looked_at = time.monotonic()
        try:
            while True:
                for follower in followers:
                    follower.look(print if self.shows and follower.worker == 0 else None)
                    self._seen[follower.worker] = follower.num_lines
                ended = [follower for follower in followers if follower.status is not None]
                for follower in ended:
                    if follower.status:
                        return follower.worker, follower.status, list(follower.last_lines)
                if len(ended) == len(followers):
                    return 0, 0, []
                lost = [follower for follower in followers if follower.is_lost]
                if time.monotonic() - looked_at > (WAIT_SECS if lost else STATE_SECS):  # connections may hang unbroken
                    looked_at = time.monotonic()
                    if self.state() not in ("READY", UNREACHABLE):
                        first = (lost or followers)[0]
                        return first.worker, CONNECTION_LOST, list(first.last_lines)
                self._pause(LOOK_SECS)
        finally:
            for follower in followers:
                follower.close()

    def stop(self) -> None:
        """Ends the run on all machines with a checkpoint, at the same time; one that is gone is left."""
        self._on_all(lambda worker: self.gcloud.ssh_status(self.slice.name, worker, f"{WORKER} stop"))

    def state(self) -> str:
        """The node's state; "absent": there is neither a node nor a request for one; "unreachable": gcloud cannot say."""
        try:
            self.known = self._look()
        except GcloudUnreachable as unanswered:
            self._unanswered = unanswered
            return UNREACHABLE
        return self.known

    def _look(self) -> str:
        node = self.gcloud.describe(self.slice.name)
        if node is not None:
            self.num_workers = node.num_workers
            return node.state
        if not self.asking.queued:
            return ABSENT
        waiting = self.gcloud.queue_state(self.slice.name)
        if waiting in ("FAILED", "SUSPENDED"):
            self.gcloud.delete_queued(self.slice.name)
            return ABSENT
        return ABSENT if waiting is None else waiting

    def remove(self) -> None:
        """Deletes the node, and the request that it came of, if there are such."""
        remove(self.gcloud, self.slice.name)

    def _ask(self) -> None:
        own, asking = self.slice, self.asking
        version = asking.version or runtime_version(own.accelerator_type)
        ask = self.gcloud.queue if asking.queued else self.gcloud.create
        try:
            ask(own.name, own.accelerator_type, version, asking.spot)
            self.known = "asked for"
        except GcloudFailed as refused:
            if not any(word in refused.said for word in NO_CAPACITY):
                raise
            if QUOTA.search(refused.said) and not PER_MINUTE.search(refused.said):
                raise RunFailed(
                    f"{own.name}: the project's quota does not allow for it, which waiting does not change; ask Google for more "
                    f"(console, IAM & Admin, Quotas: TPU API), or take another type, zone or --spot\n{refused}"
                ) from refused
            note(f"{own.name}: no capacity now; asking again ({refused.said.strip().splitlines()[-1].strip()})")

    def _on_all(self, do: Callable[[int], Any]) -> list[Any]:
        """For each machine at the same time: the processes of a run wait for each other only so long."""
        with ThreadPoolExecutor(1 if self.asking.dry_run else self.num_workers) as pool:
            return list(pool.map(do, range(self.num_workers)))

    def _pause(self, secs: float) -> None:
        end = time.monotonic() + secs
        while True:
            self.check_signals()
            if time.monotonic() >= end:
                return
            time.sleep(min(0.2, secs))


def remove(gcloud: Gcloud, name: str) -> None:
    """Deletes a TPU VM, and the request that it came of, if there are such."""
    if gcloud.queue_state(name) is not None:
        gcloud.delete_queued(name)
    elif gcloud.dry_run or gcloud.describe(name) is not None:
        gcloud.delete(name)


def pack(archive: Path) -> None:
    """This checkout's files as they are, but those that git ignores, and without its history.

    Raises:
      RunFailed: a copy that git does not know.
    """
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        raise RunFailed(f"{ROOT} is no git checkout, whose files are sent ({listed.stderr.strip()}); git clone it")
    with tarfile.open(archive, "w:gz") as packed:
        for name in sorted({name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}):
            with contextlib.suppress(FileNotFoundError):  # an editor's, gone meanwhile
                packed.add(ROOT / name, name)


def machines(count: int) -> str:
    return "1 machine" if count == 1 else f"{count} machines"


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
