"""A clock that is set back by an hour under a running trainer, or under a running embed job."""

from pathlib import Path

from tests.faults.jobs import Workshop, difference
from tests.faults.table import Row

PROGRAM = (str(Path(__file__).with_name("jumping_clock.py")),)


def set_clocks_back(workshop: Workshop) -> Row:
    """The run must equal the one whose clocks did not jump."""
    whole = workshop.whole("whole")
    failures = []
    for jumping in ("train", "embed"):
        run = workshop.run(f"clock-{jumping}")
        jobs = {
            job: workshop.start(
                job, run, "faulty_task.Faulty.secs=0.5", program=PROGRAM if job == jumping else ("-m", "realm_jax")
            )
            for job in ("embed", "train")
        }
        status = jobs["train"].finish()
        embedder_status = jobs["embed"].finish(60)
        if status or embedder_status or (differs := difference(run, whole)):
            said = "".join(job.said()[-300:] for job in jobs.values())
            failures.append(
                f"{jumping}: ended with {status}, {embedder_status}: {said if status or embedder_status else differs}"
            )
    return Row("clock set back by an hour", 2, 2 - len(failures), "nothing", failures=failures)
