"""Pre-trains on a Cloud TPU VM, of one machine or a pod, from your own computer.

    python launch/tpu_vm/pretrain.py --tpu=realm --zone=us-west4-a --accelerator_type=v5litepod-8 \
      --run_dir=gs://bucket/realm --corpus=gs://bucket/wiki.jsonl --recipe=base

`make tpu-pretrain TPU=realm ZONE=us-west4-a` is the same. Creates the TPU VM or takes the one of this name, installs this
checkout there with the tested versions, starts launch/local.py on all its machines, and shows the output of the first. A machine
that is pre-empted, lost or failing is replaced or started again, and the run goes on from its last checkpoint. Ctrl-C ends
the run with a checkpoint; the same command goes on, also from another computer. The TPU VM stays until --delete.

The embed job runs on the CPUs of the same machines (--embedder=cpu), on some chips of a slice of one machine
(--embedder=devices --trainer_devices=0,1,2,3 --embedder_devices=4,5,6,7), or on TPU VMs of its own, each of one machine
(--embedder_tpus=2 --embedder_type=v5litepod-8).

--dry_run prints every command and runs none.

Exit status: 0 done, 1 failed, 130 after Ctrl-C, 143 after SIGTERM.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "launch")]

from gcloud import CONNECTION_LOST, Gcloud, GcloudFailed, runtime_version, workers_of  # noqa: E402 - beside this script
from processes import Stopped, StopSignals  # noqa: E402

WORKER = "bash realm_jax/launch/tpu_vm/worker.sh"
GONE = ("PREEMPTED", "TERMINATED")  # is not coming back under this name, which must be freed
NOT_UNDERSTOOD, PREEMPTED = 2, 143
LOOK_SECS, WAIT_SECS = 1.0, 15.0  # between two looks at the followers, and at a machine that is being made
LOST_SECS = 3.0  # after the first lost connection; longer after each further one
HEALTHY_SECS = 900.0  # a run that lived so long has nothing to do with the failures before it
CAPACITY_TIMEOUT_SECS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU VM by its name, and what runs on it."""

    name: str
    accelerator_type: str
    arguments: tuple[str, ...]  # of launch/local.py
    host: int | None = (
        None  # its number, where it is one of several slices that embed; None: as many as it has machines
    )
    num_hosts: int = 1

    def start_command(self, worker: int, num_workers: int) -> str:
        host = (worker, num_workers) if self.host is None else (self.host, self.num_hosts)
        return f"{WORKER} start {shlex.join([*self.arguments, f'--host={host[0]}', f'--num_hosts={host[1]}'])}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line said."""

    trainer: Slice
    embedders: tuple[Slice, ...]
    zone: str
    project: str | None
    version: str | None
    spot: bool
    queued: bool
    max_failures: int
    dry_run: bool

    @property
    def slices(self) -> tuple[Slice, ...]:
        return (self.trainer, *self.embedders)


class RunFailed(Exception):  # noqa: N818 - reads as what it says
    """A run that failed again and again, or at once for good."""


