"""Every file of a published index version and of a checkpoint cut short, bit-flipped and deleted, one after the other."""

import itertools
import logging
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from realm_jax import config
from realm_jax.retrieval.versions import MANIFEST, IndexRefused, list_versions, load_version
from realm_jax.run_dir import RunDir
from realm_jax.training import loop
from realm_jax.training.checkpoint import Checkpoints, ResumeUnit
from realm_jax.training.snapshots import list_snapshots
from tests.faults.jobs import RUN_FILE, Workshop, metrics, status, wait_until
from tests.faults.table import Row


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 3
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path], None], ...] = (cut_short, flip_a_bit, delete)


def damaged(whole: Path, copy: Path) -> Iterator[tuple[Path, str]]:
    """Copies of a folder, each with another file damaged in another way: the file, and what was done."""
    for file in sorted(path for path in whole.rglob("*") if path.is_file()):
        for damage in DAMAGES:
            if file.stat().st_size == 0 and damage is not delete:
                continue  # there is nothing to cut or flip
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            place = copy / file.relative_to(whole)
            damage(place)
            yield place, f"{file.relative_to(whole)}: {damage.__name__.replace('_', ' ')}"


def damage_versions(workshop: Workshop) -> Row:
    """The newest version of a whole run."""
    run = workshop.whole("whole")
    return damage_version(run.index_version(list_versions(run.index)[-1]), workshop.place / "damaged")


def damage_version(whole: Path, place: Path) -> Row:
    """Every damage must be refused with the file's name, or change nothing that is served."""
    queries = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    expected = load_version(whole).search(queries, 5)
    injected, failures, harmless = 0, [], set()
    version_dir = place / whole.name
    for file, what in damaged(whole, version_dir):
        injected += 1
        try:
            found = load_version(version_dir).search(queries, 5)
        except IndexRefused as refusal:
            named = str(file) if file.name != MANIFEST else str(version_dir)  # a manifest may name another file
            if named not in str(refusal):
                failures.append(f"{what}: refused without the file's name: {refusal}")
        except Exception as error:
            failures.append(f"{what}: {repr(error)[:300]}")
        else:
            harmless.add(file.name)
            if not all(map(np.array_equal, found, expected)):
                failures.append(f"{what}: served, with other documents")
    notes = f"damage without effect on what is served: {', '.join(sorted(harmless)) or 'none'}"
    return Row(
        "a file of a published version damaged", injected, injected - len(failures), "nothing", (), notes, failures
    )


class _Restorer:
    """Restores the newest readable checkpoint as a trainer that starts does, without training."""

    def __init__(self, workshop: Workshop):
        settings = config.bind("train", [str(RUN_FILE)], [f"CORPUS={workshop.place / 'corpus'}"])
        self.task, self.mesh = settings["task"].build(0), loop.MeshConfig().build()
        self.rng, self.batch_size = jax.random.key(0), settings["batch_size"]
        self.layout = loop._lay_out(self.task, settings["optimizer"], self.mesh, settings["num_steps"], self.rng)

    def restore(self, run: RunDir) -> ResumeUnit:
        checkpoints = Checkpoints(run)
        try:
            return loop._first_unit(checkpoints, self.layout, self.mesh, self.task, self.batch_size, self.rng, ())
        finally:
            checkpoints.close()


def damage_versions_of_a_run(workshop: Workshop) -> Row:
    """New versions are damaged before a running trainer can load them: it must say so, serve the old one and take the next."""
    run = workshop.run("damaged-versions")
    trainer = workshop.start(
        "train", run, "refresh.RefreshConfig.mode='asynchronous'", "refresh.RefreshConfig.snapshot_every_steps=10",
        "train.num_steps=100000",
    )  # fmt: skip
    failures: list[str] = []
    recovery_secs: list[float] = []
    embedder = workshop.start("embed", run)
    wait_until(lambda: metrics(run), trainer)
    embedder.finish(0)
    for damage, pattern in itertools.product(DAMAGES, ("shard-00002-of-00004/embeddings.npy", MANIFEST)):
        if damage is delete and pattern == MANIFEST:
            continue  # then the version was never published
        served = status(run)["index_version"]
        wait_until(lambda served=served: max(list_snapshots(run)) > served, trainer)
        trainer.process.send_signal(signal.SIGSTOP)
        workshop.start("embed", run, "embed.once=True").finish()
        damaged = list_versions(run.index)[-1]
        damage(run.index_version(damaged) / pattern)
        damaged_at = time.time()
        trainer.process.send_signal(signal.SIGCONT)
        refused = f"index version {damaged:08d} refused, version {served:08d} keeps serving"
        wait_until(lambda refused=refused: refused in trainer.said(), trainer, secs=30)
        wait_until(lambda damaged=damaged: max(list_snapshots(run)) > damaged, trainer)
        workshop.start("embed", run, "embed.once=True").finish()
        newest = list_versions(run.index)[-1]
        if wait_until(lambda newest=newest: status(run)["index_version"] == newest, trainer, secs=30):
            recovery_secs.append(time.time() - damaged_at)
        if refused not in trainer.said() or status(run)["index_version"] != newest or newest == damaged:
            what = f"version {damaged}, {pattern}, {damage.__name__}"
            failures.append(f"{what}: {status(run)['index_version']} of {newest} is served: {trainer.said()[-500:]}")
    trainer.kill()
    injected = 2 * len(DAMAGES) - 1
    notes = "to recover: from the damage to the next whole version's service, with the start of an embed job in between"
    survived = injected - len(failures)
    return Row(
        "a new version damaged before a trainer loads it",
        injected,
        survived,
        "one refresh each",
        recovery_secs,
        notes,
        failures,
    )


