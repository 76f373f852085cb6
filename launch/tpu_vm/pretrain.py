r"""Pre-trains on a Cloud TPU VM, of one machine or a pod, from your own computer.

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
import dataclasses
import re
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "launch"))

import options  # noqa: E402 - beside this script, and in launch/
from gcloud import Gcloud, GcloudFailed, workers_of  # noqa: E402
from hosts import Host, check_devices  # noqa: E402
from places import check_run_dir, corpus_there  # noqa: E402
from processes import Stopped, StopSignals  # noqa: E402
from supervisor import ABSENT, ARCHIVE, WORKER, Asking, RunFailed, Slice, Supervisor, note, remove  # noqa: E402

EMBED_AGAIN_SECS = 60.0  # after a slice that embeds has failed


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line said."""

    trainer: Slice
    embedders: tuple[Slice, ...]
    zone: str
    project: str | None
    asking: Asking

    @property
    def slices(self) -> tuple[Slice, ...]:
        return (self.trainer, *self.embedders)


class Ended(Exception):  # noqa: N818 - reads as what it says
    """The trainer is done, or was stopped: who embeds for it need not go on."""


class EmbedderThread(threading.Thread):
    """Keeps a slice that only embeds at its work, beside the trainer's supervisor."""

    def __init__(self, settings: Settings, own: Slice, gcloud: Gcloud):
        super().__init__(name=own.name, daemon=True)
        self._over = threading.Event()
        self.supervisor = Supervisor(settings.asking, own, gcloud, self._check, shows=False)

    def run(self) -> None:
        try:
            while True:
                try:
                    self.supervisor.run()
                    return
                except (RunFailed, GcloudFailed) as error:
                    note(f"{self.name} does not embed; trying again in {EMBED_AGAIN_SECS:.0f} s: {error}")
                    end = time.monotonic() + EMBED_AGAIN_SECS
                    while time.monotonic() < end:
                        self._check()
                        time.sleep(0.2)
        except Ended:
            self.supervisor.stop()

    def end(self) -> None:
        self._over.set()
        self.join()

    def _check(self) -> None:
        if self._over.is_set():
            raise Ended


def pretrain(settings: Settings) -> int:
    """Runs it and says how it ended; returns the exit status."""
    gcloud = Gcloud(settings.zone, settings.project, settings.asking.dry_run)
    if settings.asking.dry_run:
        return dry_run(settings, gcloud)
    signals = StopSignals()
    trainer = Supervisor(settings.asking, settings.trainer, gcloud, signals.check, shows=True)
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
        known = [trainer, *(embedder.supervisor for embedder in embedders)]
        names = ", ".join(one.slice.name for one in known if one.known not in (None, ABSENT))
        if names:
            note(f"still there, at a cost: {names}; the same command with --delete (make tpu-delete) ends that")


def dry_run(settings: Settings, gcloud: Gcloud) -> int:
    """Prints the commands in their order."""
    for own in settings.slices:
        supervisor = Supervisor(settings.asking, own, gcloud, lambda: None, shows=False)
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
    """Ends the run, and deletes its TPU VMs and the requests for them, however they were asked for."""
    gcloud = Gcloud(settings.zone, settings.project, settings.asking.dry_run)
    own = re.compile(rf"{re.escape(settings.trainer.name)}(-embedder-\d+)?")
    try:
        found = {
            name for group in ("tpu-vm", "queued-resources") for name in gcloud.names(group) if own.fullmatch(name)
        }
        if settings.asking.dry_run:
            found = {settings.trainer.name}
        if not found:
            note(f"there is no TPU VM {settings.trainer.name}, and no request for one")
        for name in sorted(found):
            there = dataclasses.replace(settings.trainer, name=name)
            supervisor = Supervisor(settings.asking, there, gcloud, lambda: None, shows=False)
            if settings.asking.dry_run or supervisor.state() == "READY":
                supervisor.stop()
            remove(gcloud, name)
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
    passed_on = parser.add_argument_group(
        "passed on to launch/local.py on every machine",
        "these, and --gin.NAME.PARAM=VALUE (--gin.MACRO=VALUE): a parameter of the run files, for every job but the report",
    )
    options.add_options(passed_on)
    known, bindings = parser.parse_known_args(arguments)
    for name in ("--host", "--num_hosts", "--embed_only"):
        if any(argument.partition("=")[0] == name for argument in bindings):
            parser.error(f"{name} is for launch/local.py alone; here each machine gets its own")
    run_dir = known.run_dir or f"runs/{known.tpu}"
    try:
        options.check(known, bindings)
        num_workers = workers_of(known.accelerator_type)
        if known.embedder_tpus:
            check_embedders(known)
        for name in ("trainer_devices", "embedder_devices"):
            check_devices(getattr(known, name), f"--{name}", Host(0, num_workers), tpu=True)
        check_run_dir(run_dir, num_workers > 1 or known.embedder_tpus > 0)
        documents = [corpus_there(source, run_dir) for source in known.corpus]
    except ValueError as refused:
        parser.error(str(refused))
    if known.spot and "://" not in run_dir and not run_dir.startswith("/"):
        note(f"--run_dir={run_dir} goes with the TPU VM when that is pre-empted; gs://BUCKET/RUN does not")
    common = [f"--run_dir={run_dir}", *(f"--corpus={place}" for place in documents)]
    common += [f"--{name}={value}" for name in options.PASSED_ON if (value := getattr(known, name))]
    common += bindings
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
            asking=Asking(known.version, known.spot, known.queued, known.max_failures, known.dry_run),
        ),
        known.delete,
    )


def check_embedders(known: argparse.Namespace) -> None:
    """Refuses TPU VMs that only embed where they cannot.

    Raises:
      ValueError: somebody else embeds, or a TPU VM of several machines.
    """
    for name in ("embedder", "embedder_devices"):
        if getattr(known, name):
            raise ValueError(f"--{name}: with --embedder_tpus those embed alone")
    if workers_of(known.embedder_type) > 1:
        raise ValueError(
            f"--embedder_type={known.embedder_type} has {workers_of(known.embedder_type)} machines; several TPU VMs of one "
            "machine each embed as well: --embedder_tpus=N"
        )


def main(arguments: Sequence[str]) -> int:
    settings, deletes = parse(arguments)
    return delete(settings) if deletes else pretrain(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