class Supervisor:
    """Keeps one slice at its work until that is done."""

    def __init__(self, settings: Settings, own: Slice, gcloud: Gcloud, check_signals: Callable[[], None], shows: bool):
        """Args:
        own: the slice.
        check_signals: asked at each look; raises to end this supervisor.
        shows: whether the output of the slice's first machine is printed.
        """
        self.settings, self.slice, self.gcloud = settings, own, gcloud
        self.check_signals, self.shows = check_signals, shows
        self.num_workers = workers_of(own.accelerator_type)

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
                worker, status, words = "of those", 1, [str(failed)]
            if status == 0:
                return
            state = self._state()
            if state != "READY":
                note(f"{self.slice.name} is {state}: it is replaced, and the run goes on from its last checkpoint")
                continue
            if time.monotonic() - began >= HEALTHY_SECS:
                failures = 0
            failures += status != PREEMPTED
            said = f"{self.slice.name}, machine {worker}: ended with {status}"
            if status == NOT_UNDERSTOOD or failures > self.settings.max_failures:
                self.stop()
                raise RunFailed(f"{said}; its last words:\n" + "\n".join(words))
            note(f"{said}; all machines start again from the last checkpoint")
            self.stop()

    def ensure(self) -> None:
        """Waits for the TPU VM, asking for one where there is none, or where it is gone."""
        name, asked_at = self.slice.name, time.monotonic()
        told = ""
        while True:
            state = self._state()
            if state == "READY":
                return
            if state in GONE:
                self._delete()
                state = "absent"
            elif state == "STOPPED":
                self.gcloud.start(name)
            if state == "absent":
                self._ask()
                if self.settings.dry_run:
                    return
            if told != state:
                told = state
                note(f"{name}: {state if state != 'absent' else 'asked for'}")
            if time.monotonic() - asked_at > CAPACITY_TIMEOUT_SECS:
                raise RunFailed(f"{name} did not come in {CAPACITY_TIMEOUT_SECS / 3600:.0f} hours; it is {state}")
            self._pause(WAIT_SECS)

    def install_and_start(self) -> None:
        """Brings the checkout and its environment to all machines and starts the launcher there, where it does not run."""
        name = self.slice.name
        running = self.gcloud.ssh_status(name, 0, f"{WORKER} running") == 0
        if self.settings.dry_run or not running:
            note(f"{name}: installing on {self.num_workers} machines (some minutes the first time)")
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(ARCHIVE) if self.settings.dry_run else Path(folder) / ARCHIVE
                if not self.settings.dry_run:
                    pack(archive)
                self.gcloud.upload(archive, name, ARCHIVE)
            self.gcloud.ssh(name, "all", INSTALL)
        else:
            note(f"{name}: a run is at work there; following it")

        def start(worker: int) -> None:
            self.gcloud.ssh(name, worker, self.slice.start_command(worker, self.num_workers))

        self._on_all(start)

    def follow(self) -> tuple[int | str, int, list[str]]:
        """Until all machines have ended well or one has not: that one, its exit status and its last lines."""
        followers = [Follower(self.gcloud, self.slice.name, worker) for worker in range(self.num_workers)]
        try:
            while True:
                for follower in followers:
                    show = print if self.shows and follower.worker == 0 else None
                    follower.look(show)
                ended = [follower for follower in followers if follower.status is not None]
                for follower in ended:
                    if follower.status:
                        return follower.worker, follower.status, list(follower.last_lines)
                if len(ended) == len(followers):
                    return 0, 0, []
                self._pause(LOOK_SECS)
        finally:
            for follower in followers:
                follower.close()

    def stop(self) -> None:
        """Ends the run on all machines with a checkpoint, at the same time; one that is gone is left."""
        self._on_all(lambda worker: self.gcloud.ssh_status(self.slice.name, worker, f"{WORKER} stop"))

    def _on_all(self, do: Callable[[int], object]) -> None:
        """For each machine at the same time: the processes of a run wait for each other only so long."""
        with ThreadPoolExecutor(1 if self.settings.dry_run else self.num_workers) as pool:
            list(pool.map(do, range(self.num_workers)))

    def is_ready(self) -> bool:
        return self._state() == "READY"

    def delete(self) -> None:
        if self.settings.dry_run or self._state() != "absent":
            self._delete()

    def _state(self) -> str:
        """The node's state; "absent" where there is neither a node nor a request for one."""
        node = self.gcloud.describe(self.slice.name)
        if node is not None:
            self.num_workers = node.num_workers
            return node.state
        if not self.settings.queued:
            return "absent"
        waiting = self.gcloud.queue_state(self.slice.name)
        if waiting in ("FAILED", "SUSPENDED"):
            self.gcloud.delete_queued(self.slice.name)
            return "absent"
        return "absent" if waiting is None else waiting

    def _ask(self) -> None:
        own, settings = self.slice, self.settings
        version = settings.version or runtime_version(own.accelerator_type)
        ask = self.gcloud.queue if settings.queued else self.gcloud.create
        try:
            ask(own.name, own.accelerator_type, version, settings.spot)
        except GcloudFailed as refused:
            if not any(word in str(refused) for word in ("RESOURCE_EXHAUSTED", "no more capacity", "Internal error")):
                raise
            note(f"{own.name}: no capacity now; asking again ({str(refused).splitlines()[-1].strip()})")

    def _delete(self) -> None:
        if self.settings.queued:
            self.gcloud.delete_queued(self.slice.name)
        else:
            self.gcloud.delete(self.slice.name)

    def _pause(self, secs: float) -> None:
        end = time.monotonic() + secs
        while True:
            self.check_signals()
            if time.monotonic() >= end:
                return
            time.sleep(min(0.2, secs))


