"""The gcloud commands for TPU VMs that the launcher needs, run or only printed.

Source: Google's reference of `gcloud compute tpus tpu-vm` and `gcloud compute tpus queued-resources`.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

OLDER_RUNTIME_VERSION = "tpu-ubuntu2204-base"
RUNTIME_VERSIONS = {
    "v2": OLDER_RUNTIME_VERSION,
    "v3": OLDER_RUNTIME_VERSION,
    "v4": OLDER_RUNTIME_VERSION,
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
CONNECTION_LOST = 255  # ssh's own exit status, and gcloud's with it
FOR_GOOD = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_ARGUMENT",
    "auth login",
    "has not been used in project",
    "required property",
    "not properly specified",
)
PASSING = (  # what the network here and the services there say on a bad day
    "ConnectionError",
    "TransportError",
    "ServerNotFoundError",
    "Max retries exceeded",
    "ailed to resolve",
    "Network is unreachable",
    "Connection reset",
    "Connection aborted",
    "imed out",
    "HTTPError 5",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Internal error",
    "INTERNAL",
)
LOOK_TIMEOUT_SECS, STOP_TIMEOUT_SECS, RUN_TIMEOUT_SECS = 120.0, 240.0, 3600.0
# no question about a key that is not there yet, and an end to a connection whose other end is gone
SSH_FLAGS = ("--quiet", "--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4")


class GcloudFailed(Exception):  # noqa: N818 - reads as what it says
    """A command that did not do what it was told, with gcloud's words.

    Attributes:
      said: these words alone.
    """

    def __init__(self, message: str, said: str = ""):
        super().__init__(message)
        self.said = said


class GcloudUnreachable(GcloudFailed):
    """A question that was not answered, and may be asked again."""

    @property
    def is_passing(self) -> bool:
        """Whether this is known to pass: the network here, or the service there."""
        return any(word in self.said for word in PASSING)


class Node(NamedTuple):
    """What gcloud says of a TPU VM: its state, such as READY or PREEMPTED, and how many machines it has."""

    state: str
    num_workers: int


def runtime_version(accelerator_type: str) -> str:
    """The machine image that Google names for a TPU, such as v5litepod-8."""
    return RUNTIME_VERSIONS[accelerator_type.split("-")[0]]


def workers_of(accelerator_type: str) -> int:
    """How many machines a slice has; only what is printed before there is one depends on it.

    Older names count TensorCores, two a chip; machines have four chips, of v5e and v6e slices of one machine up to eight.

    >>> [workers_of(name) for name in ("v3-8", "v4-32", "v5litepod-8", "v5litepod-16", "v6e-64", "v5p-8")]
    [1, 4, 1, 4, 16, 1]

    Raises:
      ValueError: a name that Google does not have.
    """
    kind, _, size_text = accelerator_type.partition("-")
    if kind not in RUNTIME_VERSIONS or not size_text.isdecimal():
        remedy = f"; Google calls it v5litepod-{size_text or 8}" if kind in ("v5e", "v5lite", "v5") else ""
        raise ValueError(
            f"expected an accelerator type such as v5litepod-8 or v4-32, of {', '.join(RUNTIME_VERSIONS)}, "
            f"got {accelerator_type!r}{remedy}"
        )
    size = int(size_text)
    if kind in ("v5litepod", "v6e"):
        return 1 if size <= 8 else size // 4
    return max(1, size // 8)


class Gcloud:
    """The commands, for one zone and project."""

    def __init__(self, zone: str, project: str | None, dry_run: bool = False):
        """Args:
        zone: such as us-west4-a.
        project: None for the one that gcloud is set up with.
        dry_run: print each command instead of running it.
        """
        self.where = [f"--zone={zone}", *([f"--project={project}"] if project else [])]
        self.dry_run = dry_run

    def describe(self, name: str) -> Node | None:
        """What there is under this name; None: nothing."""
        found = self._look("tpu-vm", "describe", name, "--format=json")
        if found is None:
            return None
        return Node(str(found.get("state", "UNKNOWN")), len(found.get("networkEndpoints") or [None]))

    def create(self, name: str, accelerator_type: str, version: str, spot: bool) -> None:
        self._run(
            "tpu-vm", "create", name, f"--accelerator-type={accelerator_type}", f"--version={version}",
            *(["--spot"] if spot else []),
        )  # fmt: skip

    def start(self, name: str) -> None:
        self._run("tpu-vm", "start", name)

    def delete(self, name: str) -> None:
        self._run("tpu-vm", "delete", name, "--quiet")

    def queue(self, name: str, accelerator_type: str, version: str, spot: bool) -> None:
        """Asks for a TPU VM of this name, to be given when there is one free."""
        self._run(
            "queued-resources", "create", name, f"--node-id={name}", f"--accelerator-type={accelerator_type}",
            f"--runtime-version={version}", *(["--spot"] if spot else []),
        )  # fmt: skip

    def queue_state(self, name: str) -> str | None:
        """Of such a request, such as WAITING_FOR_RESOURCES or ACTIVE; None: there is none."""
        found = self._look("queued-resources", "describe", name, "--format=json")
        return None if found is None else str((found.get("state") or {}).get("state", "UNKNOWN"))

    def delete_queued(self, name: str) -> None:
        """Withdraws a request, with the TPU VM that came of it."""
        self._run("queued-resources", "delete", name, "--force", "--quiet")

    def upload(self, file: Path, name: str, place: str) -> None:
        """Copies a file to all machines of a TPU VM."""
        self._run("tpu-vm", "scp", str(file), f"{name}:{place}", "--worker=all", "--quiet")

    def ssh_command(self, name: str, worker: int | str, command: str) -> list[str]:
        """What runs a command on one machine, or on "all"."""
        return self._whole("tpu-vm", "ssh", name, f"--worker={worker}", f"--command={command}", *SSH_FLAGS)

    def ssh(self, name: str, worker: int | str, command: str) -> None:
        """Runs a command on one machine, or on "all".

        Raises:
          GcloudFailed: with what the command said.
        """
        self._execute(self.ssh_command(name, worker, command))

    def ssh_status(self, name: str, worker: int, command: str) -> int:
        """Runs a command quietly and returns its exit status; `CONNECTION_LOST` when the machine does not answer."""
        whole = self.ssh_command(name, worker, command)
        if self.dry_run:
            print(shlex.join(whole))
            return 0
        try:
            return _completed(whole, STOP_TIMEOUT_SECS).returncode
        except GcloudUnreachable:
            return CONNECTION_LOST

    def follow(self, name: str, worker: int, command: str) -> "subprocess.Popen[str]":
        """Starts a command whose output is read as it comes. Ctrl-C here does not reach it."""
        return subprocess.Popen(
            self.ssh_command(name, worker, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def _whole(self, group: str, verb: str, *arguments: str) -> list[str]:
        return ["gcloud", "compute", "tpus", group, verb, *arguments, *self.where]

    def names(self, group: str) -> list[str]:
        """Of all that there is of "tpu-vm" or "queued-resources" in the zone."""
        found = self._look(group, "list", "--format=json(name)") or []
        return [str(one["name"]).rsplit("/", 1)[-1] for one in found]

    def _look(self, group: str, *arguments: str) -> Any:
        command = self._whole(group, *arguments)
        if self.dry_run:
            print(shlex.join(command))
            return None
        done = _completed(command, LOOK_TIMEOUT_SECS)
        if done.returncode == 0:
            return json.loads(done.stdout)
        if "NOT_FOUND" in done.stderr:
            return None
        failed = GcloudFailed if any(word in done.stderr for word in FOR_GOOD) else GcloudUnreachable
        raise failed(_words(command, done.stderr or f"exit status {done.returncode}"), done.stderr)

    def _run(self, group: str, verb: str, *arguments: str) -> None:
        self._execute(self._whole(group, verb, *arguments))

    def _execute(self, command: list[str]) -> None:
        if self.dry_run:
            print(shlex.join(command))
            return
        print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
        done = _completed(command, RUN_TIMEOUT_SECS)
        if done.returncode:
            said = done.stderr + done.stdout
            raise GcloudFailed(_words(command, said or f"exit status {done.returncode}"), said)


def _completed(command: Sequence[str], timeout_secs: float) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_secs)
    except FileNotFoundError as error:
        raise GcloudFailed(
            "gcloud is not installed; see https://cloud.google.com/sdk/docs/install, then `gcloud auth login`"
        ) from error
    except subprocess.TimeoutExpired as error:
        said = f"timed out: no answer in {timeout_secs:.0f} s"
        raise GcloudUnreachable(_words(command, said), said) from error


def _words(command: Sequence[str], said: str) -> str:
    lines = said.strip().splitlines()
    return f"{shlex.join(command)} failed:\n" + "\n".join(f"  {line}" for line in lines[-15:])
