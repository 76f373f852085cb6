"""The trainer killed with SIGKILL: resumed, its run must equal the one that nothing happened to, to the bit."""

import random
import time
from collections import Counter
from collections.abc import Callable

from realm_jax.retrieval.versions import list_versions
from realm_jax.run_dir import RunDir
from tests.faults.jobs import Job, Workshop, difference, metrics, status, wait_until
from tests.faults.table import Row

KILLS_OF_A_RUN = 6
"""Then it is left to finish, and compared."""
RUNS_A_KILL = 4
"""At most: trainers that end before they are killed bring no kill."""
MOMENTS = ("any instant", "any instant", "checkpoint", "checkpoint", "snapshot", "swap")
TEMPORARY_CHECKPOINT = "*orbax-checkpoint-tmp*"


def kill_trainers(workshop: Workshop, times: int, seed: int = 0) -> Row:
    """A third of the kills come at any instant of a life, the others soon after a file appears: into the writing of a
    checkpoint, of a snapshot, and between a version's publication and its swap. A trainer that ends by itself with an error is
    a failure of its run, and so are too few kills in `RUNS_A_KILL` times as many runs.
    """
    rng = random.Random(seed)
    whole = workshop.whole("whole")
    life_secs = metrics(whole)[-1]["time"] - whole.config_file("train").stat().st_mtime + 4  # until it is imported
    hits: Counter[str] = Counter()
    recovery_secs: list[float] = []
    again: list[int] = []
    failures: list[str] = []
    survived = 0
    for number in range(RUNS_A_KILL * times):
        if hits.total() == times:
            break
        run = workshop.run(f"trainer-killed-{seed}-{number}")
        embedder = workshop.start("embed", run)
        killed, reached, wrong = 0, 0, ""
        while killed < KILLS_OF_A_RUN and hits.total() < times:
            trainer = workshop.start("train", run)
            _wait_for(rng.choice(MOMENTS), run, trainer, rng, life_secs)
            if not trainer.kill():
                wrong = _last_words(trainer)
                break  # nothing wrong: it had finished before
            killed += 1
            hits[_where(run, trainer)] += 1
            _note_resumption(run, trainer, reached, recovery_secs, again)
            reached = max((line["step"] for line in metrics(run)), default=0)
        if not wrong:
            trainer = workshop.start("train", run)
            trainer.finish()
            _note_resumption(run, trainer, reached, recovery_secs, again)
            wrong = _last_words(trainer) or difference(run, whole)
        embedder.kill()
        survived += killed if not wrong else 0
        if wrong:
            failures.append(f"{killed} kills of {run.path.name} (seed {seed}): {wrong}")
    if hits.total() < times:
        failures.append(f"only {hits.total()} of {times} trainers could be killed in {RUNS_A_KILL * times} runs")
    lost = f"nothing; at most {max(again, default=0)} steps were done again"
    where = ", ".join(f"{count} {place}" for place, count in hits.most_common())
    return Row(
        "trainer killed (SIGKILL)", hits.total(), survived, lost, recovery_secs, f"seed {seed}; {where}", failures
    )


def _last_words(trainer: Job) -> str:
    """Of one that ended with an error; empty for any other."""
    status = trainer.process.returncode
    return f"a trainer ended by itself with {status}: {trainer.said()[-500:]}" if status else ""


def _wait_for(moment: str, run: RunDir, trainer: Job, rng: random.Random, life_secs: float) -> None:
    if moment == "any instant":
        wait_until(lambda: False, trainer, secs=rng.uniform(0, life_secs))
        return
    seen = set(_appeared(moment, run))
    appears: dict[str, Callable[[], bool]] = {
        name: lambda: bool(set(_appeared(moment, run)) - seen) for name in ("checkpoint", "snapshot", "swap")
    }
    wait_until(appears[moment], trainer, poll_secs=0.001)
    time.sleep(rng.uniform(0, {"checkpoint": 0.15, "snapshot": 0.005, "swap": 0.05}[moment]))


def _appeared(moment: str, run: RunDir) -> list[str]:
    if moment == "swap":
        return [str(version) for version in list_versions(run.index)]
    pattern, place = (TEMPORARY_CHECKPOINT, run.checkpoints) if moment == "checkpoint" else (".*", run.snapshots)
    return [path.name for path in place.glob(pattern)] if place.is_dir() else []


def _where(run: RunDir, trainer: Job) -> str:
    """What a killed trainer was at, by what it left."""
    said = status(run)
    if said.get("pid") != trainer.process.pid:
        return "while starting"
    unfinished = run.checkpoints.glob(
        TEMPORARY_CHECKPOINT
    )  # those of earlier kills stay until that step is saved again
    if any(place.stat().st_mtime >= trainer.started_at for place in unfinished):
        return "while writing a checkpoint"
    if any(name.endswith(f".{trainer.process.pid}") for name in _appeared("snapshot", run)):
        return "while writing a snapshot"
    if said["pending_version"] > said["index_version"]:
        return "while swapping an index in"
    if said["index_version"] < 0:
        return "while waiting for the first index, or restoring"
    if max(_snapshots(run), default=-1) > max(list_versions(run.index), default=-1):
        return "while waiting for an index"
    return "between two steps, or in one"


def _snapshots(run: RunDir) -> list[int]:
    return [int(place.name) for place in run.snapshots.glob("[0-9]*")] if run.snapshots.is_dir() else []


def _note_resumption(run: RunDir, trainer: Job, reached: int, recovery_secs: list[float], again: list[int]) -> None:
    """How long a trainer took from its start to its first step, and how many steps of the one before it did again."""
    mine = [line for line in metrics(run) if line["time"] >= trainer.started_at]
    if mine and reached:
        recovery_secs.append(mine[0]["time"] - trainer.started_at)
        again.append(reached - (mine[0]["step"] - 1))
