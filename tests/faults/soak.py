"""Trainer and embed job side by side for hours: does anything grow that should not?

    python -m tests.faults.soak --minutes=120

Prints a row of the table, with the slopes of memory over the second half, and ends with status 1 where something grew.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from realm_jax.retrieval.versions import list_versions
from realm_jax.run_dir import RunDir
from tests.faults.jobs import Job, Workshop, metrics, wait_until
from tests.faults.table import Row, markdown
from tests.launch.stub_stages import load_launcher

MOST_GROWTH = 0.02
"""Of a process's memory in the second half; in a short soak allocators have not settled, and the slope is mostly noise."""
MOST_VERSIONS = 8
"""Two newest, one served, one about to be, those of two checkpoints, one being built; and one between two looks."""


class Sample(NamedTuple):
    """What trainer and embed job hold at one moment."""

    at_secs: float
    resident_mib: tuple[float, float]
    open_files: tuple[int, int]
    threads: tuple[int, int]
    versions: int
    disk_mib: float  # of the run, but for the metrics: these grow by a line a step
    metrics_mib: float


def soak(workshop: Workshop, minutes: float, every_secs: float = 5.0) -> Row:
    """Trains asynchronously for so long, then sends SIGTERM."""
    run = workshop.run("soak")
    mode = (
        "refresh.RefreshConfig.mode='asynchronous'",
        "refresh.RefreshConfig.snapshot_every_steps=40",
        "train.checkpoint_every_steps=100",
        "train.num_steps=100000000",
    )
    # as the launcher starts its jobs: with one arena a thread glibc keeps ever more of what is free
    load_launcher()
    memory = {"GLIBC_TUNABLES": sys.modules["processes"].KEEP_HUGE_PAGES}
    embedder = workshop.start("embed", run, environment=memory)
    trainer = workshop.start("train", run, *mode, environment=memory)
    if not wait_until(lambda: metrics(run), trainer, embedder):
        return Row("soak", 1, 0, "everything", failures=[f"it did not begin: {trainer.said()[-500:]}"])
    began = time.monotonic()
    samples: list[Sample] = []
    while time.monotonic() - began < 60 * minutes and trainer.running() and embedder.running():
        samples.append(sample(run, (trainer, embedder), time.monotonic() - began))
        time.sleep(every_secs)
    steps, swaps = len(metrics(run)), len((run.metrics / "swaps.jsonl").read_text().splitlines())
    failures = [
        f"{name} ended: {job.said()[-500:]}"
        for name, job in (("trainer", trainer), ("embed job", embedder))
        if not job.running()
    ]
    trainer.process.terminate()
    if trainer.finish() != 143:
        failures.append(f"the trainer ended with {trainer.process.returncode}, not 143")
    embedder.finish()
    grown, figures = growth(samples)
    failures += grown
    notes = f"{minutes:g} minutes with the launcher's GLIBC_TUNABLES, {steps} steps, {swaps} swaps; {figures}"
    return Row("soak: trainer and embed job on the same cores", 1, int(not failures), "nothing", (), notes, failures)


def sample(run: RunDir, jobs: tuple[Job, Job], at_secs: float) -> Sample:
    proc = [Path("/proc", str(job.process.pid)) for job in jobs]
    lines = [dict(line.split(":", 1) for line in (place / "status").read_text().splitlines()) for place in proc]
    resident = tuple(int(line["VmRSS"].split()[0]) / 1024 for line in lines)
    files = tuple(len(list((place / "fd").iterdir())) for place in proc)
    metric_bytes = size_of(run.metrics)
    return Sample(
        at_secs,
        (resident[0], resident[1]),
        (files[0], files[1]),
        (int(lines[0]["Threads"]), int(lines[1]["Threads"])),
        len(list_versions(run.index)),
        (size_of(run.path) - metric_bytes) / 2**20,
        metric_bytes / 2**20,
    )


def size_of(folder: Path) -> int:
    """Bytes in files that are there throughout the look."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike glob it takes no offence at folders that go
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(place, name).stat().st_size
    return total


def growth(samples: list[Sample]) -> tuple[list[str], str]:
    """What grew in the second half, and the figures."""
    half = samples[len(samples) // 2 :]
    first, failures, figures = samples[: len(samples) // 2], [], []
    hours = np.asarray([one.at_secs for one in half]) / 3600
    for number, name in enumerate(("trainer", "embed job")):
        resident = np.asarray([one.resident_mib[number] for one in half])
        slope = float(np.polyfit(hours, resident, 1)[0])
        files = [max(one.open_files[number] for one in part) for part in (first, half)]
        threads = [max(one.threads[number] for one in part) for part in (first, half)]
        figures.append(
            f"{name}: {resident[0]:.0f} MiB at half time, {resident[-1]:.0f} at the end, slope {slope:+.1f} MiB an hour, at most "
            f"{files[0]} open files in the first half and {files[1]} in the second, {threads[0]} and {threads[1]} threads"
        )
        if slope * (hours[-1] - hours[0]) > MOST_GROWTH * resident[0]:
            failures.append(f"the {name}'s memory grew by {slope * (hours[-1] - hours[0]):.1f} MiB in the second half")
        if files[1] > files[0] + 2 or threads[1] > threads[0] + 2:
            failures.append(
                f"the {name} opened more files or threads in the second half than in the first: {files}, {threads}"
            )
    versions, disk = (
        [max(one.versions for one in part) for part in (first, half)],
        [max(one.disk_mib for one in part) for part in (first, half)],
    )
    figures.append(
        f"at most {versions[0]} and {versions[1]} versions, {disk[0]:.1f} and {disk[1]:.1f} MiB of disk; metrics {half[-1].metrics_mib:.1f} MiB"
    )
    if versions[1] > MOST_VERSIONS or disk[1] > 1.1 * disk[0] + 1:
        failures.append(f"versions or disk grew: {versions}, {disk}")
    return failures, "; ".join(figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument(
        "--place", type=Path, help="a new folder for corpus, run and logs; default: a temporary one, removed"
    )
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="realm_jax_soak_") as temporary,
        Workshop(chosen.place or Path(temporary)) as shop,
    ):
        row = soak(shop, chosen.minutes)
    print(markdown([row]))
    sys.exit(bool(row.failures))