ARCHIVE = "realm_jax.tar.gz"
INSTALL = (
    f"mkdir -p realm_jax.new && tar -xzf {ARCHIVE} -C realm_jax.new && "
    "if [ -d realm_jax/.venv-tpu ]; then mv realm_jax/.venv-tpu realm_jax.new/; fi && "
    f"rm -rf realm_jax && mv realm_jax.new realm_jax && {WORKER} install"
)


class Follower:
    """Reads what one machine's launcher says, over a connection that may break and is made again."""

    MAX_LOST = 5  # connections in a row without a line

    def __init__(self, gcloud: Gcloud, name: str, worker: int):
        self.gcloud, self.name, self.worker = gcloud, name, worker
        self.status: int | None = None
        self.last_lines: collections.deque[str] = collections.deque(maxlen=20)
        self._num_lines, self._lost, self._again_at = 0, 0, 0.0
        self._new: collections.deque[str] = collections.deque()
        self._connect()

    def look(self, show: Callable[[str], None] | None) -> None:
        """Takes in what came; sets `status` once the launcher has ended, or its machine cannot be reached."""
        if self.status is not None:
            return
        ended = self._process.poll()
        if ended is not None:
            self._reader.join(LOOK_SECS)  # what it said last
        while self._new:
            line = self._new.popleft()
            self._num_lines, self._lost = self._num_lines + 1, 0
            self.last_lines.append(line)
            if show is not None:
                show(line)
        if ended is None:
            return
        if ended != CONNECTION_LOST or self._lost == self.MAX_LOST:
            self.status = ended
        elif not self._again_at:
            node = self.gcloud.describe(self.name)
            if node is None or node.state != "READY":
                self.status = ended
            self._lost += 1
            self._again_at = time.monotonic() + self._lost * LOST_SECS
        elif time.monotonic() >= self._again_at:
            self._connect()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, signal.SIGKILL)  # with the ssh that it started
        self._process.wait()

    def _connect(self) -> None:
        self._again_at = 0.0
        self._process = self.gcloud.follow(self.name, self.worker, f"{WORKER} follow {self._num_lines}")
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._new.append(line.rstrip("\n"))


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
            packed.add(ROOT / name, name)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Ended(Exception):  # noqa: N818 - reads as what it says
    """The trainer is done, or was stopped: who embeds for it need not go on."""


class EmbedderThread(threading.Thread):
    """Keeps a slice that only embeds at its work, beside the trainer's supervisor."""

    def __init__(self, settings: Settings, own: Slice, gcloud: Gcloud):
        super().__init__(name=own.name, daemon=True)
        self._over = threading.Event()
        self.failure: Exception | None = None
        self.supervisor = Supervisor(settings, own, gcloud, self._check, shows=False)

    def run(self) -> None:
        try:
            self.supervisor.run()
        except Ended:
            self.supervisor.stop()
        except (RunFailed, GcloudFailed) as error:
            self.failure = error
            note(f"{self.name} embeds no more: {error}")

    def end(self) -> None:
        self._over.set()
        self.join()

    def _check(self) -> None:
        if self._over.is_set():
            raise Ended


def pretrain(settings: Settings) -> int:
    """Runs it and says how it ended; returns the exit status."""
    gcloud = Gcloud(settings.zone, settings.project, settings.dry_run)
    if settings.dry_run:
        return dry_run(settings, gcloud)
    signals = StopSignals()
    trainer = Supervisor(settings, settings.trainer, gcloud, signals.check, shows=True)
    embedders = [EmbedderThread(settings, own, gcloud) for own in settings.embedders]
    try:
        for embedder in embedders:
            embedder.start()
        trainer.run()
        return 0
    except (RunFailed, GcloudFailed) as failure:
        note(str(failure))
        return 1
    except Stopped as stopped:
        note(
            f"{settings.trainer.name}: ending the run, with up to 90 s for a checkpoint; the same command goes on from there"
        )
        trainer.stop()
        return stopped.exit_status
    finally:
        for embedder in embedders:
            embedder.end()
        names = ", ".join(own.name for own in settings.slices)
        note(f"still there, at a cost: {names}; the same command with --delete (make tpu-delete) ends that")


