"""A host of two that is lost in the middle of a step, or while the hosts agree to swap."""

import re
import socket
import time
from typing import NamedTuple

from realm_jax.run_dir import RunDir
from realm_jax.training.snapshots import list_snapshots
from tests.faults.jobs import Job, Workshop, difference, metrics, wait_until
from tests.faults.table import Row

SETTINGS = (
    "train.distributed=True",
    "refresh.RefreshConfig.embedder='in_trainer'",
    "refresh.RefreshConfig.timeout_secs=30.0",
    "faulty_task.Faulty.secs=0.2",
)
LONGEST_SECS = 150.0
"""Until the other host has ended: jax misses a silent process after 100 s, an agreement after `timeout_secs`."""


class Loss(NamedTuple):
    """Which host is lost, when, and what the other must say of it."""

    host: int
    moment: str
    says: str


LOSSES = (
    Loss(1, "in a step", r"Task 1 heartbeat timeout|stopped sending heartbeats\):\s+1\b"),
    Loss(1, "at the agreement on a swap", "host 1 of 2 said nothing about realm_jax/swap/8 within 30 s"),
    Loss(0, "in a step", "the leader task was preempted/died/restarted"),
)


def lose_hosts(workshop: Workshop) -> Row:
    """The other host must end within the time-out and name the lost one; started again, the two must come to the same run."""
    whole = workshop.run("two-hosts")
    statuses = [job.finish() for job in start_hosts(workshop, whole)]
    if any(statuses):
        return Row(
            "a host of two lost", len(LOSSES), 0, "", failures=[f"the hosts ended with {statuses} without a fault"]
        )
    lost = {}
    for number, loss in enumerate(LOSSES):  # all first, because the others take their time to notice
        run = workshop.run(f"host-lost-{number}")
        jobs = start_hosts(workshop, run)
        if loss.moment == "in a step":
            wait_until(lambda run=run: len(metrics(run)) >= 6, *jobs)
        else:
            wait_until(lambda run=run: 8 in list_snapshots(run), *jobs)
        jobs[loss.host].kill()
        lost[loss] = run, jobs[1 - loss.host], time.monotonic()
    failures, notes, recovery_secs = [], [], []
    for loss, (run, other, lost_at) in lost.items():
        wait_until(lambda: False, other, secs=LONGEST_SECS - (time.monotonic() - lost_at))
        what = f"host {loss.host} {loss.moment}"
        if other.running():
            other.kill()
            failures.append(f"{what}: the other still ran after {LONGEST_SECS:.0f} s")
            continue
        said = other.said()
        notes.append(f"{what}: the other ended with {other.process.returncode}")
        if not other.process.returncode or not re.search(loss.says, said):
            failures.append(f"{what}: ended with {other.process.returncode} and did not name it: {said[-800:]}")
            continue
        started, before = time.time(), len(metrics(run))
        again = start_hosts(workshop, run)
        wait_until(lambda run=run, started=started: any(line["time"] > started for line in metrics(run)), *again)
        recovery_secs.append(time.time() - started)
        statuses = [job.finish() for job in again]
        differs = f"ended with {statuses}: {again[0].said()[-500:]}" if any(statuses) else difference(run, whole)
        if differs:
            failures.append(f"{what}, started again after {before} steps: {differs}")
    survived = len(LOSSES) - len(failures)
    return Row(
        "a host of two lost (SIGKILL)",
        len(LOSSES),
        survived,
        "steps since the last checkpoint are done again",
        recovery_secs,
        "; ".join(notes),
        failures,
    )


def start_hosts(workshop: Workshop, run: RunDir) -> list[Job]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [
        {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        for number in (0, 1)
    ]
    return [workshop.start("train", run, *SETTINGS, environment=host) for host in hosts]
