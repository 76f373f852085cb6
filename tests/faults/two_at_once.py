"""Two trainers, or two embed jobs, started in one run directory by mistake; and a lock that its killed holder leaves."""

import functools
import time
from pathlib import Path

from tests.faults.jobs import Job, Workshop, metrics, wait_until
from tests.faults.table import Row


def start_twice(workshop: Workshop) -> Row:
    """The second is refused with the first one's process; the first, killed, keeps nobody out."""
    run = workshop.run("two-at-once")
    failures: list[str] = []
    recovery_secs: list[float] = []
    jobs = {job: workshop.start(job, run, *_long(job)) for job in ("embed", "train")}
    wait_until(lambda: metrics(run), *jobs.values())
    for job, first in jobs.items():
        second = workshop.start(job, run, *_long(job))
        status = second.finish(60)
        said = second.said()
        if status != 1 or f"(process {first.process.pid} on " not in said or not first.running():
            failures.append(f"a second {job}: ended with {status}: {said[-300:]}")
    for job, first in jobs.items():
        first.kill()
        third = workshop.start(job, run, *_long(job))
        lock = run.trainer_lock if job == "train" else run.builder_status(0).with_suffix(".lock")
        if wait_until(functools.partial(_holds, third, lock), third):
            recovery_secs.append(time.time() - third.started_at)
        else:
            failures.append(f"{job} after a killed one: {third.said()[-300:]}")
        third.kill()
    notes = "to recover: from the start of another one, after the first was killed, to its lock"
    survived = 2 - len(failures)
    return Row("a second trainer or embed job started", 2, survived, "nothing: refused", recovery_secs, notes, failures)


def _long(job: str) -> tuple[str, ...]:
    """Settings with which a job goes on for longer than it is looked at."""
    return ("train.num_steps=100000", "refresh.RefreshConfig.mode='asynchronous'") if job == "train" else ()


def _holds(job: Job, lock: Path) -> bool:
    return lock.exists() and lock.read_text().startswith(f"{job.process.pid} on ")