def dry_run(settings: Settings, gcloud: Gcloud) -> int:
    """Prints the commands in their order."""
    for own in settings.slices:
        supervisor = Supervisor(settings, own, gcloud, lambda: None, shows=False)
        print(
            f"# {own.name}: is it there? if not (as assumed here), or if it was pre-empted, ask for it and wait until it is READY"
        )
        supervisor.ensure()
        print(f"# unless it is at work already: this checkout, as {ARCHIVE}, and its environment to all machines")
        supervisor.install_and_start()
        print("# until the launcher ends, from each machine at the same time; the first one's output is shown")
        for worker in range(supervisor.num_workers):
            print(shlex.join(gcloud.ssh_command(own.name, worker, f"{WORKER} follow 0")))
        print("# Ctrl-C, and before a start after a failure")
        supervisor.stop()
    return 0


def delete(settings: Settings) -> int:
    """Ends the run and deletes the TPU VMs."""
    gcloud = Gcloud(settings.zone, settings.project, settings.dry_run)
    try:
        for own in settings.slices:
            supervisor = Supervisor(settings, own, gcloud, lambda: None, shows=False)
            if settings.dry_run or supervisor.is_ready():
                supervisor.stop()
            supervisor.delete()
    except GcloudFailed as failure:
        note(str(failure))
        return 1
    return 0


def parse(arguments: Sequence[str]) -> tuple[Settings, bool]:
    """The settings, and whether to delete the TPU VMs instead of training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tpu", required=True, help="name of the TPU VM; made if there is none")
    parser.add_argument("--zone", required=True, help="such as us-west4-a")
    parser.add_argument("--project", help="default: the one that gcloud is set up with")
    parser.add_argument("--accelerator_type", default="v5litepod-8", help="of a TPU VM to be made; default v5litepod-8")
    parser.add_argument("--version", help="machine image; default: the one that Google names for the accelerator type")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    parser.add_argument("--queued", action="store_true", help="wait in Google's queue for capacity (queued resources)")
    parser.add_argument(
        "--run_dir", help="gs://BUCKET/RUN, or a folder that all machines see; default: runs/TPU on the one"
    )
    parser.add_argument("--embedder_tpus", type=int, default=0, help="TPU VMs of one machine each that only embed")
    parser.add_argument("--embedder_type", default="v5litepod-8", help="their accelerator type; default v5litepod-8")
    parser.add_argument(
        "--max_failures", type=int, default=3, help="starts after failures in a row; pre-emptions are not counted"
    )
    parser.add_argument("--delete", action="store_true", help="end the run and delete the TPU VMs")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    known, launcher = parser.parse_known_args(arguments)
    for name in ("--host", "--num_hosts", "--embed_only"):
        if any(argument.split("=")[0] == name for argument in launcher):
            parser.error(f"{name} is for launch/local.py alone; here each machine gets its own")
    try:
        num_workers = workers_of(known.accelerator_type)
        if known.embedder_tpus and workers_of(known.embedder_type) > 1:
            parser.error(
                f"--embedder_type={known.embedder_type} has {workers_of(known.embedder_type)} machines; several TPU VMs of one "
                "machine each embed as well: --embedder_tpus=N"
            )
    except ValueError as refused:
        parser.error(str(refused))
    run_dir = known.run_dir or f"runs/{known.tpu}"
    if (num_workers > 1 or known.embedder_tpus) and not ("://" in run_dir or run_dir.startswith("/")):
        parser.error(
            f"--run_dir={run_dir} lies on one machine of several; expected gs://BUCKET/RUN, or a folder that all of them mount"
        )
    if known.spot and "://" not in run_dir and not run_dir.startswith("/"):
        note(f"--run_dir={run_dir} goes with the TPU VM when it is pre-empted: use gs://BUCKET/RUN to resume")
    common = [f"--run_dir={run_dir}", *launcher]
    trainer = (*common, "--embedder=none") if known.embedder_tpus else tuple(common)
    embedding = (*common, "--embed_only", f"--log_dir=logs/{known.tpu}")
    return (
        Settings(
            trainer=Slice(known.tpu, known.accelerator_type, trainer),
            embedders=tuple(
                Slice(f"{known.tpu}-embedder-{number}", known.embedder_type, embedding, number, known.embedder_tpus)
                for number in range(known.embedder_tpus)
            ),
            zone=known.zone,
            project=known.project,
            version=known.version,
            spot=known.spot,
            queued=known.queued,
            max_failures=known.max_failures,
            dry_run=known.dry_run,
        ),
        known.delete,
    )


def main(arguments: Sequence[str]) -> int:
    settings, deletes = parse(arguments)
    return delete(settings) if deletes else pretrain(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
