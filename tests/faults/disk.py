"""A disk that is full, or may not be written to."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from realm_jax.retrieval.versions import IndexRefused, list_versions, verify
from realm_jax.run_dir import RunDir
from tests.faults.jobs import Job, Workshop, difference, metrics, wait_until
from tests.faults.table import Row

DISK_MIB = 64


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[bool]:
    """A file system in memory of `DISK_MIB`; false where this user may not mount one."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,{options}", "tmpfs", str(place)]
    try:
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_disks(workshop: Workshop, times: int, seed: int = 0) -> Row:
    """The disk is filled to the last byte at some instant, until trainer or embed job has ended, and then freed again.

    Both must say what is full and leave what was published whole; started again they must come to the same run.
    """
    name, rng = "disk full", random.Random(seed)
    whole = workshop.whole("whole")
    place = workshop.place / "disk"
    failures: list[str] = []
    ended: list[str] = []
    recovery_secs: list[float] = []
    with mounted(place, "mode=0700") as is_mounted:
        if not is_mounted:
            return Row(name, 0, 0, "", notes="left out: this user may not mount a file system (start it as root)")
        for number in range(times):
            run = RunDir.of(place / f"run-{number}")
            jobs = {name: workshop.start(name, run) for name in ("embed", "train")}
            full_after = rng.randrange(3, 18)
            wait_until(lambda run=run, after=full_after: len(metrics(run)) > after, *jobs.values())
            time.sleep(rng.uniform(0, 0.3))
            with _ballast(place / "ballast"):
                wait_until(lambda jobs=jobs: not all(job.running() for job in jobs.values()), secs=60)
                wait_until(lambda jobs=jobs: not jobs["train"].running(), secs=5)
            ended += [name for name, job in jobs.items() if not job.running()]
            failures += [f"run {number}: {text}" for text in _wrong(run, jobs)]
            freed_at, before = time.time(), len(metrics(run))
            for name, job in list(jobs.items()):
                if not job.running():
                    jobs[name] = workshop.start(name, run)
            wait_until(lambda run=run, before=before: len(metrics(run)) > before, jobs["train"])
            recovery_secs.append(time.time() - freed_at)
            status = jobs["train"].finish()
            jobs["embed"].kill()
            if status or (differs := difference(run, whole)):
                failures.append(f"run {number}: {jobs['train'].said()[-300:] if status else differs}")
    notes = f"seed {seed}; jobs that ended, with an error that names the place, or after the trainer had: {', '.join(ended) or 'none'}"
    return Row("disk full", times, max(0, times - len(failures)), "nothing", recovery_secs, notes, failures)


@contextlib.contextmanager
def _ballast(path: Path) -> Iterator[None]:
    """Takes the last byte of the disk, until the body is left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        path.unlink()


def _wrong(run: RunDir, jobs: dict[str, Job]) -> list[str]:
    """What is not as it should be after the disk was full."""
    found = []
    for name, job in jobs.items():
        last_words = job.said().rpartition(f"realm_jax {name}: ")[2]  # before them Orbax shows tracebacks of its own
        if (
            name == "embed"
            and job.process.poll() == 0
            and "training has ended" in job.said()
            and not jobs["train"].running()
        ):
            continue  # the trainer was first, and the embed job had nothing left to wait for
        if not job.running() and (job.process.returncode != 1 or str(run.path) not in last_words):
            found.append(f"{name} ended with {job.process.returncode}: {job.said()[-600:]}")
    for version in list_versions(run.index):
        try:
            verify(run.index_version(version))
        except IndexRefused as refusal:
            found.append(str(refusal))
    return found


def refuse_read_only(workshop: Workshop) -> Row:
    """A run directory that may not be written to is refused by both jobs before any work."""
    name, place = "run directory read-only", workshop.place / "read-only"
    failures = []
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(mounted(place, "ro")):
            if os.getuid() == 0:
                return Row(
                    name, 0, 0, "", notes="left out: root may write anywhere, and no file system could be mounted"
                )
            place.chmod(0o555)
            stack.callback(place.chmod, 0o755)
        for job in ("train", "embed"):
            started = workshop.start(job, RunDir.of(place / "run"))
            if started.finish() == 0 or "expected a folder that can be written to" not in started.said():
                failures.append(f"{job} ended with {started.process.returncode}: {started.said()[-300:]}")
    return Row(name, 2, 2 - len(failures), "nothing: refused before it began", failures=failures)
