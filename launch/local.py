"""Runs a whole pre-training on this machine: corpus, warm starts, trainer beside embed job, evaluation, report.

    python launch/local.py --run_dir=runs/pretrain                       the embedded corpus
    python launch/local.py --run_dir=runs/mine --corpus=my/documents     your own documents
    python launch/local.py --run_dir=runs/wiki --corpus=wiki/ --recipe=encyclopedia      tens of thousands of articles

    python launch/local.py --run_dir=runs/trial --corpus=docs --gin.train.num_steps=100   every training cut short: a trial

--gin.NAME.PARAM=VALUE (or --gin.MACRO=VALUE) sets a parameter of the run files; it is passed on to every job but the report.

Every stage is an ordinary `python -m realm_jax JOB` in a process of its own, its output in RUN/logs/. The same command
resumes whatever was interrupted: a corpus or a training that is done is not done again, evaluation and report are. The last
line printed is the report's path.

Where a run spans several machines, each of them executes this same command, with a run directory that all of them see:
the first one makes the corpus, evaluates and reports, all of them train together and embed their shares beside it. Slurm,
Kubernetes and JAX_PROCESS_ID of JAX_NUM_PROCESSES say which machine it is, or --host=0 --num_hosts=4. Others may embed alone:
--embed_only there, --embedder=none here.

Exit status: 0 done, 1 failed, 130 after Ctrl-C, 143 after SIGTERM, here or on another machine of the run: the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout's own package

from realm_jax.__main__ import wrong_environment

if __name__ == "__main__" and (said := wrong_environment()):  # before what is not there is imported
    sys.exit(f"local.py: {said}")

from command_line import Settings, parse
from launcher import Launcher, Preempted, StageFailed, check_no_trainer
from processes import PREEMPTED, Stopped, StopSignals

from realm_jax.run_lock import InUse, exclusive


def main(arguments: Sequence[str]) -> int:
    settings = parse(arguments, __doc__)
    run = settings.run
    if settings.embed_only:
        return launched(settings)
    try:
        with exclusive(settings.lock, "another launcher is at work in this run"):
            if settings.host.is_first:
                for trained in (run.stage("reader"), run.stage("ict"), run):
                    check_no_trainer(trained)
            return launched(settings)
    except InUse as refused:
        print(f"local.py: {refused}", file=sys.stderr)
        return 1


def launched(settings: Settings) -> int:
    """Runs the stages and says what came out; returns the exit status."""
    launcher = Launcher(settings, StopSignals().check)
    try:
        report = launcher.launch()
    except StageFailed as failure:
        launcher.display.note(str(failure))
        return 1
    except Preempted as elsewhere:
        launcher.display.note(str(elsewhere))
        return PREEMPTED
    except Stopped as stopped:
        launcher.display.note(str(stopped))
        return stopped.exit_status
    finally:
        launcher.stop()
    if report is None:
        return 0
    said = launcher.children[-1].last_words(lines=1000).splitlines()
    print("\n".join(line for line in said if line.strip() != str(report)))
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
