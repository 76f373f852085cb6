"""SIGTERM, as a machine that is taken away sends it: a checkpoint, exit status 143, and the same command goes on."""

import random
import signal
import time

from realm_jax.training.checkpoint import list_checkpoints
from tests.faults.jobs import Workshop, difference, metrics, status, wait_until
from tests.faults.table import Row


def preempt(workshop: Workshop, times: int, seed: int = 0) -> Row:
    """Trainers get SIGTERM at some instant between their first step and their last; no step may be done twice."""
    rng = random.Random(seed)
    whole = workshop.whole("whole")
    failures: list[str] = []
    recovery_secs: list[float] = []
    stopped_after: list[int] = []
    for number in range(times):
        run = workshop.run(f"preempted-{number}")
        embedder = workshop.start("embed", run)
        trainer = workshop.start("train", run, "faulty_task.Faulty.secs=0.2")
        wait_until(lambda run=run: metrics(run), trainer)
        time.sleep(rng.uniform(0, 4))
        trainer.process.send_signal(signal.SIGTERM)
        ended = trainer.finish()
        done, checkpoints = len(metrics(run)), list_checkpoints(run)
        if (ended, checkpoints[-1:], status(run).get("state")) != (143, [done], "failed"):
            failures.append(
                f"ended with {ended} after {done} steps, checkpoints {checkpoints}: {trainer.said()[-300:]}"
            )
        stopped_after.append(done)
        embedder.finish()  # it ends with the training, and is started again with it
        embedder, trainer = workshop.start("embed", run), workshop.start("train", run)
        if wait_until(lambda run=run, done=done: len(metrics(run)) > done, trainer):
            recovery_secs.append(time.time() - trainer.started_at)
        ended = trainer.finish()
        embedder.kill()
        if ended or (differs := difference(run, whole)):
            failures.append(f"resumed: {trainer.said()[-300:] if ended else differs}")
    notes = f"seed {seed}; after steps {', '.join(map(str, stopped_after))}"
    return Row(
        "trainer pre-empted (SIGTERM)",
        times,
        max(0, times - len(failures)),
        "nothing; no step done again",
        recovery_secs,
        notes,
        failures,
    )
