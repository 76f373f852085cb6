"""The embed job killed with SIGKILL, while a reader verifies every version that it can see."""

import random
import threading
import time
from collections import Counter
from pathlib import Path

from realm_jax.retrieval.versions import MANIFEST, IndexRefused, list_versions, verify
from realm_jax.run_dir import RunDir
from realm_jax.training.snapshots import list_snapshots
from tests.faults.jobs import PATIENCE_SECS, Job, Workshop, metrics, wait_until
from tests.faults.table import Row

MOMENTS = ("any instant", "a shard's folder", "a shard's record", "the manifest's temporary file")


class Reader(threading.Thread):
    """Verifies all published versions again and again, as whoever is about to load one does."""

    def __init__(self, index_dir: Path):
        super().__init__(daemon=True)
        self.index_dir, self.stopping = index_dir, threading.Event()
        self.looks, self.seen, self.broken = 0, set[int](), list[str]()

    def run(self) -> None:
        while not self.stopping.wait(0.03):
            for version in list_versions(self.index_dir):
                place = self.index_dir / f"{version:08d}"
                try:
                    verify(place)
                except IndexRefused as refusal:
                    if (place / MANIFEST).exists():  # else it was retired meanwhile
                        self.broken.append(str(refusal))
                else:
                    self.looks += 1
                    self.seen.add(version)

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopping.set()
        self.join()


def kill_embedders(workshop: Workshop, times: int, seed: int = 0) -> Row:
    """A third of the kills come at any instant, the others soon after a file of an unpublished version appears.

    The trainer is synchronous: it waits for the version of its last snapshot, so that whatever was finished of it can be used.
    """
    rng = random.Random(seed)
    run = workshop.run(f"embedder-killed-{seed}")
    trainer = workshop.start(
        "train", run, "train.num_steps=10000", "refresh.RefreshConfig.snapshot_every_steps=2",
        "refresh.RefreshConfig.timeout_secs=600.0", "train.checkpoint_every_steps=1000", "faulty_task.Faulty.secs=0.0",
    )  # fmt: skip
    if not wait_until(lambda: list_snapshots(run), trainer):
        return Row("embed job killed (SIGKILL)", times, 0, "", failures=[trainer.said()[-500:]])
    hits: Counter[str] = Counter()
    failures: list[str] = []
    recovery_secs: list[float] = []
    finished: dict[Path, int] = {}  # shards that a killed job had finished, and when
    with Reader(run.index) as reader:
        while hits.total() < times:
            broken = len(reader.broken)
            job = _life(workshop, run, rng, recovery_secs)
            if not job.kill():
                failures.append(f"the embed job ended by itself: {job.said()[-500:]}")
                break
            hits[_where(run)] += 1
            repeated = [str(path) for path, made in finished.items() if _written_at(path) not in (made, None)]
            finished |= {path: made for path in _records(run) if (made := _written_at(path)) is not None}
            if repeated or len(reader.broken) > broken:
                failures.append(f"finished shards done again: {repeated}; broken versions: {reader.broken[broken:]}")
        last = workshop.start("embed", run, "embed.once=True")
        wait_until(lambda: _unpublished(run) is None, last)
        last.finish()
        wait_until(lambda: list_versions(run.index)[-1] in reader.seen, trainer)
    served = [line["index_version"] for line in metrics(run)]
    if not trainer.kill() or served != [2.0 * (step // 2) for step in range(len(served))]:
        failures.append(f"the trainer did not get every refresh: {served}; {trainer.said()[-300:]}")
    lost = (
        f"none of {len(set(served))} refreshes, none of {len(finished)} finished shards"
        if not failures
        else "see below"
    )
    notes = (
        f"seed {seed}; {', '.join(f'{count} {place}' for place, count in hits.most_common())}; meanwhile a reader verified "
        f"{len(reader.seen)} versions {reader.looks} times and found {len(reader.broken)} broken"
    )
    survived = max(0, hits.total() - len(failures))
    return Row("embed job killed (SIGKILL)", hits.total(), survived, lost, recovery_secs, notes, failures)


def _life(workshop: Workshop, run: RunDir, rng: random.Random, recovery_secs: list[float]) -> Job:
    """Starts an embed job and returns it at the moment when it shall be killed."""
    moment, end = rng.choice(MOMENTS), time.monotonic() + rng.uniform(0, 10)
    awaited = wait_until(lambda: _unpublished(run), secs=30)
    job = workshop.start("embed", run)
    secs = PATIENCE_SECS if moment != "any instant" else end - time.monotonic()
    if wait_until(lambda: awaited in list_versions(run.index), job, secs=secs):
        recovery_secs.append(time.time() - job.started_at)
    if moment == "any instant":
        time.sleep(max(0.0, end - time.monotonic()))
    else:
        wait_until(lambda: _appeared(moment, run), job, poll_secs=0.0)
        time.sleep(rng.uniform(0, 0.03 if moment == "a shard's folder" else 0.002))
    return job


def _unpublished(run: RunDir) -> int | None:
    """The version of a snapshot that waits to be embedded."""
    waiting = set(list_snapshots(run)) - set(list_versions(run.index))
    return max(waiting, default=None)


def _appeared(moment: str, run: RunDir) -> bool:
    pattern = {
        "a shard's folder": "shard-*",
        "a shard's record": "shard-*/.shard.json.*",
        "the manifest's temporary file": f".{MANIFEST}.*",
    }
    version = _unpublished(run)
    return version is not None and bool(_found(run.index_version(version), pattern[moment]))


def _found(place: Path, pattern: str) -> list[Path]:
    """What is there of an unpublished version; nothing of one that is published and retired while one looks."""
    try:
        return list(place.glob(pattern))
    except FileNotFoundError:
        return []


def _records(run: RunDir) -> list[Path]:
    """Of the unpublished version's finished shards."""
    version = _unpublished(run)
    return [] if version is None else _found(run.index_version(version), "*/shard.json")


def _written_at(path: Path) -> int | None:
    """In nanoseconds; none for one that is retired with its version."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _where(run: RunDir) -> str:
    """What a killed embed job was at, by what it left."""
    version = _unpublished(run)
    if version is None or not run.index_version(version).exists():
        return "before it wrote anything of the next version"
    place = run.index_version(version)
    shards, finished = (len(_found(place, pattern)) for pattern in ("shard-*", "shard-*/shard.json"))
    if _found(place, f".{MANIFEST}.*"):
        return "between the manifest's temporary file and its rename"
    if _found(place, "*/.shard.json.*"):
        return "between a shard record's temporary file and its rename"
    if shards > finished:
        return "while writing a shard"
    return "between two shards" if finished < 4 else "after the last shard, before the manifest"
