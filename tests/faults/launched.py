"""The launcher of a whole pre-training: its embed job killed, the launcher stopped, the launcher killed."""

import os
import signal
import sys
import time
from pathlib import Path

from realm_jax.run_dir import RunDir, read_json
from tests.faults.jobs import ROOT, Job, Workshop, metrics, status, wait_until
from tests.faults.table import Row

SMALL = ("--gin.train.num_steps=40", "--gin.train.batch_size=8", "--gin.train.checkpoint_every_steps=10")
STAGES_SECS = 900.0


def interrupt_launchers(workshop: Workshop) -> Row:
    """One run of launch/local.py on the embedded corpus, cut short in three ways; the same command must bring it to its report."""
    run = workshop.run("launched")
    try:
        return _interrupt(workshop, run)
    finally:  # whatever went wrong, nothing outlives a killed launcher
        for pid in _children(run):
            if _lives(pid) and str(run.path) in Path("/proc", str(pid), "cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def _interrupt(workshop: Workshop, run: RunDir) -> Row:
    failures: list[str] = []
    recovery_secs: list[float] = []

    # the embed job, killed under it, is started again
    launcher = _launch(workshop, run)
    wait_until(lambda: _step(run) >= 2, launcher, secs=STAGES_SECS)
    embedder = _embedder(run)
    os.kill(embedder, signal.SIGKILL)
    killed_at = time.time()
    if wait_until(lambda: _embedder(run) != embedder, launcher):
        recovery_secs.append(time.time() - killed_at)
    if "embed job ended with -9, starting it again in 1 s" not in launcher.said() or _embedder(run) == embedder:
        failures.append(f"embed job killed: {launcher.said()[-300:]}")

    # the launcher, stopped: its trainer writes a checkpoint, and no child is left
    children = _children(run)
    launcher.process.send_signal(signal.SIGTERM)
    ended, left = launcher.finish(), [pid for pid in children if _lives(pid)]
    if ended != 143 or left:
        failures.append(f"launcher stopped: ended with {ended}, children left: {left}: {launcher.said()[-300:]}")

    # the launcher, killed: its trainer goes on by itself, and keeps a second launcher out until it has ended
    done = _step(run)
    launcher = _launch(workshop, run)
    if wait_until(lambda: _step(run) > done, launcher, secs=STAGES_SECS):
        recovery_secs.append(time.time() - launcher.started_at)
    orphans = _children(run)
    launcher.kill()
    second = _launch(workshop, run)
    if second.finish() != 1 or f"a trainer is at work in this run (process {orphans[0]} on " not in second.said():
        failures.append(f"launcher killed: a second one ended with {second.process.returncode}: {second.said()[-300:]}")
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(_lives(pid) for pid in orphans), secs=20)

    last = _launch(workshop, run)
    ended = last.finish(STAGES_SECS)
    steps = [line["step"] for line in metrics(run) if "loss" in line]
    if ended or last.said().split()[-1] != str(run.report_html) or steps != list(range(1, 41)):
        failures.append(f"at the end: {ended}, steps {steps}: {last.said()[-500:]}")
    notes = "embed job killed under it; SIGTERM; the launcher itself killed, and trainer and embed job that outlived it"
    survived = max(0, 3 - len(failures))
    return Row(
        "launch/local.py interrupted",
        3,
        survived,
        "steps since the last checkpoint are done again",
        recovery_secs,
        notes,
        failures,
    )


def _launch(workshop: Workshop, run: RunDir) -> Job:
    return workshop.start_command(
        [sys.executable, str(ROOT / "launch" / "local.py"), f"--run_dir={run.path}", *SMALL], "launched"
    )


def _step(run: RunDir) -> int:
    return max((line["step"] for line in metrics(run)), default=0)


def _children(run: RunDir) -> list[int]:
    """The processes of trainer and embed job, as they last said."""
    said = (status(run).get("pid", 0), _embedder(run))
    return [int(pid) for pid in said if pid]


def _embedder(run: RunDir) -> int:
    """The process of the embed job that said something last; 0 for none."""
    try:
        return int(read_json(run.embedder_status)["pid"])
    except FileNotFoundError:
        return 0


def _lives(pid: int) -> bool:
    """Whether a process is there that is more than an entry nobody has asked for."""
    try:
        return ") Z " not in Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