def damage_the_needed_version(workshop: Workshop) -> Row:
    """The version that a checkpoint names is damaged between a stop and the resumption: the trainer says what to remove,
    and then the embed job makes it again, although newer ones are there.
    """
    run, fault = workshop.run("damaged-needed-version"), "the version that a resumed trainer needs damaged"
    bindings = (
        "refresh.RefreshConfig.mode='asynchronous'", "refresh.RefreshConfig.swap_every_steps=1000",
        "train.num_steps=100000",
    )  # fmt: skip
    embedder, trainer = workshop.start("embed", run), workshop.start("train", run, *bindings)
    wait_until(lambda: len(list_versions(run.index)) > 1, embedder, trainer)
    embedder.finish(0)
    trainer.process.terminate()
    trainer.finish()
    needed = status(run)["index_version"]
    flip_a_bit(run.index_version(needed) / "shard-00001-of-00004" / "embeddings.npy")
    refused = workshop.start("train", run, *bindings)
    ended, said = refused.finish(), refused.said()
    if ended != 1 or f"{run.index_version(needed)}/shard-00001-of-00004/embeddings.npy is corrupt" not in said:
        return Row(fault, 1, 0, "", failures=[f"ended with {ended}: {said[-500:]}"])
    shutil.rmtree(run.index_version(needed))
    before = len(metrics(run))
    trainer, embedder = workshop.start("train", run, *bindings), workshop.start("embed", run)
    goes_on = wait_until(lambda: len(metrics(run)) > before, trainer, embedder)
    failures = [] if goes_on else [f"after the remedy: {trainer.said()[-300:]} {embedder.said()[-300:]}"]
    recovery_secs = [time.time() - trainer.started_at] if goes_on else []
    trainer.kill()
    embedder.kill()
    notes = f"version {needed} of {list_versions(run.index)}; the trainer names the file and what to remove"
    return Row(fault, 1, 1 - len(failures), "nothing", recovery_secs, notes, failures)


def damage_checkpoints(workshop: Workshop) -> Row:
    """Every damage must be named in the log and the checkpoint before used, or change nothing that is restored."""
    run = workshop.whole("kept", "train.keep_checkpoints=3")
    older, newest = sorted(int(place.name) for place in run.checkpoints.iterdir())[
        -3:-1
    ]  # the last one has no candidates
    restorer = _Restorer(workshop)
    copy = RunDir.of(workshop.place / "damaged" / "run")
    shutil.rmtree(copy.path, ignore_errors=True)
    whole = run.checkpoints / str(newest)
    shutil.copytree(whole, copy.checkpoints / str(newest))
    expected = jax.tree.leaves(restorer.restore(copy))
    injected, failures, harmless = 0, [], set()
    for place, what in damaged(whole, copy.checkpoints / str(newest)):
        for other in copy.checkpoints.iterdir():
            if other.name != str(newest):
                shutil.rmtree(other)
        shutil.copytree(run.checkpoints / str(older), copy.checkpoints / str(older))
        injected += 1
        records: list[str] = []
        try:
            with _heard(records):
                unit = restorer.restore(copy)
        except Exception as error:
            failures.append(f"{what}: {repr(error)[:300]}")
            continue
        if int(unit.state.step) == older:
            if not any(str(copy.checkpoints / str(newest)) in record for record in records):
                failures.append(f"{what}: the older checkpoint was used without a word")
        else:
            name = place.relative_to(copy.checkpoints / str(newest)).as_posix()
            harmless.add(re.sub("[0-9a-f]{32}", "…", name))  # Orbax names files of values by random numbers
            if not all(map(np.array_equal, jax.tree.leaves(unit), expected)):
                failures.append(f"{what}: restored, with other values")
    notes = f"damage without effect on what is restored: {', '.join(sorted(harmless)) or 'none'}"
    return Row(
        "a file of the newest checkpoint damaged", injected, injected - len(failures), "nothing", (), notes, failures
    )


class _heard(logging.Handler):  # noqa: N801 - used as a function
    """Collects what is logged as an error meanwhile."""

    def __init__(self, records: list[str]):
        super().__init__(logging.ERROR)
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("realm_jax").addHandler(self)

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("realm_jax").removeHandler(self)
